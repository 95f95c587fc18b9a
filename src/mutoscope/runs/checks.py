"""What a recipe's model must have in common with its tokenizer and its token cache."""

from mutoscope.data.base import ClipBatch, ClipSource
from mutoscope.data.sources.tokens import TokenCache
from mutoscope.errors import UserError
from mutoscope.models.base import ModelConfig
from mutoscope.models.magi import MAGIConfig
from mutoscope.models.magvit import MagvitConfig
from mutoscope.models.nova import NOVAConfig
from mutoscope.models.par import PARConfig
from mutoscope.tokenizers.base import VideoTokenizer
from mutoscope.training.config import ModelRecipe


def check_model_fits(recipe: ModelRecipe, tokenizer: VideoTokenizer) -> None:
    """Raises UserError unless the model's vocabulary and grid are those of the tokenizer's tokens of these clips."""
    data, model = recipe.data, recipe.model
    given = {"latent_shape": tokenizer.spec.latent_shape(data.num_frames, data.height, data.width)}
    given["latent_channels" if is_continuous(model) else "codebook_size"] = (
        tokenizer.spec.latent_channels if is_continuous(model) else tokenizer.spec.vocab_size
    )
    for name, value in given.items():
        if getattr(model, name) != value:
            raise UserError(
                f"model.{name} is {getattr(model, name)}, but tokenizer {recipe.tokenizer!r} gives {value} for "
                f"{data.num_frames} frames of {data.height}x{data.width}. Change the recipe's model or data."
            )
    tasks = model.tasks if isinstance(model, MagvitConfig | MAGIConfig) else ("class-conditional",)
    if text_shape(model) is not None and not isinstance(model, MAGIConfig):
        tasks = ("text-conditional",)
    if missing := set(recipe.task_weights) - set(tasks):
        raise UserError(f"task_weights names {sorted(missing)[0]!r}, which the model does not do: {tasks}.")


def is_continuous(model: ModelConfig) -> bool:
    """Whether a model's tokens are vectors instead of codes."""
    return isinstance(model, NOVAConfig) or (isinstance(model, MAGIConfig) and not model.is_discrete)


def condition_tasks(recipe: ModelRecipe) -> tuple[str, ...]:
    """Tasks whose condition videos a model reads as tokens of their own: MAGVIT's; others read the clip itself."""
    return tuple(recipe.task_weights) if isinstance(recipe.model, MagvitConfig) else ()


def check_captions(cache: TokenCache, recipe: ModelRecipe) -> None:
    """Raises UserError when a model of text would meet no captions, or features of another encoder."""
    wanted, found = text_shape(recipe.model), cache.info.caption_shape
    if wanted is not None and found is None:
        raise UserError(f"{cache.folder} holds no captions: name a text_encoder in the recipe and tokenize again.")
    if wanted is not None and found != wanted:
        raise UserError(f"Captions in {cache.folder} are {found} rows and channels, the model reads {wanted}.")


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


def text_shape(model: ModelConfig) -> tuple[int, int] | None:
    """Rows and channels of the text features that a model reads; None for one without text."""
    if isinstance(model, NOVAConfig | MAGIConfig) and model.text_size is not None:
        return model.text_length, model.text_size
    if isinstance(model, PARConfig) and model.caption_size is not None:
        return model.caption_length, model.caption_size
    return None


def context_frames(recipe: ModelRecipe) -> int:
    """Frames that the tasks which start from frames are given."""
    return recipe.model.context_frames if isinstance(recipe.model, MagvitConfig) else 1


def check_labels(cache: TokenCache, recipe: ModelRecipe) -> None:
    """Raises UserError when a task that needs classes would meet a clip without one, or one unknown to the model."""
    labels = cache.labels
    named = "frame-prediction" if getattr(recipe.model, "class_loss", 0) else "class-conditional"
    conditional = [task for task in recipe.task_weights if task.startswith(("class-conditional", named))]
    num_classes = recipe.model.num_classes or 0
    if conditional and not 0 <= labels.min() <= labels.max() < num_classes:
        raise UserError(
            f"Task {conditional[0]!r} needs labels 0 to {num_classes - 1} (model.num_classes); those in "
            f"{cache.folder} are {labels.min()} to {labels.max()}. Sort the videos into one folder per class, set "
            "model.num_classes to their number, or leave the task out of task_weights."
        )
