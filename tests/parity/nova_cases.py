"""Shared by the NOVA parity tests: cases by pattern, transformers of the tiny pipelines, recorded conditions."""

import fnmatch
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mutoscope.interop.nova import load_transformer, scheduler
from mutoscope.layers.diffusion import DDPM, Diffusion, FlowMatching
from mutoscope.models.nova import NOVA
from mutoscope.sampling.frame_ar import FrameARSamplerConfig, FrameCondition
from parity.cases import FOLDER

NOVA_FOLDER = FOLDER / "nova"


@dataclass(frozen=True)
class NOVACase:
    """One file of tensors and its entry in the index of all."""

    name: str
    info: dict[str, Any]

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        stored = load_file(NOVA_FOLDER / f"{self.name}.safetensors")
        return {name: value.long() if value.dtype == torch.int32 else value for name, value in stored.items()}

    def model(self, diffusion: Diffusion | None = None) -> NOVA:
        """The transformer of the case."""
        return transformer(self.info.get("weights") or self.info["transformer"], diffusion or FlowMatching())


def index() -> dict[str, Any]:
    path = NOVA_FOLDER / "index.json"
    return json.loads(path.read_text()) if path.is_file() else {"files": {}, "arch_table": {}}


def nova_cases(*patterns: str) -> list[NOVACase]:
    files = {name.removesuffix(".safetensors"): info for name, info in index()["files"].items()}
    found = [n for n in files if any(fnmatch.fnmatch(n, p) for p in patterns) and _is_complete(n, files[n])]
    return [NOVACase(n, files[n]) for n in found]


def _is_complete(name: str, info: dict[str, Any]) -> bool:
    """Whether the file and the weights it belongs to are here: a compact copy leaves some out."""
    weights = info.get("weights") or info.get("transformer")
    needed = [f"{name}.safetensors", *([weights] if isinstance(weights, str) else [])]
    return all((NOVA_FOLDER / path).is_file() for path in needed)


def for_each_nova(*patterns: str) -> pytest.MarkDecorator:
    found = nova_cases(*patterns)
    return pytest.mark.parametrize("case", found, ids=[case.name for case in found])


def architectures() -> tuple[dict[str, tuple[int, int, int]], dict[str, tuple[int, int]]]:
    """Sizes by name, of transformers and of diffusion heads."""
    table = index()["arch_table"]
    vit = {n: (v["depth"], v["embed_dim"], v["num_heads"]) for n, v in table.items() if "num_heads" in v}
    return vit, {n: (v["depth"], v["embed_dim"]) for n, v in table.items() if "num_heads" not in v}


def transformer(weights: str, diffusion: Diffusion) -> NOVA:
    return load_transformer((NOVA_FOLDER / weights).parent, diffusion, *architectures())


def diffusion_of(case: NOVACase) -> Diffusion:
    """The scheduler of an end-to-end case, or of a training case."""
    if "config" in case.info:
        config = case.info["config"]
        return FlowMatching(config["shift"]) if config["scheduler"] == "flow" else ddpm(config["ddpm"])
    named = case.info["scheduler"]
    folder = NOVA_FOLDER / (named if (NOVA_FOLDER / named).is_dir() else f"{case.info['pipeline']}/scheduler")
    return scheduler(json.loads((folder / "scheduler_config.json").read_text()), folder)


def ddpm(config: dict[str, Any]) -> DDPM:
    """NOVA's own DDPM never clips, whatever its configuration says."""
    return DDPM(**{name: value for name, value in config.items() if name != "clip_sample"})


def sampler_config(call: dict[str, Any]) -> FrameARSamplerConfig:
    return FrameARSamplerConfig(
        num_decoding_steps=call["num_inference_steps"],
        num_diffusion_steps=call["num_diffusion_steps"],
        guidance_scale=call["guidance_scale"],
        guidance_trunc=call.get("guidance_trunc", 0),
        guidance_renorm=call.get("guidance_renorm", 1),
        image_guidance_scale=call.get("image_guidance_scale", 0),
        flow_shift=call.get("flow_shift"),
    )


def encoded(prompt: str) -> tuple[Tensor, Tensor]:
    """Recorded features of a prompt, and which of them belong to words."""
    case = nova_cases("t_text")[0]
    row = case.info["prompts"].index(prompt)
    hidden = case.tensors["hidden"][row]
    return hidden, torch.arange(len(hidden)) < case.info["token_counts"][row]


@torch.no_grad()
def condition_of(model: NOVA, call: dict[str, Any], num_passes: int) -> FrameCondition:
    """Prompts as rows of a condition: every prompt once, then the negative one."""
    prompts = [call["prompt"]] if isinstance(call["prompt"], str) else call["prompt"]
    features, present = zip(*[encoded(p) for p in [*prompts, call.get("negative_prompt") or ""]], strict=True)
    prefix = model.text_prefix(torch.stack(features), torch.stack(present))
    flow = torch.full((len(prefix),), float(call["motion_flow"])) if "motion_flow" in call else None
    prefix = model.with_motion(prefix, flow)
    rows = torch.arange(len(prompts)).repeat_interleave(call.get("num_images_per_prompt", 1))
    nothing = torch.full_like(rows, len(prompts))
    if num_passes == 1:
        return FrameCondition(prefix, rows, 1)
    if num_passes == 2:
        return FrameCondition(prefix, torch.cat([rows, nothing]), 2)
    blind = torch.arange(len(prompts) + 2) == len(prompts)
    every = torch.cat([rows, nothing, nothing + 1])
    return FrameCondition(torch.cat([prefix, prefix[-1:]]), every, 3, blind)


def folder_of(case: NOVACase) -> Path:
    return NOVA_FOLDER / case.info["pipeline"]
