"""FAR's vectors: one index of settings for all files, and weights in files of their own."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mutoscope.interop.far import our_weights, rotary_channels
from mutoscope.models.far import FAR, FARConfig
from parity.cases import FOLDER, renamed, widen

FAR_FOLDER = FOLDER / "far"
LOCAL = Path(__file__).parent / "vectors" / "far"  # whatever MUTOSCOPE_PARITY says
INDEX: dict[str, Any] = json.loads((FAR_FOLDER / "index.json").read_text())
NAMES = {
    "in_channels": "latent_channels",
    "out_channels": None,
    "attention_head_dim": None,
    "num_attention_heads": None,
    "axes_dims_rope": "rotary_channels",
    "patch_size": "patch_size",
    "num_layers": "num_layers",
    "short_term_ctx_winsize": "window",
    "context_patch_size": "coarse_patch_size",
    "cls": None,
    "condition_cfg": None,
    "slope_scale": "slope",
    "mlp_ratio": None,
}


@dataclass(frozen=True)
class FARCase:
    """One file of vectors with its settings."""

    name: str

    @property
    def info(self) -> dict[str, Any]:
        return INDEX[f"{self.name}.safetensors"]

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        stored = load_file(FAR_FOLDER / f"{self.name}.safetensors")
        return {name: widen(tensor) for name, tensor in stored.items()}

    def model(self, **changes: Any) -> FAR:
        """The network of this case, in evaluation mode."""
        return model_of(self.info["weights"], **changes)


def cases(*patterns: str) -> list[FARCase]:
    found = [path for pattern in patterns for path in FAR_FOLDER.glob(f"{pattern}.safetensors")]
    return [FARCase(path.stem) for path in sorted(found)]


def for_each_far(*patterns: str) -> pytest.MarkDecorator:
    found = cases(*patterns)
    return pytest.mark.parametrize("case", found, ids=[case.name for case in found])


def config_of(settings: dict[str, Any], **changes: Any) -> FARConfig:
    """Our configuration for the settings of an official constructor."""
    fields = renamed(settings, NAMES)
    head = settings.get("attention_head_dim", 64)
    condition = settings.get("condition_cfg") or {}
    fields |= {"hidden_size": head * settings["num_attention_heads"], "latent_shape": (8, 8, 8)}
    fields.setdefault("rotary_channels", rotary_channels(head))
    if settings.get("cls", "FAR") == "FAR":
        fields.pop("coarse_patch_size", None)
    if condition.get("type") == "label":
        fields["num_classes"] = condition["num_classes"]
    if condition.get("type") == "action":
        fields |= {"action_size": condition["num_action_classes"], "one_action": True}
    return FARConfig(**{**fields, **changes})


def stored_weights(name: str, folder: Path = FAR_FOLDER) -> dict[str, Tensor]:
    return {key: widen(value) for key, value in load_file(folder / "weights" / f"{name}.safetensors").items()}


def model_of(name: str, **changes: Any) -> FAR:
    """The network with the weights of a file."""
    settings = INDEX[f"weights/{name}.safetensors"]["config"]
    model = FAR(config_of(settings, **changes))
    model.load_state_dict(our_weights(stored_weights(name), FAR_FOLDER))
    return model.eval()


def one_hot(actions: Tensor, count: int) -> Tensor:
    """Rows of numbers for ids of actions; the id `count` means unknown."""
    rows = torch.nn.functional.one_hot(actions, count + 1).float()
    return torch.where((actions == count)[..., None], torch.nan, rows[..., :-1])
