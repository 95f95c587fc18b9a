"""mutoscope models: what is bundled, and what the papers describe."""

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
    return {"bundled": [bundled_row(name) for name in _bundled()], "paper": [*paper_tokenizers(), *paper_models()]}


def _bundled() -> list[str]:
    from mutoscope import hub

    return list(hub.bundled())


def bundled_row(name: str) -> common.Report:
    """One bundled model; sizes counted from its configuration."""
    from mutoscope import hub
    from mutoscope.meta import without_memory

    index = hub.load_index(name)
    with without_memory():
        tokenizer: Any = hub.build_component(hub.tokenizer_folder(name))
        model = None if index.model is None else hub.build_component(hub.model_folder(name))
    shape = tokenizer.spec.latent_shape(index.num_frames, index.height, index.width)
    return _row(
        name,
        index.family,
        model or tokenizer,
        (index.num_frames, index.height, index.width),
        shape,
        index.sampling.get("num_decoding_steps", 12) if model else None,
        index.tasks if model else ("reconstruction",),
    ) | {"tokenizer": index.tokenizer if model else None, "num_classes": len(index.class_names or ()) if model else 0}


def paper_tokenizers() -> list[common.Report]:
    """3D-VQ of MAGVIT in its four published sizes."""
    from mutoscope.meta import without_memory
    from mutoscope.tokenizers.vq3d import VQ3D, VQ3DConfig

    rows = []
    for size in ("B", "L"):
        for side in (128, 64):
            with without_memory():
                tokenizer = VQ3D(VQ3DConfig.paper(size, side))
            shape = tokenizer.spec.latent_shape(16, side, side)
            name = f"3d-vq-{size}-{side}"
            rows.append(_row(name, "tokenizer", tokenizer, (16, side, side), shape, None, ("reconstruction",)))
    return rows


def paper_models() -> list[common.Report]:
    """MAGVIT's transformers B, L and H in the published settings."""
    from mutoscope.meta import without_memory
    from mutoscope.models.magvit import Magvit, MagvitConfig
    from mutoscope.sampling.tasks import TASKS

    eight = tuple(task for task in TASKS if not task.startswith("class-conditional"))
    rows = []
    for setting, (side, fields, can) in PAPER_SETTINGS.items():
        names = {"eight": eight, "ten": TASKS}.get(can, (can,))
        for size in ("B", "L", "H"):
            with without_memory():
                model = Magvit(MagvitConfig.paper(size, tasks=names, **fields))
            rows.append(_row(f"magvit-{size}-{setting}", "magvit", model, (16, side, side), (4, 16, 16), 12, names))
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
