"""A recipe for other data than its own: frame size, rate, classes, captions and actions follow from the recording.

`adapted` decides everything from a survey of the data and from the tokenizer, before any clip is read. Settings that a
user chose are kept; whatever they make impossible is refused.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from mutoscope.data.base import DataConfig
from mutoscope.data.sources.recorded_data import RecordedData
from mutoscope.data.sources.survey import DataSurvey
from mutoscope.data.sources.tokens import TokensData
from mutoscope.json_config import with_values
from mutoscope.model_index import ModelIndex
from mutoscope.models.base import ClipFacts, ModelConfig, TextShape
from mutoscope.runs.frame_size import Machine, clip_length, frame_size, frame_stride, window_step
from mutoscope.runs.networks import tokenizer_index, tokenizer_spec, untrained_spec
from mutoscope.runs.text import WORDS, caption_shape
from mutoscope.tokenizers.base import TokenizerSpec
from mutoscope.training.config import ModelRecipe, Recipe, TokenizerRecipe, to_json

RATE_TOLERANCE = 1.5  # a tokenizer that joins frames is warned about beyond this ratio of rates
COMMON_MULTIPLE = 16  # of heights and widths, so that a tokenizer trained for one recipe serves the next
Config = TypeVar("Config")


@dataclass(frozen=True)
class Change:
    """One setting that follows from the data. name: dotted, as in flags and in recipe.json."""

    name: str
    value: object


@dataclass(frozen=True)
class Adaptation:
    """A recipe after adaptation, what was found in the data, the settings that changed, and sentences of warning."""

    recipe: Recipe
    survey: DataSurvey
    changes: tuple[Change, ...] = ()
    warnings: tuple[str, ...] = ()


def adapted(recipe: Recipe, *, kept: Collection[str] = (), machine: Machine = "cpu") -> Adaptation:
    """`recipe` for the data that it names.

    kept: dotted names of settings that stay as they are, such as "data.height", because a user chose them.
    machine: decides the frame size where the recipe leaves it to the data.
    Raises UserError for data that this recipe cannot be trained on, naming what to change.
    """
    survey = recipe.data.survey()
    fitted, warnings = recipe, ()
    if isinstance(recipe, TokenizerRecipe):
        spec = untrained_spec(recipe)
        fitted = replace(recipe, data=fitted_data(recipe, survey, spec, spec.spatial_stride, kept, machine))
    if isinstance(recipe, ModelRecipe):
        fitted, warnings = fitted_model_recipe(recipe, survey, kept, machine)
    return Adaptation(fitted, survey, tuple(changes(to_json(recipe), to_json(fitted))), warnings)


def changes(before: object, after: object, name: str = "") -> Iterator[Change]:
    """Settings of `after`, as JSON values, that differ from `before`."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key, value in after.items():
            yield from changes(before.get(key), value, f"{name}.{key}" if name else str(key))
    elif before != after:
        yield Change(name, after)


# ----------------------------------------------------------------------------------------------------------- the clips


def fitted_data(
    recipe: TokenizerRecipe | ModelRecipe,
    survey: DataSurvey,
    spec: TokenizerSpec,
    multiple: int,
    kept: Collection[str],
    machine: Machine,
) -> DataConfig:
    """The clips of a recording as a recipe reads them; `multiple`: of height and width.

    A recipe that states its own sizes keeps them, and its clips keep the recording's rate.
    """
    data = recipe.data
    if isinstance(data, TokensData):  # the clips are cut already
        frames = data.num_frames if survey.frames is None else survey.frames[0]
        return replace(data, height=survey.height, width=survey.width, num_frames=frames, fps=survey.fps)
    if recipe.fits_data:
        height, width = frame_size((survey.height, survey.width), math.lcm(multiple, COMMON_MULTIPLE), machine)
        available = usable_frames(survey, data.num_frames)
        wanted = data.num_frames if "data.num_frames" in kept else min(data.num_frames, available or 1)
        frames = clip_length(wanted, available or 1, spec.temporal_stride, spec.num_alone)
        data = with_settings(data, {"height": height, "width": width, "num_frames": frames}, kept, "data")
        stride = frame_stride(survey.fps, data.num_frames, available)
        data = with_settings(data, {"frame_stride": stride}, kept, "data")
        data = with_settings(data, {"clip_step": step_of(data, survey, recipe)}, kept, "data")
    return with_settings(data, {"fps": survey.fps / stride_of(data)}, kept, "data")


def usable_frames(survey: DataSurvey, wanted: int) -> int | None:
    """Frames that a clip and its stride may count on; None for an endless source.

    Those of the shortest video, so that none is skipped, unless it is an outlier: shorter than half a clip of the
    wanted frames, where the median video is not.
    """
    if survey.frames is None:
        return None
    shortest, median = survey.frames
    return shortest if 2 * shortest >= min(wanted, median) else median


def step_of(data: DataConfig, survey: DataSurvey, recipe: TokenizerRecipe | ModelRecipe) -> int | None:
    """Frames from one window of a video to the next; None for data without windows, or with a number of them."""
    if survey.frames is None or survey.num_videos is None or getattr(data, "windows", None) is not None:
        return None
    most = recipe.cache_clips if isinstance(recipe, ModelRecipe) else survey.num_videos * survey.frames[1]
    span = (data.num_frames - 1) * stride_of(data) + 1
    return window_step(span, survey.num_videos, survey.frames[1], most)


def stride_of(data: DataConfig) -> int:
    """Source frames per clip frame; 1 for data without a stride."""
    return int(getattr(data, "frame_stride", 1))


