"""Fine-tuning: the recipe that continues a saved model on other clips, decided before any clip is encoded.

Sizes and rate are those of the model, classes, words and actions those of the clips; the weights follow by the rules of
`families/transfer.py`. The tokenizer is the model's own and does not change.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mutoscope import hub
from mutoscope.data.base import DataConfig
from mutoscope.data.sources.recorded_data import FolderData
from mutoscope.data.sources.survey import DataSurvey
from mutoscope.data.sources.tokens import TokensData
from mutoscope.errors import UserError
from mutoscope.families import family_of
from mutoscope.families.transfer import TransferReport, change_lines
from mutoscope.hub import weights_hash
from mutoscope.layers.lora import LoRAConfig
from mutoscope.models.base import AnyModel
from mutoscope.runs.adapt import Adaptation, adapted, changes, fitted_tasks, stride_of, with_settings
from mutoscope.runs.checks import check_model_fits
from mutoscope.runs.frame_size import Machine, clip_length
from mutoscope.runs.networks import tokenizer_spec
from mutoscope.runs.plan import Plan, sentence
from mutoscope.runs.start import recipe_names, saved_names, start
from mutoscope.runs.text import WORDS, start_vocabulary
from mutoscope.runs.train import load_recipe
from mutoscope.training.config import LoopConfig, ModelRecipe, OptimConfig, to_json

NUM_STEPS, WARMUP_STEPS = 500, 25
MAX_BATCH = 16  # clips per update, which two CPU cores and any GPU take
EMA_DECAY = 0.99  # averages the last hundred updates of a short run, fewer at its start
HELD_BACK = 0.05  # of the recordings, at least one
RATE_SHARE = 0.5  # of the model's own learning rates: lower loss after 40 updates than a third of them
LORA_RATE = 1e-3  # Adam's rate for low-rank factors, which need more than whole matrices
MAX_CLIPS = 6_000  # windows in the token cache
LARGE = 300_000_000  # parameters from which LoRA is suggested

# For models whose folder holds no recipe, such as converted ones.
OPTIM = OptimConfig(1e-4, 0.9, 0.95, weight_decay=0.02, warmup_steps=WARMUP_STEPS)
LOOP = LoopConfig(NUM_STEPS, MAX_BATCH, clip_norm=1.0)


@dataclass(frozen=True)
class FineTuning:
    """A fine-tuning run before it starts."""

    plan: Plan
    transfer: TransferReport
    names: tuple[str, ...]
    """Sentences about classes, words, actions and sizes that differ between the two models."""
    parameters: int
    trained_parameters: int
    """Those that training changes: with LoRA, low-rank factors in place of matrices."""

    @property
    def recipe(self) -> ModelRecipe:
        assert isinstance(self.plan.recipe, ModelRecipe)
        return self.plan.recipe

    def lines(self) -> Iterator[str]:
        """The run for people, one line each."""
        yield from self.plan.lines()
        yield from self.names
        yield f"Weights: {'; '.join(self.transfer.lines())}."
        yield f"Trained: {self.trained_parameters:,} of {self.parameters:,} parameters."


# ---------------------------------------------------------------------------------------------------------- the recipe


def starting_recipe(model: str, *, lora: bool = False) -> ModelRecipe:
    """The recipe that continues a saved model, before data are named: settings of its own recipe at lower rates.

    lora: with low-rank changes, and the learning rate for them. Raises UserError for a folder without a model.
    """
    folder = hub.open_folder(model)
    index, config, own = folder.index, folder.load_model().config, own_recipe(folder)
    optim = OPTIM if own is None else slower(own.optim)
    loop = LOOP if own is None else own.loop
    tasks = (own.task_weights if own else dict.fromkeys(index.tasks, 1.0)) or dict.fromkeys(config.tasks, 1.0)
    return ModelRecipe(
        name=f"{Path(model).name}-finetuned",
        tokenizer=index.tokenizer if index.tokenizer in hub.bundled() else model,
        data=FolderData(num_frames=index.num_frames, height=index.height, width=index.width, fps=index.fps),
        model=config,
        optim=replace(optim, peak_learning_rate=LORA_RATE, muon_learning_rate=None) if lora else optim,
        loop=short_loop(loop),
        task_weights=tasks,
        cache_clips=MAX_CLIPS,
        sampling=index.sampling,
        protocol=own.protocol if own else "shapes",
        start_from=model,
        text_encoder=text_encoder_of(folder),
        motion=own is not None and own.motion,
        lora=LoRAConfig() if lora else None,
        task_sampling=index.task_sampling,
        blend_given=index.blend_given,
    )


def own_recipe(folder: hub.ModelFolder) -> ModelRecipe | None:
    """The recipe that a model was trained with; None for a folder without one."""
    path = folder.path / "recipe.json"
    recipe = load_recipe(path) if path.is_file() else None
    return recipe if isinstance(recipe, ModelRecipe) else None


def slower(optim: OptimConfig) -> OptimConfig:
    """The same optimiser at a fraction of its learning rates, with a short warm-up and one cosine."""
    muon = optim.muon_learning_rate
    return replace(
        optim,
        peak_learning_rate=RATE_SHARE * optim.peak_learning_rate,
        muon_learning_rate=None if muon is None else RATE_SHARE * muon,
        warmup_steps=WARMUP_STEPS,
        schedule="cosine",
    )


def short_loop(loop: LoopConfig) -> LoopConfig:
    """The same loop for a few hundred updates."""
    return LoopConfig(
        NUM_STEPS,
        min(loop.batch_size, MAX_BATCH),
        sample_every=100,
        checkpoint_every=250,
        validation_share=HELD_BACK,
        validate_every=100,
        validation_clips=32,
        ema_decay=EMA_DECAY,
        ema_warmup=True,
        clip_norm=loop.clip_norm,
        num_workers=loop.num_workers,
    )


def text_encoder_of(folder: hub.ModelFolder) -> str | None:
    """The text encoder as recipes name it: "words" for one that can learn words, otherwise its folder."""
    path = folder.text_encoder_path
    if path is None:
        return None
    return WORDS if start_vocabulary(str(folder.path)) else str(path)


# ------------------------------------------------------------------------------------------------------------- the run


def planned_finetuning(recipe: ModelRecipe, *, kept: Collection[str] = (), machine: Machine = "cpu") -> FineTuning:
    """`recipe` on the data that it names, and what becomes of the weights it starts from.

    kept: dotted names of settings that a user chose, such as "data.height". Raises UserError for data and settings
    that the weights do not allow.
    """
    assert recipe.start_from is not None
    check_cache(recipe)
    survey = recipe.data.survey()
    clips = replace(recipe, data=clips_like_the_model(recipe, survey, kept))
    check_frame_size(clips)
    adaptation = adapted(clips, kept={*kept, "tokenizer"}, machine=machine)
    assert isinstance(adaptation.recipe, ModelRecipe)
    fitted = continuing(recipe, adaptation.recipe)
    check_model_fits(fitted, tokenizer_spec(fitted))
    network, report = started(fitted)
    before = saved_names(hub.open_folder(recipe.start_from), recipe.model)
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    parameters = sum(size for size, _ in sizes)
    return FineTuning(
        plan_of(recipe, fitted, adaptation, parameters),
        report,
        tuple(change_lines(before, recipe_names(fitted))),
        parameters,
        trained_parameters=sum(size for size, trained in sizes if trained),
    )


def started(recipe: ModelRecipe) -> tuple[AnyModel, TransferReport]:
    """The network before its first update, and what became of the weights: training starts with the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.loop.seed)
        network = family_of(recipe.model).network(recipe.model)
        report = start(recipe, network)
    assert report is not None  # a recipe of fine-tuning has weights to start from
    return network, report


