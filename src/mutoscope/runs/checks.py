"""What a recipe's model must have in common with its tokenizer and its token cache."""

from mutoscope.data.base import ClipBatch, ClipSource
from mutoscope.data.sources.recorded_data import RecordedData
from mutoscope.data.sources.tokens import TokenCache
from mutoscope.errors import UserError
from mutoscope.tokenizers.base import TokenizerSpec
from mutoscope.training.config import ModelRecipe


def check_model_fits(recipe: ModelRecipe, spec: TokenizerSpec) -> None:
    """Raise UserError unless vocabulary and grid of the model are those of the tokenizer's tokens of these clips, and
    the model can be trained on their temporal gaps.
    """
    data, model = recipe.data, recipe.model
    expected = {
        "latent_shape": (model.latent_shape, spec.latent_shape(data.num_frames, data.height, data.width)),
        "latent_channels": (model.latent_channels, spec.latent_channels),
        "codebook_size": (model.codebook_size, spec.vocab_size),
    }
    del expected["codebook_size" if model.is_continuous else "latent_channels"]
    for name, (wanted, found) in expected.items():
        if wanted != found:
            flag = name.replace("_", "-")
            raise UserError(
                f"model.{name} is {wanted}, but tokenizer {recipe.tokenizer!r} gives {found} for "
                f"{data.num_frames} frames of {data.height}x{data.width}: change --model.{flag}, the size of the clips "
                "(--data.height, --data.width, --data.num-frames) or --tokenizer."
            )
    check_gaps(recipe)
    if missing := set(recipe.task_weights) - set(model.tasks):
        raise UserError(f"task_weights names {min(missing)!r}, which the model does not do: {model.tasks}.")


def check_gaps(recipe: ModelRecipe) -> None:
    """Raises UserError for clips with temporal gaps and a model that would learn to generate them."""
    if isinstance(recipe.data, RecordedData) and recipe.data.max_gap and "history_only" not in recipe.model.clip_fields:
        raise UserError(
            "data.max_gap is for models that know which frame comes after a temporal gap (MAGI); this one would learn "
            "to generate such gaps: set --data.max-gap 0."
        )


def condition_tasks(recipe: ModelRecipe) -> tuple[str, ...]:
    """Tasks whose condition videos are cached as tokens of their own."""
    return tuple(recipe.task_weights) if recipe.model.reads_condition_videos else ()


def check_captions(cache: TokenCache, recipe: ModelRecipe) -> None:
    """Raise UserError if a model of text would meet no captions, or features of another encoder."""
    wanted, found = recipe.model.text, cache.info.caption_shape
    if wanted is not None and found is None:
        raise UserError(f"{cache.folder} holds no captions: name a text_encoder in the recipe and tokenize again.")
    if wanted is not None and found != wanted:
        raise UserError(f"Captions in {cache.folder} are {found} rows and channels, the model reads {tuple(wanted)}.")


def check_source(source: ClipSource[ClipBatch], recipe: ModelRecipe) -> None:
    """Raises UserError, before any clip is encoded, where a model of actions would read clips without them."""
    if recipe.model.action_size is not None and "actions" not in source.fields:
        raise UserError(
            "The model reads actions, but these clips have none: use other data, or omit model.action_size."
        )


def check_actions(cache: TokenCache, recipe: ModelRecipe) -> None:
    """Raises UserError unless the cache has the actions that the model reads, one for every latent frame."""
    size, frames = recipe.model.action_size, recipe.model.latent_shape[0]
    found = cache.fields["actions"].shape if "actions" in cache.fields else None
    if size is not None and found != (frames, size):
        raise UserError(
            f"The model reads {size} numbers of action for each of {frames} latent frames, {cache.folder} holds "
            f"{found or 'none'}: tokenize clips with such actions, or omit model.action_size."
        )


def check_labels(cache: TokenCache, recipe: ModelRecipe) -> None:
    """Raise UserError if a task that needs classes would meet a clip without one, or one unknown to the model."""
    labels, num_classes = cache.labels, recipe.model.num_classes or 0
    conditional = [task for task in recipe.task_weights if recipe.model.needs_label(task)]
    if num_classes == 1 and labels.max() < 1:  # the class of all clips, labelled or not
        return
    if conditional and not 0 <= labels.min() <= labels.max() < num_classes:
        raise UserError(
            f"Task {conditional[0]!r} needs labels 0 to {num_classes - 1} (model.num_classes); those in "
            f"{cache.folder} are {labels.min()} to {labels.max()}. Sort the videos into one folder per class, set "
            "model.num_classes to their number, or omit the task from task_weights."
        )
