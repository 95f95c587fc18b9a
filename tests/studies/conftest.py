"""A judge and settings small enough to train every variant of a paper in seconds."""

import pytest
import torch

from mutoscope.evaluation.networks.shapes_features import ShapesFeatures, ShapesFeaturesConfig
from mutoscope.evaluation.protocols.protocol import Judge
from mutoscope.studies.claims import ClaimsConfig
from small_shapes_model import save_small_model


@pytest.fixture(scope="package")
def judge() -> Judge:
    torch.manual_seed(0)
    config = ShapesFeaturesConfig(stem_channels=8, stage_channels=(8, 16, 16), embedding_size=6)
    return Judge(ShapesFeatures(config).eval(), "0" * 64)


@pytest.fixture(scope="package")
def config(tmp_path_factory: pytest.TempPathFactory) -> ClaimsConfig:
    folder = save_small_model(tmp_path_factory.mktemp("model") / "small")
    small = {"num_train_clips": 4, "num_clips": 3, "num_layers": 1, "hidden_size": 32}
    return ClaimsConfig(str(folder), (0,), num_steps=120, batch_size=2, **small)
