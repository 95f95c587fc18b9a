"""mutoscope convert: published checkpoints to our folders."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import mutoscope.commands.common as common
from mutoscope.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

KINDS = ("magvit-flax",)


def convert(
    kind: str,
    source: str,
    out: str,
    /,
    *,
    tokenizer: str | None = None,
    num_frames: int = 16,
    height: int = 128,
    width: int = 128,
    fps: float = 8,
    num_classes: int = 0,
    tasks: tuple[str, ...] | None = None,
    padding: Literal["zero", "reflect", "replicate"] = "zero",
) -> common.Report:
    """Turn the weights of an official implementation into a folder that every verb takes as a model.

    magvit-flax: parameters of the official MAGVIT code, flattened to one .safetensors or .npz file with names joined by
    "/". A tokenizer becomes a tokenizer folder; a transformer needs --tokenizer, which says what its tokens mean.

    Args:
        kind: magvit-flax
        source: file with the weights; nothing in it is executed
        out: folder to write, made new
        tokenizer: converted tokenizer (or any other model folder) whose tokens a transformer was trained on
        num_frames: frames of the clips the model was trained on
        height: of those clips
        width: of those clips
        fps: their frames per second
        num_classes: classes of a class-conditional transformer
        tasks: what a transformer was trained for (default: with classes class-conditional, otherwise frame-prediction;
            all it can hold if it has a task token)
        padding: of the tokenizer's convolutions, which leaves no trace in the weights; zero in the released settings
    """
    if kind not in KINDS:
        raise UserError(f"Unknown kind {kind!r} of checkpoint; kinds: {', '.join(KINDS)}.")
    for name, value in {"--num-frames": num_frames, "--height": height, "--width": width}.items():
        common.check_range(name, value, low=1)
    common.check_range("--num-classes", num_classes, low=0)
    common.check_range("--fps", fps, above=0, high=1000)
    path, target = common.check_input_file(source, "checkpoint"), Path(out).expanduser()
    from mutoscope import hub
    from mutoscope.interop import magvit_flax

    if target.exists():
        raise UserError(f"{out!r} exists already; name a new folder.")
    hub.check_writable_folder(target.parent)
    flax = magvit_flax.read_flat(path)
    clip = {"num_frames": num_frames, "height": height, "width": width, "fps": fps}
    if "quantizer/codebook" in flax:
        network: Any = magvit_flax.load_tokenizer(flax, magvit_flax.infer_tokenizer_config(flax, padding=padding))
        _check_clip(network.spec, clip)
        hub.save_pretrained(target, hub.ModelIndex(family="tokenizer", model=None, **clip), tokenizer=network)
    else:
        network = _convert_transformer(flax, target, tokenizer, clip, num_classes, tasks)
    return {
        "kind": kind,
        "source": source,
        "output": out,
        "family": "tokenizer" if "quantizer/codebook" in flax else "magvit",
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }


def _check_clip(spec: Any, clip: dict[str, Any]) -> None:
    t, s = spec.temporal_stride, spec.spatial_stride
    if clip["num_frames"] % t or clip["height"] % s or clip["width"] % s:
        raise UserError(
            f"This tokenizer takes frames in multiples of {t} and sizes in multiples of {s}, found "
            f"{clip['num_frames']} frames of {clip['height']}×{clip['width']}: say --num-frames, --height and --width."
        )


def _convert_transformer(
    flax: "dict[str, Tensor]",
    target: Path,
    tokenizer: str | None,
    clip: dict[str, Any],
    num_classes: int,
    tasks: tuple[str, ...] | None,
) -> Any:
    """Writes a transformer with its tokenizer into one folder that stands on its own."""
    from mutoscope import hub
    from mutoscope.interop import magvit_flax
    from mutoscope.sampling.tasks import TASKS

    if tokenizer is None:
        raise UserError("A transformer's weights say nothing about its tokenizer: name one with --tokenizer FOLDER.")
    own = hub.load_tokenizer(tokenizer)
    _check_clip(own.spec, clip)
    shape = own.spec.latent_shape(clip["num_frames"], clip["height"], clip["width"])
    config = magvit_flax.infer_transformer_config(flax, shape, own.spec.vocab_size or 0, num_classes)
    if tasks is None:
        several = tuple(task for task in TASKS if num_classes or not task.startswith("class-conditional"))
        single = ("class-conditional",) if num_classes else ("frame-prediction",)
        tasks = several if config.task_token else single
    config = magvit_flax.infer_transformer_config(flax, shape, own.spec.vocab_size or 0, num_classes, tasks=tasks)
    model = magvit_flax.load_transformer(flax, config)
    index = hub.ModelIndex(family="magvit", tasks=tasks, **clip)
    hub.save_pretrained(target, index, tokenizer=own, model=model)
    return model


def summary(report: common.Report) -> str:
    return f"{report['output']}\n{report['family']} with {report['parameters']:,} parameters from {report['source']}"