def check_cache(recipe: ModelRecipe) -> None:
    """Raises UserError for a token cache of another tokenizer than that of the model."""
    data = recipe.data
    if isinstance(data, TokensData):
        info = data.cache().info
        if info.tokenizer_hash != weights_hash(hub.load_tokenizer(recipe.tokenizer)):
            raise UserError(
                f"{data.path} holds tokens of the tokenizer {info.tokenizer!r}, the model reads those of "
                f"{recipe.tokenizer!r}: tokenize the clips with `mutoscope tokenize {recipe.start_from}`."
            )


def check_frame_size(recipe: ModelRecipe) -> None:
    """Raises UserError for frames that do not split into the tokens of the model."""
    data, multiple = recipe.data, tokenizer_spec(recipe).spatial_stride * recipe.model.grid_multiple
    if data.height % multiple or data.width % multiple:
        raise UserError(
            f"This model reads frames in multiples of {multiple} pixels, found {data.height}x{data.width}: change "
            "--data.height and --data.width."
        )


def clips_like_the_model(recipe: ModelRecipe, survey: DataSurvey, kept: Collection[str]) -> DataConfig:
    """Clips of the model's size and length, at a rate close to the model's; shorter ones for short videos.

    A token cache keeps the sizes that it was filled with.
    """
    data, spec = recipe.data, tokenizer_spec(recipe)
    if isinstance(data, TokensData):
        sizes = {"height": survey.height, "width": survey.width, "num_frames": survey.frames and survey.frames[0]}
        return with_settings(data, sizes, kept, "data")
    if survey.frames is None:
        return data
    shortest, median = survey.frames
    # Clips of half the length are better than recordings that are skipped because they are shorter than a clip.
    typical = shortest if 2 * shortest >= data.num_frames else median
    wanted = data.num_frames if "data.num_frames" in kept else min(data.num_frames, typical)
    frames = clip_length(wanted, typical, spec.temporal_stride, spec.num_alone)
    fits = typical if frames == 1 else (typical - 1) // (frames - 1)
    stride = max(1, min(round(survey.fps / data.fps), fits))
    data = with_settings(data, {"num_frames": frames, "frame_stride": stride}, kept, "data")
    return with_settings(data, {"windows": windows_per_video(data, survey, recipe.cache_clips)}, kept, "data")


