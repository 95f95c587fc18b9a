"""From a recipe to a finished model folder: data, network, loop, contact sheets, export."""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mutoscope import hub
from mutoscope.data.base import SETTINGS, DataConfig, flat
from mutoscope.data.sources.registry import from_description
from mutoscope.data.sources.tokens import CONTEXT_FRAMES, TokenCache, TokensData
from mutoscope.errors import UserError
from mutoscope.evaluation.networks.shapes_features import ShapesFeatures, ShapesFeaturesConfig, save_shapes_features
from mutoscope.families import FAMILIES, AnyFamily, family_of
from mutoscope.families.base import PrepareBatch
from mutoscope.json_config import dataclass_from_dict, read_json
from mutoscope.layers.lora import merge_lora
from mutoscope.models.base import ModelConfig
from mutoscope.ownership import owned, tidy
from mutoscope.runs.actions import actions_of, with_scaled_actions
from mutoscope.runs.checks import (
    check_actions,
    check_captions,
    check_labels,
    check_model_fits,
    check_source,
    condition_tasks,
)
from mutoscope.runs.first_frames import first_frames
from mutoscope.runs.networks import TRAINED_FIRST, build_tokenizer, tokenizer_of, tokenizer_spec, tokenizer_stage
from mutoscope.runs.preflight import check_memory, check_recipe
from mutoscope.runs.rollouts import own_context
from mutoscope.runs.sheets import GenerationSheet
from mutoscope.runs.start import start
from mutoscope.runs.text import open_text_encoder
from mutoscope.runs.tokenize import CaptionReader, tokenize
from mutoscope.runs.validation import cached_examples, example_clips, loop_split, plainly_held_back
from mutoscope.sampling.tasks import condition_key, needs_video
from mutoscope.terminal import lasting_output
from mutoscope.text import TextEncoder
from mutoscope.tokenizers.base import VideoTokenizer, channels_last
from mutoscope.tokenizers.discriminator import Discriminator, make_discriminator
from mutoscope.tokenizers.inflation import inflate
from mutoscope.tokenizers.perceptual import load_perceptual
from mutoscope.tokenizers.vq3d import VQ3D
from mutoscope.training.callbacks import Callback, ReconstructionSheet
from mutoscope.training.checkpoint import CHECKPOINTS, check_new, write_recipe
from mutoscope.training.config import (
    AdversarialConfig,
    FeaturesRecipe,
    ModelRecipe,
    Recipe,
    TokenizerRecipe,
    from_json,
    to_json,
)
from mutoscope.training.distributed import Process, any_rank, barrier, join
from mutoscope.training.signals import early_signals
from mutoscope.training.tokenizer_trainer import set_latent_statistics, train_tokenizer
from mutoscope.training.tracking import Tracker, check_trackers
from mutoscope.training.trainer import TrainResult, train_model


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    trackers: Sequence[Tracker] = (),
    device: str | torch.device | None = None,
    work: str = "train",
) -> TrainResult:
    """Trains `recipe` into the folder `out` and leaves a loadable model folder there.

    `out` receives recipe.json at once; log.jsonl, curve.png, samples/ and checkpoints/ while training; the weights and
    model_index.json at the end. A run ended by SIGTERM or Ctrl-C has only the former: `resume=True` continues it.
    Works unchanged under torchrun. `work`: the verb, for others who want to write into `out` meanwhile and are refused.
    Raises UserError for anything the user can fix.
    """
    out = Path(out)
    hub.check_writable_folder(out)
    check_trackers(recipe.loop.report_to)
    check_recipe(recipe)
    if recipe.loop.threads:
        torch.set_num_threads(recipe.loop.threads)
    torch.manual_seed(recipe.loop.seed)  # initial weights
    process = join(device)
    check_memory(recipe, process.device)
    options = {"resume": resume, "trackers": trackers, "device": process.device}
    with lasting_output(), early_signals(process), folder_of(out, work, process), flushed_denormals():
        if isinstance(recipe, TokenizerRecipe):
            return _train_tokenizer(recipe, out, process, callbacks, options)
        if isinstance(recipe, ModelRecipe):
            return _train_model(recipe, out, process, callbacks, options)
        return _train_features(recipe, out, process, callbacks, options)


