"""Parameters of the official MAGVIT code, flattened to one file."""

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from mutoscope import hub
from mutoscope.commands.converters.base import Converted, Converter, check_clip, named_tokenizer
from mutoscope.commands.converters.options import ConvertOptions
from mutoscope.interop import magvit_flax
from mutoscope.sampling.tasks import TASKS


class MagvitFlax(Converter):
    """A 3D-VQ tokenizer, or a transformer of its tokens; the names in the file say which."""

    def convert(self, source: str, target: Path, options: ConvertOptions) -> Converted:
        flax = magvit_flax.read_flat(Path(source))
        write = write_tokenizer if "quantizer/codebook" in flax else write_transformer
        return write(flax, target, options)


def write_tokenizer(flax: dict[str, Tensor], target: Path, options: ConvertOptions) -> Converted:
    """Write a folder with the tokenizer alone."""
    network = magvit_flax.load_tokenizer(flax, magvit_flax.infer_tokenizer_config(flax, padding=options.padding))
    check_clip(network.spec, options)
    index = index_of("tokenizer", options, model=None)
    hub.save_pretrained(target, index, tokenizer=network, half=options.half)
    return Converted(network, index.family)


def write_transformer(flax: dict[str, Tensor], target: Path, options: ConvertOptions) -> Converted:
    """Write a folder with the transformer and the tokenizer that the options name."""
    tokenizer = named_tokenizer(options.tokenizer)
    check_clip(tokenizer.spec, options)
    shape = tokenizer.spec.latent_shape(options.num_frames, options.height, options.width)
    config = magvit_flax.infer_transformer_config(flax, shape, tokenizer.spec.vocab_size or 0, options.num_classes)
    tasks = implied_tasks(config.task_token, options.num_classes) if options.tasks is None else options.tasks
    model = magvit_flax.load_transformer(flax, replace(config, tasks=tasks))
    index = index_of("magvit", options, tasks=tasks)
    hub.save_pretrained(target, index, tokenizer=tokenizer, model=model, half=options.half)
    return Converted(model, index.family)


def implied_tasks(task_token: bool, num_classes: int) -> tuple[str, ...]:
    """Tasks of a transformer whose file names none: all that it can do with a task token, else the only one."""
    if task_token:
        return tuple(task for task in TASKS if num_classes or not task.startswith("class-conditional"))
    return ("class-conditional",) if num_classes else ("frame-prediction",)


def index_of(
    family: str, options: ConvertOptions, model: str | None = "./model", tasks: tuple[str, ...] = ()
) -> hub.ModelIndex:
    """The index of a folder for the clips of the options."""
    return hub.ModelIndex(
        family,
        model=model,
        tasks=tasks,
        num_frames=options.num_frames,
        height=options.height,
        width=options.width,
        fps=options.fps,
    )
