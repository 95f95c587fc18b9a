"""mutoscope models: what is bundled, and what the papers describe."""

from importlib import import_module
from typing import Any

import mutoscope.commands.common as common

MULTI_TASK = {"num_special_tokens": 16, "task_token": True}

# setting -> (pixels of a side, fields of the transformer's configuration, tasks); arXiv 2212.05199, appendix B
PAPER_SETTINGS: dict[str, tuple[int, dict[str, Any], str]] = {
    "ucf101": (128, {"num_classes": 101}, "class-conditional"),
    "bair": (64, {}, "frame-prediction"),
    "bair-mt8": (64, MULTI_TASK, "eight"),
    "ssv2-mt10": (128, {"num_classes": 174, **MULTI_TASK}, "ten"),
}


def models() -> common.Report:
    """List the bundled models and the papers' configurations: parameters, tokens, steps, what each can do.

    Bundled models come with weights. Paper configurations have none: they are the published sizes, built and counted
    without memory.
    """
    return {
        "bundled": [bundled_row(name) for name in _bundled()],
        "paper": [*paper_tokenizers(), *paper_models(), *paper_par(), *paper_nova(), *paper_magi()],
    }


def _bundled() -> list[str]:
    from mutoscope import hub

    return list(hub.bundled())


def bundled_row(name: str) -> common.Report:
    """One bundled model; sizes counted from its configuration."""
    from mutoscope import hub
    from mutoscope.meta_device import on_meta_device

    index = hub.load_index(name)
    with on_meta_device():
        tokenizer: Any = hub.build_component(hub.tokenizer_folder(name))
        model = None if index.model is None else hub.build_component(hub.model_folder(name))
    shape = tokenizer.spec.latent_shape(index.num_frames, index.height, index.width)
    return _row(
        name,
        index.family,
        model or tokenizer,
        (index.num_frames, index.height, index.width),
        shape,
        _planned_steps(index, model),
        index.tasks if model else ("reconstruction",),
    ) | {"tokenizer": index.tokenizer if model else None, "num_classes": len(index.class_names or ()) if model else 0}


def _planned_steps(index: Any, model: Any) -> int | None:
    """Passes of the network per clip, by default."""
    if model is None:
        return None
    if index.family == "par":
        from mutoscope.sampling.parallel_ar import group_starts

        return len(group_starts(model.latent_shape, model.num_parallel, model.num_start))
    if index.family in ("nova", "magi"):
        module = {"nova": "frame_ar", "magi": "frame_stream"}[index.family]
        set_sizes = import_module(f"mutoscope.sampling.{module}").set_sizes
        num_tokens = model.config.grid[0] * model.config.grid[1]
        sets = sum(size > 0 for size in set_sizes(index.sampling.get("num_decoding_steps", 64), num_tokens))
        return sets * model.config.latent_shape[0]
    return index.sampling.get("num_decoding_steps", 12)


def paper_tokenizers() -> list[common.Report]:
    """3D-VQ of MAGVIT in its four published sizes."""
    from mutoscope.meta_device import on_meta_device
    from mutoscope.tokenizers.vq3d import VQ3D, VQ3DConfig

    rows = []
    for size in ("B", "L"):
        for side in (128, 64):
            with on_meta_device():
                tokenizer = VQ3D(VQ3DConfig.paper(size, side))
            shape = tokenizer.spec.latent_shape(16, side, side)
            name = f"3d-vq-{size}-{side}"
            rows.append(_row(name, "tokenizer", tokenizer, (16, side, side), shape, None, ("reconstruction",)))
    return rows


def paper_models() -> list[common.Report]:
    """MAGVIT's transformers B, L and H in the published settings."""
    from mutoscope.meta_device import on_meta_device
    from mutoscope.models.magvit import Magvit, MagvitConfig
    from mutoscope.sampling.tasks import TASKS

    eight = tuple(task for task in TASKS if not task.startswith("class-conditional"))
    rows = []
    for setting, (side, fields, can) in PAPER_SETTINGS.items():
        names = {"eight": eight, "ten": TASKS}.get(can, (can,))
        for size in ("B", "L", "H"):
            with on_meta_device():
                model = Magvit(MagvitConfig.paper(size, tasks=names, **fields))
            rows.append(_row(f"magvit-{size}-{setting}", "magvit", model, (16, side, side), (4, 16, 16), 12, names))
    return rows


def paper_par() -> list[common.Report]:
    """LlamaGen's VQ-16, and LlamaGen and PAR in the published sizes on images of 384 pixels."""
    from mutoscope.meta_device import on_meta_device
    from mutoscope.models.par import PAR, PARConfig
    from mutoscope.sampling.parallel_ar import group_starts
    from mutoscope.tokenizers.vq2d import VQ2D, VQ2DConfig

    with on_meta_device():
        tokenizer = VQ2D(VQ2DConfig())
    rows = [_row("vq-16", "tokenizer", tokenizer, (1, 384, 384), (1, 24, 24), None, ("reconstruction",))]
    for size in ("B", "L", "XL", "XXL", "3B"):
        for n in (1, 4, 16):
            with on_meta_device():
                model = PAR(PARConfig.paper(size, num_parallel=n))
            name = f"llamagen-{size}" if n == 1 else f"par-{size}-{n}x"
            steps = len(group_starts(model.latent_shape, n, model.num_start))
            rows.append(_row(name, "par", model, (1, 384, 384), (1, 24, 24), steps, ("class-conditional",)))
    return rows


def paper_nova() -> list[common.Report]:
    """NOVA in the published sizes, images of 1024 pixels and clips of 33 frames; steps are sets of tokens."""
    from mutoscope.meta_device import on_meta_device
    from mutoscope.models.nova import NOVA, NOVAConfig
    from mutoscope.recipes.text_to_video import RECIPES
    from mutoscope.sampling.frame_ar import set_sizes

    rows = []
    for name, recipe in ((name, make()) for name, make in RECIPES.items()):
        assert isinstance(recipe.model, NOVAConfig)
        with on_meta_device():
            model = NOVA(recipe.model)
        t, (h, w) = recipe.model.latent_shape[0], recipe.model.grid
        sets = sum(size > 0 for size in set_sizes(recipe.sampling["num_decoding_steps"], h * w))
        clip = (recipe.data.num_frames, recipe.data.height, recipe.data.width)
        rows.append(_row(name, "nova", model, clip, (t, h, w), t * sets, ("text-conditional",)))
    return rows


def paper_magi() -> list[common.Report]:
    """MAGI in MAR's sizes on 16 frames of 256 pixels; steps are sets of tokens."""
    from mutoscope.meta_device import on_meta_device
    from mutoscope.models.magi import MAGI, MAGIConfig
    from mutoscope.recipes.magi_paper import SIZES, magi

    rows = []
    for size in SIZES:
        recipe = magi("ucf101", size)
        assert isinstance(recipe.model, MAGIConfig)
        with on_meta_device():
            model = MAGI(recipe.model)
        shape = (recipe.model.latent_shape[0], *recipe.model.grid)
        steps = shape[0] * recipe.sampling["num_decoding_steps"]
        rows.append(_row(f"magi-{size}", "magi", model, (16, 256, 256), shape, steps, recipe.model.tasks))
    return rows


def _row(
    name: str,
    family: str,
    network: Any,
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
    return common.table(rows)
