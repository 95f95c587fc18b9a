"""Published NOVA folders: their parts, and messages about incomplete or wrong ones."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mutoscope import hub
from mutoscope.errors import UserError
from mutoscope.interop import nova
from mutoscope.layers.diffusion import DDPM, FlowMatching
from mutoscope.models.nova import NOVA, NOVAConfig
from mutoscope.pipeline import VideoPipeline

PUBLISHED = Path(__file__).parents[1] / "parity" / "vectors" / "nova"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(PUBLISHED / "pipe_t2i", tmp_path / "pipe")
    shutil.copy(PUBLISHED / "arch_table.json", tmp_path / "arch_table.json")
    return tmp_path / "pipe"


def edit(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


def test_a_published_folder_loads_like_our_own(folder: Path):
    index = hub.load_index(folder)
    assert (index.family, index.num_frames, index.height, index.width) == ("nova", 1, 64, 96)
    assert index.sampling == {"num_decoding_steps": 64, "num_diffusion_steps": 25, "guidance_scale": 5.0}
    assert hub.open_folder(folder).text_encoder_path == (folder / "text_encoder").resolve()
    model = hub.load_model(folder)
    assert isinstance(model, NOVA) and model.config.diffusion == FlowMatching()
    assert hub.load_tokenizer(folder).spec.latent_channels == model.config.latent_channels


def test_weights_pickled_without_code_are_read_too(folder: Path):
    before = hub.load_model(folder).state_dict()
    torch.save(load_file(folder / WEIGHTS), (folder / WEIGHTS).with_suffix(".bin"))
    (folder / WEIGHTS).unlink()
    after = hub.load_model(folder).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_pickle_that_would_execute_code_is_refused(folder: Path, tmp_path: Path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"x": Trap()}, (folder / WEIGHTS).with_suffix(".bin"))
    (folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match="refused"):
        hub.load_model(folder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("part", ["transformer", "scheduler", "vae", "text_encoder", "tokenizer"])
def test_a_missing_part_is_named(folder: Path, part: str):
    shutil.rmtree(folder / part)
    with pytest.raises(UserError, match=part):
        VideoPipeline.from_pretrained(folder)


@pytest.mark.parametrize("path", ["transformer/config.json", WEIGHTS, "scheduler/scheduler_config.json"])
def test_a_missing_file_is_named(folder: Path, path: str):
    (folder / path).unlink()
    with pytest.raises(UserError, match=Path(path).name.split(".")[0]):
        VideoPipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    "path, changes, message",
    [
        ("model_index.json", {"vae": ["evil.module", "Other"]}, "vae must be one of"),
        ("model_index.json", {"transformer": None}, "transformer must be one of"),
        ("transformer/config.json", {"arch": ["vit_d9w9", "vit_d4w64", "mlp_d2w96"]}, "vit_d9w9"),
        ("transformer/config.json", {"image_dim": ...}, "image_dim"),
        ("transformer/config.json", {"text_token_dim": 40}, "is"),
        ("scheduler/scheduler_config.json", {"_class_name": "PNDMScheduler"}, "PNDMScheduler"),
    ],
)
def test_a_mislabelled_part_is_named(folder: Path, path: str, changes: dict[str, Any], message: str):
    edit(folder / path, **changes)
    with pytest.raises(UserError, match=message):
        VideoPipeline.from_pretrained(folder)


def test_tensors_that_are_missing_or_unknown_are_named(folder: Path):
    weights = load_file(folder / WEIGHTS)
    save_file({name: value for name, value in weights.items() if name != "mask_embed.mask_token"}, folder / WEIGHTS)
    with pytest.raises(UserError, match="mask_token"):
        hub.load_model(folder)
    save_file(weights | {"extra.weight": torch.zeros(1)}, folder / WEIGHTS)
    with pytest.raises(UserError, match=r"'extra.weight'"):
        hub.load_model(folder)


def test_the_rank_of_the_mixer_is_read_from_the_weights(tmp_path: Path):
    values = json.loads((PUBLISHED / "pipe_t2i" / "transformer" / "config.json").read_text())
    table = nova.architectures(PUBLISHED / "pipe_t2i")
    for down, rank in (({"mixer.down.weight": torch.zeros(3, 64)}, 3), ({}, -1)):
        weights = {"mixer.output.weight": torch.zeros(128, 3), **down}
        config = nova.transformer_config(values, weights, tmp_path, FlowMatching(), *table)
        assert config.mixer_rank == rank
    silent = nova.transformer_config(
        values | {"video_mixer_rank": 24}, {"x": torch.zeros(1)}, tmp_path, FlowMatching(), *table
    )
    assert silent.mixer_rank is None  # the weights have none, whatever the file says


def test_only_the_scheduler_of_diffusers_clamps():
    values = {"_class_name": "DDPMScheduler", "beta_schedule": "scaled_linear", "steps_offset": 1}
    assert nova.scheduler(values, Path("x")) == DDPM(beta_schedule="scaled_linear", steps_offset=1)
    clipping = nova.scheduler(values, Path("x"), clips=True)
    assert isinstance(clipping, DDPM) and clipping.clip_sample


@pytest.mark.parametrize("name", nova.VIT)
def test_published_names_have_heads_of_64_or_96_channels(name: str):
    _, width, heads = nova.VIT[name]
    assert width // heads in (64, 96)
    NOVAConfig(hidden_size=width, temporal_heads=heads, spatial_heads=heads, positions="rotary")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model._orig_mod."])
def test_prefixes_of_wrappers_are_removed(folder: Path, prefix: str):
    plain = hub.load_model(folder).state_dict()
    weights = load_file(folder / WEIGHTS)
    save_file({f"{prefix}{name}": value for name, value in weights.items()}, folder / WEIGHTS)
    found = hub.load_model(folder).state_dict()
    assert all(torch.equal(found[name], value) for name, value in plain.items())