def with_settings(config: Config, values: Mapping[str, object], kept: Collection[str], prefix: str) -> Config:
    """`config` with those values that it has fields for and that no user chose."""
    known = {name: value for name, value in values.items() if hasattr(config, name)}
    return with_values(config, {name: value for name, value in known.items() if f"{prefix}.{name}" not in kept})


# ----------------------------------------------------------------------------------------------------------- the model


def fitted_model_recipe(
    recipe: ModelRecipe, survey: DataSurvey, kept: Collection[str], machine: Machine
) -> tuple[ModelRecipe, tuple[str, ...]]:
    """The recipe with clips and a model that fit each other, and warnings about the tokenizer."""
    recipe = with_own_tokenizer(recipe, kept)
    spec = tokenizer_spec(recipe)
    data = fitted_data(recipe, survey, spec, spec.spatial_stride * recipe.model.grid_multiple, kept, machine)
    recipe = replace(recipe, data=data)
    encoder = recipe.text_encoder or (WORDS if survey.has_captions else None)
    text = caption_shape(recipe, encoder) if survey.has_captions and encoder else None
    model = keep_chosen(recipe.model, recipe.model.fitted(clip_facts(data, spec, survey, text)), kept)
    weights = fitted_tasks(recipe, model)
    recipe = replace(recipe, model=model, task_weights=weights, text_encoder=encoder if model.text else None)
    return recipe, tuple(warnings_about(recipe, survey))


def with_own_tokenizer(recipe: ModelRecipe, kept: Collection[str]) -> ModelRecipe:
    """A recipe on a token cache uses the tokenizer and the text encoder that the cache was filled with."""
    if not isinstance(recipe.data, TokensData):
        return recipe
    cache = recipe.data.cache()
    encoder = recipe.text_encoder if cache.text_encoder is None else str(cache.text_encoder)
    tokenizer = recipe.tokenizer if "tokenizer" in kept else cache.info.tokenizer
    return replace(recipe, tokenizer=tokenizer, text_encoder=encoder)


def clip_facts(data: DataConfig, spec: TokenizerSpec, survey: DataSurvey, text: TextShape | None) -> ClipFacts:
    """What the configuration of a model depends on. A single class is no condition."""
    return ClipFacts(
        latent_shape=spec.latent_shape(data.num_frames, data.height, data.width),
        latent_channels=spec.latent_channels,
        codebook_size=spec.vocab_size,
        num_classes=len(survey.class_names) if len(survey.class_names) > 1 else 0,
        text=text,
        action_size=survey.actions.size if survey.actions and spec.per_frame else None,
    )


def keep_chosen(before: ModelConfig, after: ModelConfig, kept: Collection[str]) -> ModelConfig:
    """`after` with the settings of `before` that a user chose."""
    chosen = [name.removeprefix("model.") for name in kept if name.startswith("model.")]
    return with_values(after, {name: getattr(before, name) for name in chosen if hasattr(before, name)})


def fitted_tasks(recipe: ModelRecipe, model: ModelConfig) -> dict[str, float]:
    """Weights of the tasks that the fitted model does; conditions that are new to the recipe get a task each."""
    known = {task: weight for task, weight in recipe.task_weights.items() if task in model.tasks}
    new = [task for task in model.tasks if task not in recipe.model.tasks and task.endswith("-conditional")]
    return {**known, **dict.fromkeys((task for task in new if task not in known), 1.0)} or dict.fromkeys(
        model.tasks, 1.0
    )


def warnings_about(recipe: ModelRecipe, survey: DataSurvey) -> Iterator[str]:
    """Sentences about a tokenizer that was trained on clips of another size or rate, and about unread conditions."""
    index = tokenizer_index(recipe)
    if index is not None:
        yield from tokenizer_warnings(recipe.tokenizer, index, recipe.data, is_fixed=recipe.start_from is not None)
    if survey.actions is not None and recipe.model.action_size is None:
        yield f"The recording has actions ({', '.join(survey.actions.names)}), which this model does not read."
    if isinstance(recipe.data, RecordedData) and recipe.data.intervals and "interval" not in recipe.model.clip_fields:
        yield "The clips have several frame intervals, which this model does not read: its motion has no certain speed."


def tokenizer_warnings(name: str, index: ModelIndex, data: DataConfig, *, is_fixed: bool = False) -> Iterator[str]:
    """One sentence where clips of another size or rate than the tokenizer's go through it.

    is_fixed: the tokenizer belongs to the weights that training starts from.
    """
    differences = []
    if index.frame_size != (data.height, data.width):
        differences.append(f"frames of {index.height}x{index.width} instead of {data.height}x{data.width}")
    ratio = max(index.fps, data.fps) / min(index.fps, data.fps)
    if ratio > RATE_TOLERANCE:
        differences.append(f"{index.fps:.3g} frames/s instead of {data.fps:.3g}")
    trained, kind = index.data.get("kind"), data.describe().get("kind")
    if trained is not None and trained != kind:
        differences.append(f"data of kind {trained!r} instead of {kind!r}")
    if differences:
        train = "train a model with a tokenizer of your own by `mutoscope train`"
        otherwise = f"or {train}" if is_fixed else "or omit --tokenizer to train one of your own"
        yield (
            f"The tokenizer {name!r} was trained on {', '.join(differences)}; expect blur. Look at "
            f"`mutoscope reconstruct {name}` of one of your videos, {otherwise}."
        )