def windows_per_video(data: DataConfig, survey: DataSurvey, most: int) -> int | None:
    """Clips of a video of median length: a quarter of a clip apart, or fewer for `most` in all; None without videos."""
    if survey.frames is None or survey.num_videos is None:
        return None
    span = (data.num_frames - 1) * stride_of(data) + 1
    fit = 1 + max(0, survey.frames[1] - span) // max(1, span // 4)
    return max(1, min(fit, most // survey.num_videos))


def continuing(recipe: ModelRecipe, fitted: ModelRecipe) -> ModelRecipe:
    """The adapted recipe with the conditions that its model keeps from the old one, and the tasks that follow."""
    model = fitted.model.continuing(recipe.model)
    encoder = (fitted.text_encoder or recipe.text_encoder) if model.text is not None else None
    return replace(fitted, model=model, text_encoder=encoder, task_weights=fitted_tasks(recipe, model))


def plan_of(recipe: ModelRecipe, fitted: ModelRecipe, adaptation: Adaptation, parameters: int) -> Plan:
    """The run as `mutoscope train` plans it, with warnings about missing captions and memory."""
    survey, warnings = adaptation.survey, list(adaptation.warnings)
    if fitted.model.text is not None and not survey.has_captions:
        warnings.append(
            "These clips have no captions, so that the model learns them under the empty prompt: write a .txt file "
            "beside each video to name what it shows."
        )
    if parameters > LARGE and fitted.lora is None:
        warnings.append(
            f"This model has {parameters:,} parameters; --lora.r 16 trains about a hundredth of them in less memory."
        )
    settings = tuple(changes(to_json(recipe), to_json(fitted)))
    return Plan(fitted, None, sentence(fitted, adaptation), settings, tuple(warnings))
