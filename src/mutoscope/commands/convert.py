"""mutoscope convert: published checkpoints to model folders."""

from pathlib import Path

import mutoscope.commands.common as common
from mutoscope.commands.converters.options import ConvertOptions
from mutoscope.errors import UserError
from mutoscope.json_config import nearest
from mutoscope.ownership import tidy


def convert(kind: str, source: str, out: str, /, *, options: ConvertOptions) -> common.Report:
    """Turn the weights of an official implementation into a folder that every verb takes as a model.

    llamagen, par: a transformer (.pt or .pth) of LlamaGen or PAR, for classes or captions, in any of the wrappers its
    scripts write. vq16: LlamaGen's image tokenizer. magvit-flax: parameters of the official MAGVIT code, flattened to
    one .safetensors or .npz file with names joined by "/". A tokenizer becomes a tokenizer folder; a transformer needs
    --tokenizer, which says what its tokens mean. nova: a published folder in the layout of diffusers, or its name on
    the hub; such a folder also works as it is; a converted one takes half the space with --half. far: a transformer of
    FAR (.pth), which needs --tokenizer. dc-ae: an autoencoder of FAR (.pth).

    Args:
        kind: llamagen, par, vq16, magvit-flax, nova, far or dc-ae
        source: file with the weights (nova: folder); nothing in it is executed
        out: new folder to write
        options: what the checkpoint does not say
    """
    check_options(options)
    from mutoscope import hub
    from mutoscope.commands.converters.registry import CONVERTERS

    if kind not in CONVERTERS:
        raise UserError(f"Unknown kind {kind!r} of checkpoint: {nearest(kind, CONVERTERS)}")
    converter, target = CONVERTERS[kind], Path(out).expanduser()
    path = source if converter.reads_folder else str(common.check_input_file(source, "checkpoint"))
    if target.exists() and not hub.is_unfinished(target):
        tidy(target)  # a conversion may have been killed right after its last step
        raise UserError(f"{out!r} exists already; name a new folder.")
    hub.check_writable_folder(target)
    if options.text_encoder is not None and not converter.takes_text_encoder:
        readers = " and ".join(name for name, other in CONVERTERS.items() if other.takes_text_encoder)
        raise UserError(f"--text-encoder belongs to {readers}, found {kind}: omit it.")
    network, family = converter.convert(path, target, options)
    return {
        "kind": kind,
        "source": source,
        "output": out,
        "family": family,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }


def check_options(options: ConvertOptions) -> None:
    """Raise UserError for numbers out of range."""
    common.check_range("--num-frames", options.num_frames, low=1)
    common.check_range("--window", options.window, low=1)
    common.check_range("--height", options.height, low=1)
    common.check_range("--width", options.width, low=1)
    common.check_range("--num-heads", options.num_heads, low=1)
    common.check_range("--grid", min(options.grid) if options.grid else None, low=1)
    common.check_range("--num-classes", options.num_classes, low=0)
    common.check_range("--fps", options.fps, above=0, high=1000)
    common.check_range("--rope-base", options.rope_base, above=0)
    common.check_range("--norm-eps", options.norm_eps, above=0)


def summary(report: common.Report) -> str:
    return f"{report['output']}\n{report['family']} with {report['parameters']:,} parameters from {report['source']}"