@contextmanager
def folder_of(out: Path, work: str, process: Process) -> Iterator[None]:
    """The folder of a run, which the main process owns. Raises UserError on all processes where it cannot be owned."""
    with ExitStack() as stack:
        refused: UserError | None = None
        if process.is_main:
            try:
                stack.enter_context(owned(out, work))
            except UserError as error:
                refused = error
        if any_rank(refused is not None, process):
            raise refused or UserError(f"{out} is being written by another run.")
        yield


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Treats denormal numbers as zero on this thread and on those that torch starts meanwhile.

    The entropy term's softmax is full of them, and a CPU computes with them so slowly that they cost a third of a
    tokenizer's speed. Worker threads inherit the setting only if they are started inside, so it should come before
    the first parallel operation of a program.
    """
    was_flushing = torch.tensor(1e-40).mul(1.0).item() == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(was_flushing)


def load_recipe(path: str | Path) -> Recipe:
    """The recipe in a JSON file, for example the recipe.json of an earlier run."""
    return from_json(read_json(Path(path)), str(path), tuple(family.config for family in FAMILIES.values()))


HELD_BACK = "held_back"  # in the description of the clips of a token cache
STATED = {
    "class_names",
    "actions",
    HELD_BACK,
    "seed",
    "path",
    SETTINGS,
}  # of a description: stated elsewhere, or of no use elsewhere


def model_index(data: DataConfig, **values: Any) -> hub.ModelIndex:
    """model_index.json of a finished run; `values` are the fields that depend on the family."""
    described = data.describe()
    names = described["class_names"] if "class_names" in described else from_description(data, described).class_names()
    return hub.ModelIndex(
        num_frames=data.num_frames,
        height=data.height,
        width=data.width,
        fps=clips_fps(data, described),
        class_names=tuple(cast(Sequence[str], names)) or None,
        data={name: value for name, value in described.items() if name not in STATED},
        **values,
    )


def clips_fps(data: DataConfig, described: Mapping[str, object]) -> float:
    """Frames per second of the clips: a token cache describes the clips it was filled with, and their rate."""
    found = flat(described).get("fps")
    return float(found) if isinstance(found, int | float) else data.fps


# ------------------------------------------------------------------------------------------------------- the stages


def _train_tokenizer(
    recipe: TokenizerRecipe, out: Path, process: Process, callbacks: Sequence[Callback], options: dict[str, Any]
) -> TrainResult:
    tokenizer, adversarial = build_tokenizer(recipe.tokenizer), recipe.adversarial
    discriminator = make_discriminator(adversarial.discriminator) if adversarial else None
    start_inflated(recipe, tokenizer, discriminator)
    perceptual = perceptual_loss(adversarial) if adversarial else None
    source = recipe.data.open()
    sheet = ReconstructionSheet(example_clips(recipe.data, source, recipe.loop)["video"])
    result = train_tokenizer(
        tokenizer,
        recipe,
        source,
        out,
        discriminator=discriminator,
        perceptual=perceptual.to(process.device) if perceptual else None,
        callbacks=(sheet, *callbacks),
        **options,
    )
    if result.finished and process.is_main:
        if tokenizer.spec.latent_channels is not None:
            split = loop_split(source, recipe.loop)
            set_latent_statistics(cast(VideoTokenizer, result.network), split.training if split else source)
        index = model_index(recipe.data, family="tokenizer", model=None)
        parts = {"tokenizer": result.network, "discriminator": discriminator}
        hub.save_pretrained(out, index, recipe=to_json(recipe), **parts)
    return result


def check_no_run(out: Path) -> None:
    """Raises UserError where `out` holds an earlier run, before its recipe is replaced by another one."""
    check_new(out / CHECKPOINTS)
    if not (out / TRAINED_FIRST / hub.INDEX).is_file():
        check_new(out / TRAINED_FIRST / CHECKPOINTS)


def _train_tokenizer_first(
    recipe: ModelRecipe, out: Path, process: Process, options: dict[str, Any]
) -> TrainResult | None:
    """Trains the tokenizer that a model's recipe names by a recipe; the result where a signal ended it early."""
    first, folder = tokenizer_stage(recipe), out / TRAINED_FIRST
    if first is None:
        return None
    if (folder / hub.INDEX).is_file():
        if process.is_main:
            tidy(folder)  # a run may have been killed right after the tokenizer's last step
        return None
    resume = options["resume"] and folder.is_dir()
    with folder_of(folder, "train", process):
        result = _train_tokenizer(first, folder, process, (), options | {"trackers": (), "resume": resume})
    barrier(process)
    return None if result.finished else result


