"""Published pipeline folders that load as they are, without a conversion."""

from mutoscope.interop.nova import describe_pipeline, is_pipeline, load_pipeline_model

__all__ = ["describe_pipeline", "is_pipeline", "load_pipeline_model"]
