"""mutoscope models: what is bundled, and what the papers describe."""

import textwrap
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import mutoscope.commands.common as common

if TYPE_CHECKING:
    from torch import nn

    from mutoscope.hub import ModelFolder
    from mutoscope.models.base import AnyModel, ModelConfig
    from mutoscope.tokenizers.base import VideoTokenizer

LINE = 100  # columns of a wrapped text
RECONSTRUCTION = ("reconstruction",)  # what a tokenizer alone can do


def models(name: str | None = None, /) -> common.Report:
    """List the bundled models and the papers' configurations: parameters, tokens, steps, what each can do.

    Bundled models come with weights. Paper configurations have none: they are the published sizes, built and counted
    without memory. With a name: the classes, actions, tasks and options of that model, with their defaults.

    Args:
        name: bundled name or model folder (default: all bundled models and paper configurations)
    """
    from mutoscope import hub

    if name is not None:
        return one_model(name)
    papers = common.progress(chain(paper_tokenizers(), paper_models()), None, "models", "model")
    return {"bundled": [model_row(name) for name in hub.bundled()], "paper": list(papers)}


def model_row(name: str) -> common.Report:
    """One bundled model or folder; sizes counted from its configuration."""
    from mutoscope import hub
    from mutoscope.families import family_named

    folder = hub.open_folder(name)
    index, (tokenizer, model) = folder.index, parts_of(folder)
    shape = tokenizer.spec.latent_shape(index.num_frames, index.height, index.width)
    clip = (index.num_frames, index.height, index.width)
    if model is None:
        row = _row(name, index.family, tokenizer, clip, shape, None, RECONSTRUCTION)
        return row | {"tokenizer": None, "num_classes": 0}
    steps = family_named(index.family).steps(model.config, index.sampling)
    row = _row(name, index.family, model, clip, shape, steps, index.tasks)
    return row | {"tokenizer": index.tokenizer, "num_classes": len(index.class_names or ())}


def parts_of(folder: "ModelFolder") -> "tuple[VideoTokenizer, AnyModel | None]":
    """Tokenizer and network of a folder: of our own format without memory, published ones loaded."""
    from mutoscope import hub
    from mutoscope.meta_device import on_meta_device
    from mutoscope.models.base import VideoModel
    from mutoscope.tokenizers.base import VideoTokenizer

    if folder.pipeline is not None or "_class_name" in hub.read_json(folder.tokenizer_path / hub.CONFIG):
        return folder.load_tokenizer(), None if folder.index.model is None else folder.load_model()
    with on_meta_device():
        tokenizer = hub.build_component(folder.tokenizer_path)
        model = None if folder.index.model is None else hub.build_component(folder.model_path)
    assert isinstance(tokenizer, VideoTokenizer) and (model is None or isinstance(model, VideoModel))
    return tokenizer, model


def one_model(name: str) -> common.Report:
    """Everything about one bundled model or folder that a call may need to know."""
    from mutoscope import hub
    from mutoscope.commands.options import model_flags
    from mutoscope.errors import UserError

    try:
        folder = hub.open_folder(name)
    except UserError:
        if Path(name).exists() or (paper := paper_row(name)) is None:
            raise
        return paper | {"fps": None, "classes": [], "actions": None, "first_frames": [], "text": False, "options": []}
    index = folder.index
    flags = [] if index.model is None else model_flags(folder)
    actions = None if index.actions is None else {"names": list(index.actions.names), "kind": index.actions.kind}
    return model_row(name) | {
        "fps": index.fps,
        "classes": list(index.class_names or ()),
        "actions": actions,
        "first_frames": [Path(file).stem for file in index.first_frames],
        "text": index.text_encoder is not None,
        "options": [
            {"flag": f.spelling, "value": f.metavar, "default": f.default, "help": f.help, "group": f.group}
            for f in flags
        ],
    }


def paper_row(name: str) -> common.Report | None:
    """The published size of that name; None if there is none."""
    rows = chain(paper_tokenizers(), paper_models()) if "-" in name else ()
    return next((row for row in rows if row["name"] == name), None)