def perceptual_loss(adversarial: AdversarialConfig) -> nn.Module | None:
    """The perceptual term from the files the recipe names; without files none, with a warning that says so."""
    if adversarial.perceptual_weights:
        return load_perceptual(adversarial.perceptual_weights, heads=adversarial.perceptual_heads)
    if adversarial.perceptual_weight > 0:
        warnings.warn(
            "This run has no perceptual loss, whose weights may not be shipped: it trains, but expect less sharp "
            "reconstructions. Name a file with --adversarial.perceptual-weights to have it.",
            stacklevel=2,
        )
    return None


def start_inflated(recipe: TokenizerRecipe, tokenizer: VideoTokenizer, discriminator: nn.Module | None) -> None:
    """Starts both networks from the 2D-VQ that the recipe names, if it names one."""
    if recipe.start_from is None:
        return
    folder = hub.tokenizer_folder(recipe.start_from)
    if not isinstance(tokenizer, VQ3D):
        raise UserError("start_from inflates a 2D-VQ into a 3D-VQ; this recipe trains another kind of tokenizer.")
    inflate(hub.load_component(folder), tokenizer, recipe.inflation)
    opponent = folder.parent / "discriminator"
    if isinstance(discriminator, Discriminator) and opponent.is_dir():
        inflate(hub.load_component(opponent), discriminator, recipe.inflation)


def _train_model(
    recipe: ModelRecipe, out: Path, process: Process, callbacks: Sequence[Callback], options: dict[str, Any]
) -> TrainResult:
    check_model_fits(recipe, tokenizer_spec(recipe))
    torch.manual_seed(recipe.loop.seed)  # initial weights, whether or not a tokenizer is trained first
    family = family_of(recipe.model)
    model = family.network(recipe.model)
    start(recipe, model)  # before anything is computed or written: weights that do not fit are refused here
    if not options["resume"]:
        check_no_run(out)
        if process.is_main:
            write_recipe(out, to_json(recipe))
    if (unfinished := _train_tokenizer_first(recipe, out, process, options)) is not None:
        return unfinished
    name = tokenizer_of(recipe, out)
    tokenizer = hub.load_tokenizer(name).to(process.device)
    channels_last(tokenizer)
    text = open_text_encoder(recipe, out, process)
    cache = open_cache(recipe, tokenizer, out, process, text)
    actions = actions_of(cache.info.data, recipe.data, recipe.model)
    bundled = name in hub.bundled() and not os.path.isdir(name)
    index = model_index(
        recipe.data,
        family=family.name,
        tokenizer=name if bundled else "./tokenizer",
        text_encoder=None if text is None else os.path.relpath(text.folder, out),
        tasks=tuple(recipe.task_weights),
        sampling=asdict(sampler_defaults(family, recipe.sampling, "sampling")),
        task_sampling=task_sampling(recipe, family),
        blend_given=recipe.blend_given,
        actions=actions,
    )
    sheets: list[Callback] = []
    origin = from_description(recipe.data, cache.info.data)
    if not origin.needs_files or not isinstance(recipe.data, TokensData):  # the videos of a finished cache may be gone
        clips = cached_examples(origin, cache, recipe.loop)
        sheets = [GenerationSheet(tokenizer, index, clips, text)]
    prepare = with_scaled_actions(family.batch_step(recipe.model, recipe.task_weights), actions)
    prepare = with_one_class(recipe.model, prepare)
    callbacks = (*sheets, *callbacks)
    corrupt = own_context(recipe, family, model)
    result = train_model(
        model, recipe, cache, out, prepare_batch=prepare, corrupt=corrupt, callbacks=callbacks, **options
    )
    if result.finished and process.is_main:
        own = None if bundled else tokenizer  # a folder may move or vanish; a model folder is complete without it
        images, labels = first_frames(origin, cache, recipe.loop) if family.capabilities.endless else ({}, {})
        index = replace(index, first_frames=dict(labels))
        hub.save_pretrained(
            out,
            index,
            tokenizer=own,
            model=merge_lora(result.network),
            recipe=to_json(recipe),
            first_frames=images,
        )
    return result


