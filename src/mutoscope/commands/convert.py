"""mutoscope convert: published checkpoints to model folders."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

import mutoscope.commands.common as common
from mutoscope.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from mutoscope.models.par import PARConfig
    from mutoscope.tokenizers.base import TokenizerSpec, VideoTokenizer
    from mutoscope.tokenizers.vq2d import VQ2D

KINDS = ("llamagen", "par", "vq16", "magvit-flax", "nova")


class Clip(TypedDict):
    """The clips that a model was trained on."""

    num_frames: int
    height: int
    width: int
    fps: float


class Sizes(TypedDict):
    """Sizes of a transformer that its file may not tell."""

    grid: tuple[int, int] | None
    num_heads: int | None
    rope_base: float
    norm_eps: float


def convert(
    kind: str,
    source: str,
    out: str,
    /,
    *,
    tokenizer: str | None = None,
    text_encoder: str | None = None,
    grid: tuple[int, int] | None = None,
    num_heads: int | None = None,
    rope_base: float = 10_000.0,
    norm_eps: float = 1e-5,
    ema: bool = False,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    fps: float = 8,
    num_classes: int = 0,
    tasks: tuple[str, ...] | None = None,
    padding: Literal["zero", "reflect", "replicate"] = "zero",
    half: bool = False,
) -> common.Report:
    """Turn the weights of an official implementation into a folder that every verb takes as a model.

    llamagen, par: a transformer (.pt or .pth) of LlamaGen or PAR, for classes or captions, in any of the wrappers its
    scripts write. vq16: LlamaGen's image tokenizer. magvit-flax: parameters of the official MAGVIT code, flattened to
    one .safetensors or .npz file with names joined by "/". A tokenizer becomes a tokenizer folder; a transformer needs
    --tokenizer, which says what its tokens mean. nova: a published folder in the layout of diffusers, or its name on
    the hub; such a folder also works as it is; a converted one takes half the space with --half.

    Args:
        kind: llamagen, par, vq16, magvit-flax or nova
        source: file with the weights (nova: folder); nothing in it is executed
        out: new folder to write
        tokenizer: converted tokenizer (or any other model folder) whose tokens a transformer was trained on
        text_encoder: llamagen, par: folder of the encoder (flan-t5-xl in the layout of Hugging Face) whose features a
            text model was trained on; it is not copied, model_index.json names it
        grid: llamagen, par: rows and columns of tokens, if the file does not say (24 24 for images of 384 pixels)
        num_heads: llamagen, par: attention heads, needed for sizes that were not published
        rope_base: llamagen, par: base of the rotary embedding
        norm_eps: llamagen, par: epsilon of the norms
        ema: llamagen, par, vq16: take the averaged weights that a training checkpoint may keep
        num_frames: magvit-flax: frames of the clips the model was trained on (default 16)
        height: magvit-flax: of those clips (default 128)
        width: magvit-flax: of those clips (default 128)
        fps: frames per second of clips
        num_classes: magvit-flax: classes of a class-conditional transformer
        tasks: magvit-flax: tasks of a transformer (default: class-conditional with classes, else frame-prediction;
            all tasks if it has a task token)
        padding: magvit-flax: of the tokenizer's convolutions, which the weights do not tell; zero in the
            released settings
        half: round the weights to half precision, which halves the folder
    """
    if kind not in KINDS:
        raise UserError(f"Unknown kind {kind!r} of checkpoint; kinds: {', '.join(KINDS)}.")
    for name, value in {
        "--num-frames": num_frames,
        "--height": height,
        "--width": width,
        "--num-heads": num_heads,
    }.items():
        common.check_range(name, value, low=1)
    common.check_range("--grid", min(grid) if grid else None, low=1)
    common.check_range("--num-classes", num_classes, low=0)
    common.check_range("--fps", fps, above=0, high=1000)
    target = Path(out).expanduser()
    path = Path(source) if kind == "nova" else common.check_input_file(source, "checkpoint")
    from mutoscope import hub

    if target.exists():
        raise UserError(f"{out!r} exists already; name a new folder.")
    hub.check_writable_folder(target.parent)
    if text_encoder is not None and kind not in ("llamagen", "par"):
        raise UserError(f"--text-encoder belongs to llamagen and par, found {kind}: omit it.")
    if kind == "nova":
        network, family = _nova(source, target, half), "nova"
    elif kind == "magvit-flax":
        clip = Clip(num_frames=num_frames or 16, height=height or 128, width=width or 128, fps=fps)
        network, family = _magvit_flax(path, target, tokenizer, clip, num_classes, tasks, padding, half)
    elif kind == "vq16":
        network, family = _vq16(path, target, fps, ema, half), "tokenizer"
    else:
        sizes = Sizes(grid=grid, num_heads=num_heads, rope_base=rope_base, norm_eps=norm_eps)
        parts = (tokenizer, text_encoder)
        network, family = _llamagen_par(kind, path, target, parts, fps, ema, half, sizes), "par"
    return {
        "kind": kind,
        "source": source,
        "output": out,
        "family": family,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }


def _vq16(path: Path, target: Path, fps: float, ema: bool, half: bool) -> "VQ2D":
    from mutoscope import hub
    from mutoscope.interop import llamagen_par

    checkpoint = llamagen_par.read_checkpoint(path, ema)
    network = llamagen_par.load_tokenizer(checkpoint, llamagen_par.infer_tokenizer_config(checkpoint))
    side = 24 * network.spec.spatial_stride
    index = hub.ModelIndex(family="tokenizer", model=None, num_frames=1, height=side, width=side, fps=fps)
    hub.save_pretrained(target, index, tokenizer=network, half=half)
    return network


def _nova(source: str, target: Path, half: bool) -> "nn.Module":
    """Write transformer and autoencoder into one folder, which names the folder of the text encoder."""
    from dataclasses import replace

    from mutoscope import hub

    index = hub.load_index(source)
    if index.family != "nova":
        raise UserError(f"{source!r} holds a model of the family {index.family!r}, not a published NOVA.")
    folder = hub.open_folder(source)
    network, encoder = folder.load_model(), folder.text_encoder_path
    index = replace(index, tokenizer="./tokenizer", model="./model", text_encoder=str(encoder) if encoder else None)
    hub.save_pretrained(target, index, tokenizer=hub.load_tokenizer(source), model=network, half=half)
    return network


def _llamagen_par(
    kind: str,
    path: Path,
    target: Path,
    parts: tuple[str | None, str | None],
    fps: float,
    ema: bool,
    half: bool,
    sizes: Sizes,
) -> "nn.Module":
    """Write a transformer with its tokenizer into one folder; `parts`: folders of tokenizer and text encoder."""
    from mutoscope import hub
    from mutoscope.interop import llamagen_par

    tokenizer, text_encoder = parts
    own = _transformer_tokenizer(tokenizer)
    checkpoint = llamagen_par.read_checkpoint(path, ema)
    config = llamagen_par.infer_transformer_config(checkpoint, **sizes)
    found = "llamagen" if config.num_parallel == 1 else "par"
    if kind != found:
        raise UserError(f"{path} predicts {config.num_parallel} tokens per step: convert it as {found}.")
    if own.spec.vocab_size != config.codebook_size:
        raise UserError(
            f"{path} has {config.codebook_size} codes, the tokenizer {tokenizer!r} {own.spec.vocab_size}: they do "
            "not belong together."
        )
    encoder = _checked_text_encoder(text_encoder, config)
    network, stride = llamagen_par.load_transformer(checkpoint, config), own.spec.spatial_stride
    _, rows, columns = config.latent_shape
    tasks = ("class-conditional",) if config.num_classes is not None else ()
    index = hub.ModelIndex(
        family="par",
        num_frames=1,
        height=rows * stride,
        width=columns * stride,
        fps=fps,
        tasks=tasks,
        text_encoder=encoder,
    )
    hub.save_pretrained(target, index, tokenizer=own, model=network, half=half)
    return network


def _checked_text_encoder(named: str | None, config: "PARConfig") -> str | None:
    """The absolute path of a text encoder whose features fit the model; its weights are not loaded."""
    if named is None:
        return None
    if config.caption_size is None:
        raise UserError("This model reads class labels, not text: omit --text-encoder.")
    from mutoscope.text import encoder_kind

    folder = Path(named).expanduser().resolve()
    size = encoder_kind(folder).feature_size(folder)
    if size != config.caption_size:
        raise UserError(f"The text encoder {named!r} gives {size} channels, this model reads {config.caption_size}.")
    return str(folder)


def _transformer_tokenizer(tokenizer: str | None) -> "VideoTokenizer":
    from mutoscope import hub

    if tokenizer is None:
        raise UserError("A transformer's weights say nothing about its tokenizer: name one with --tokenizer FOLDER.")
    return hub.load_tokenizer(tokenizer)


def _magvit_flax(
    path: Path,
    target: Path,
    tokenizer: str | None,
    clip: Clip,
    num_classes: int,
    tasks: tuple[str, ...] | None,
    padding: Literal["zero", "reflect", "replicate"],
    half: bool,
) -> tuple["nn.Module", str]:
    from mutoscope import hub
    from mutoscope.interop import magvit_flax
    from mutoscope.sampling.tasks import TASKS

    flax = magvit_flax.read_flat(path)
    if "quantizer/codebook" in flax:
        network = magvit_flax.load_tokenizer(flax, magvit_flax.infer_tokenizer_config(flax, padding=padding))
        _check_clip(network.spec, clip)
        index = hub.ModelIndex(family="tokenizer", model=None, **clip)
        hub.save_pretrained(target, index, tokenizer=network, half=half)
        return network, "tokenizer"
    own = _transformer_tokenizer(tokenizer)
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
    hub.save_pretrained(target, index, tokenizer=own, model=model, half=half)
    return model, "magvit"


def _check_clip(spec: "TokenizerSpec", clip: Clip) -> None:
    t, s = spec.temporal_stride, spec.spatial_stride
    if clip["num_frames"] % t or clip["height"] % s or clip["width"] % s:
        raise UserError(
            f"This tokenizer takes frames in multiples of {t} and sizes in multiples of {s}, found "
            f"{clip['num_frames']} frames of {clip['height']}×{clip['width']}: say --num-frames, --height and --width."
        )


def summary(report: common.Report) -> str:
    return f"{report['output']}\n{report['family']} with {report['parameters']:,} parameters from {report['source']}"