def paper_tokenizers() -> Iterator[common.Report]:
    """3D-VQ of MAGVIT in its four published sizes, and LlamaGen's VQ-16 on images of 384 pixels."""
    from mutoscope.meta_device import on_meta_device
    from mutoscope.tokenizers.vq2d import VQ2D, VQ2DConfig
    from mutoscope.tokenizers.vq3d import VQ3D, VQ3DConfig

    for size in ("B", "L"):
        for side in (128, 64):
            with on_meta_device():
                tokenizer = VQ3D(VQ3DConfig.paper(size, side))
            shape = tokenizer.spec.latent_shape(16, side, side)
            yield _row(f"3d-vq-{size}-{side}", "tokenizer", tokenizer, (16, side, side), shape, None, RECONSTRUCTION)
    with on_meta_device():
        image_tokenizer = VQ2D(VQ2DConfig())
    yield _row("vq-16", "tokenizer", image_tokenizer, (1, 384, 384), (1, 24, 24), None, RECONSTRUCTION)


def paper_models() -> Iterator[common.Report]:
    """The published sizes of all families."""
    from mutoscope.families import FAMILIES
    from mutoscope.meta_device import on_meta_device

    for family in FAMILIES.values():
        for paper in family.papers():
            with on_meta_device():
                network = family.network(paper.config)
            shape = _token_grid(paper.config)
            yield _row(paper.name, family.name, network, paper.clip, shape, paper.num_steps, paper.tasks)


def _token_grid(config: "ModelConfig") -> tuple[int, int, int]:
    """Frames, rows and columns of tokens, of which a patch of latents may be one."""
    return config.latent_shape[0], *config.token_grid


def _row(
    name: str,
    family: str,
    network: "nn.Module",
    clip: tuple[int, int, int],
    latent_shape: tuple[int, int, int],
    steps: int | None,
    tasks: tuple[str, ...],
) -> common.Report:
    return {
        "name": name,
        "family": family,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "frames": clip[0],
        "height": clip[1],
        "width": clip[2],
        "latent_shape": list(latent_shape),
        "tokens": latent_shape[0] * latent_shape[1] * latent_shape[2],
        "num_decoding_steps": steps,
        "tasks": list(tasks),
    }


def summary(report: common.Report) -> str:
    return details(report) if "options" in report else overview(report)


def details(row: common.Report) -> str:
    """One model: clips, classes, actions, tasks, and its options in groups."""
    steps = f", {row['num_decoding_steps']} steps" if row["num_decoding_steps"] else ""
    rate = ", published size without weights" if row["fps"] is None else f", {row['fps']:g} frames/s"
    lines = [
        f"{row['name']}: {row['family']}, {row['parameters']:,} parameters{steps}",
        f"clips: {row['frames']} frames of {row['height']}×{row['width']}" + rate,
        f"tasks: {', '.join(row['tasks'])}",
    ]
    lines += [f"classes ({len(row['classes'])}): {', '.join(row['classes'])}"] if row["classes"] else []
    if row["actions"] is not None:
        lines.append(f"actions ({row['actions']['kind']}): {', '.join(row['actions']['names'])}")
    lines += [f"first frames: {', '.join(row['first_frames'])}"] if row["first_frames"] else []
    lines += ["prompts: read by its text encoder"] if row["text"] else []
    lines = [
        line for text in lines for line in textwrap.wrap(text, LINE, subsequent_indent="  ", break_on_hyphens=False)
    ]
    for group in dict.fromkeys(option["group"] for option in row["options"]):
        shown = [option for option in row["options"] if option["group"] == group]
        lines += ["", f"{group}:", *(option_line(option) for option in shown)]
    return "\n".join(lines)


def option_line(option: common.Report) -> str:
    """A flag with its default; `mutoscope generate MODEL --help` explains it."""
    default = option["default"]
    shown = "" if default is None or default is False else f"  [{default}]"
    return f"  {option['flag']} {option['value']}".rstrip() + shown


def overview(report: common.Report) -> str:
    """A table of all models."""
    rows = [("name", "parameters", "clip", "tokens", "steps", "can do")]
    for title, group in (("bundled, with weights", "bundled"), ("papers' sizes, without weights", "paper")):
        rows.append((f"[{title}]", "", "", "", "", ""))
        for row in report[group]:
            clip = f"{row['frames']}×{row['height']}×{row['width']}"
            can = row["tasks"] if len(row["tasks"]) <= 3 else [f"{len(row['tasks'])} tasks"]
            steps = str(row["num_decoding_steps"] or "–")
            rows.append((row["name"], f"{row['parameters']:,}", clip, str(row["tokens"]), steps, ", ".join(can)))
        if not report[group]:
            rows.append(("(none)", "", "", "", "", ""))
    return f"{common.table(rows)}\n\nmutoscope models NAME lists the classes, actions, tasks and options of one model."