def with_one_class(config: ModelConfig, prepare: PrepareBatch) -> PrepareBatch:
    """The step before a loss that reads a class for every clip, where the only class is that of all clips."""
    if config.num_classes != 1:
        return prepare
    return lambda batch, step: prepare({**batch, "label": torch.zeros_like(cast(Tensor, batch["label"]))}, step)


def _train_features(
    recipe: FeaturesRecipe, out: Path, process: Process, callbacks: Sequence[Callback], options: dict[str, Any]
) -> TrainResult:
    network = ShapesFeatures(ShapesFeaturesConfig())
    result = train_model(network, recipe, recipe.data.open(), out, callbacks=callbacks, **options)
    if result.finished and process.is_main:
        assert isinstance(result.network, ShapesFeatures)
        save_shapes_features(result.network, out)
    return result


def sampler_defaults(family: AnyFamily, options: dict[str, Any], where: str) -> Any:
    """The sampler's configuration with a recipe's options. Raises UserError for an option that it lacks."""
    return dataclass_from_dict(family.sampler, options, where)


def task_sampling(recipe: ModelRecipe, family: AnyFamily) -> dict[str, dict[str, Any]]:
    """The recipe's own defaults of the tasks it trains. Raises UserError for an option that the sampler lacks."""
    own = {task: options for task, options in recipe.task_sampling.items() if task in recipe.task_weights}
    for task, options in own.items():
        sampler_defaults(family, recipe.sampling | options, f"task_sampling.{task}")
    return own


def open_cache(
    recipe: ModelRecipe, tokenizer: VideoTokenizer, out: Path, process: Process, text: TextEncoder | None = None
) -> TokenCache:
    """The cache the recipe names, or the run's own `out/tokens`, which the main process fills first if need be."""
    if isinstance(recipe.data, TokensData):
        cache = recipe.data.cache()
    else:
        if process.is_main:
            found = recipe.data.open()
            check_source(found, recipe)
            source = plainly_held_back(found, recipe.loop, recipe.cache_clips)
            tokenize(
                tokenizer,
                recipe.tokenizer,
                source,
                out / "tokens",
                num_clips=recipe.cache_clips,
                num_workers=recipe.loop.num_workers,
                tasks=condition_tasks(recipe),
                data=recipe.data.origin() | ({} if source is found else held_back_of(recipe)),
                context_frames=recipe.model.context_frames,
                text=caption_reader(recipe, text),
                motion=recipe.motion,
                fields=recipe.model.clip_fields,
            )
        barrier(process)
        cache = TokenCache(out / "tokens")
    wanted = {condition_key(task) for task in condition_tasks(recipe) if needs_video(task)}
    if missing := wanted - set(cache.info.conditions):
        raise UserError(f"{cache.folder} lacks the condition of {sorted(missing)[0]!r}; tokenize the clips again.")
    if (shown := cache.info.data.get(CONTEXT_FRAMES, 1)) != recipe.model.context_frames:
        raise UserError(
            f"The conditions in {cache.folder} show {shown} context frames, model.context_frames is "
            f"{recipe.model.context_frames}; tokenize the clips again."
        )
    check_captions(cache, recipe)
    check_actions(cache, recipe)
    if tuple(cache.info.clip_shape) != recipe.model.clip_shape:
        shapes = f"{cache.info.clip_shape}, but model.latent_shape is {recipe.model.latent_shape}"
        raise UserError(f"The clips in {cache.folder} have the shape {shapes}; change one of them.")
    check_labels(cache, recipe)
    return cache


def held_back_of(recipe: ModelRecipe) -> dict[str, object]:
    """Which clips of a token cache have the frame interval 1 because they are held back, as its metadata states it."""
    return {HELD_BACK: {"share": recipe.loop.validation_share, "seed": recipe.loop.seed}}


def caption_reader(recipe: ModelRecipe, encoder: TextEncoder | None) -> CaptionReader | None:
    """How the captions of a run are cleaned and encoded; None for a model without text."""
    if encoder is None or recipe.model.text is None:
        return None
    return CaptionReader(encoder, recipe.model.text.length, family_of(recipe.model).clean_caption)
