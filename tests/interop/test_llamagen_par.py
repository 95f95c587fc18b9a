"""Published checkpoints: wrappers, sizes that a file lacks, and malicious or foreign files."""

import argparse
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mutoscope.errors import UserError
from mutoscope.interop.llamagen_par import (
    LAYER,
    OUTSIDE,
    Checkpoint,
    infer_tokenizer_config,
    infer_transformer_config,
    load_tokenizer,
    load_transformer,
    read_checkpoint,
    tokenizer_names,
)
from mutoscope.models.par import PAR, PARConfig
from mutoscope.tokenizers.vq2d import VQ2D, VQ2DConfig

SMALL = PARConfig(
    2, 16, 2, num_kv_heads=2, codebook_size=11, latent_shape=(1, 4, 4), num_parallel=4, num_classes=3, mlp_size=24
)
CAPTIONS = {"num_classes": None, "caption_size": 6, "caption_length": 5}
VQ = VQ2DConfig(8, (1, 2), 1, 16, 4, 11, num_groups=8)


def official(model: PAR) -> dict[str, Tensor]:
    """The weights under the names of the official code."""
    outside = {ours: theirs for theirs, ours in OUTSIDE.items()}
    inside = {ours: theirs for theirs, ours in LAYER.items()}
    named = {}
    for name, value in model.state_dict().items():
        if name in outside:
            named[outside[name]] = value
        else:
            _, layer, rest = name.split(".", 2)
            named[f"layers.{layer}.{inside[rest.removesuffix('.weight')]}.weight"] = value
    return named


def model(**changes: Any) -> PAR:
    torch.manual_seed(0)
    return PAR(replace(SMALL, **changes)).eval()


def saved(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


@pytest.mark.parametrize("changes", [{}, {"num_parallel": 1}, CAPTIONS, {"num_kv_heads": 1}])
def test_weights_are_read_under_our_names(tmp_path: Path, changes: dict[str, Any]):
    expected = model(**changes)
    path = saved(tmp_path / "x.pt", {"model": official(expected), "steps": 3})
    checkpoint = read_checkpoint(path)
    config = infer_transformer_config(checkpoint, (4, 4), 2)
    assert config == expected.config
    for name, value in load_transformer(checkpoint, config).state_dict().items():
        assert torch.equal(value, expected.state_dict()[name])


@pytest.mark.parametrize("wrapper", ["model", "module", "state_dict", None])
def test_every_wrapper_is_opened(tmp_path: Path, wrapper: str | None):
    weights = official(model())
    path = saved(tmp_path / "x.pth", {wrapper: weights, "optimizer": {"lr": 1.0}} if wrapper else weights)
    assert set(read_checkpoint(path).weights) == set(weights)


def test_averaged_weights_are_read_on_request(tmp_path: Path):
    raw, averaged = official(model()), official(PAR(SMALL))
    path = saved(tmp_path / "x.pt", {"model": raw, "ema": averaged})
    assert torch.equal(read_checkpoint(path, ema=True).weights["norm.weight"], averaged["norm.weight"])
    with pytest.raises(UserError, match="no averaged weights"):
        read_checkpoint(saved(tmp_path / "y.pt", {"model": raw}), ema=True)


def test_the_grid_is_read_from_the_scripts_arguments(tmp_path: Path):
    arguments = argparse.Namespace(image_size=64, downsample_size=16)
    path = saved(tmp_path / "x.pt", {"model": official(model()), "args": arguments})
    assert infer_transformer_config(read_checkpoint(path), num_heads=2).latent_shape == (1, 4, 4)


def test_tables_and_caches_in_a_file_are_ignored(tmp_path: Path):
    extra = ("freqs_cis", "layers.0.attention.kv_cache.k_cache", "causal_mask")
    weights = official(model()) | dict.fromkeys(extra, torch.zeros(3))
    checkpoint = read_checkpoint(saved(tmp_path / "x.pt", weights))
    load_transformer(checkpoint, infer_transformer_config(checkpoint, (4, 4), 2))


def test_sizes_that_a_file_lacks_are_requested(tmp_path: Path):
    checkpoint = read_checkpoint(saved(tmp_path / "x.pt", official(model())))
    with pytest.raises(UserError, match="--num-heads"):
        infer_transformer_config(checkpoint, (4, 4))
    with pytest.raises(UserError, match="--grid"):
        infer_transformer_config(checkpoint, num_heads=2)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"layers.0.attention.wz.weight": torch.zeros(1)}, "layers.0.attention.wz.weight"),
        ({"layers.1.ffn_norm.weight": None}, "blocks.1.mlp_norm.weight is missing"),
        ({"layers.1.ffn_norm.weight": torch.zeros(3)}, r"blocks.1.mlp_norm.weight is \(3,\)"),
        ({"tok_embeddings.weight": None}, "token_embedding.weight is missing"),
        ({"cls_embedding.embedding_table.weight": None}, "neither class labels nor captions"),
    ],
)
def test_missing_unknown_and_misshapen_tensors_are_named(tmp_path: Path, change: dict[str, Any], message: str):
    weights = {name: value for name, value in (official(model()) | change).items() if value is not None}
    checkpoint = read_checkpoint(saved(tmp_path / "x.pt", weights))
    with pytest.raises(UserError, match=message):
        load_transformer(checkpoint, infer_transformer_config(checkpoint, (4, 4), 2))


def test_a_checkpoint_of_another_number_of_parallel_tokens_does_not_load():
    weights = official(model())
    with pytest.raises(UserError, match="query_embedding.weight"):
        load_transformer(Checkpoint(Path("x.pt"), weights, {}), replace(SMALL, num_parallel=16))


class Malicious:
    """Unpickling this without protection creates a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mknod, (str(self.path),)


def test_a_malicious_file_is_refused_and_nothing_in_it_runs(tmp_path: Path):
    trace = tmp_path / "trace"
    path = saved(tmp_path / "x.pt", {"model": {"norm.weight": torch.zeros(1)}, "args": Malicious(trace)})
    with pytest.raises(UserError, match="refused"):
        read_checkpoint(path)
    (tmp_path / "y.pt").write_bytes(pickle.dumps(Malicious(trace)))
    with pytest.raises(UserError, match="refused"):
        read_checkpoint(tmp_path / "y.pt")
    assert not trace.exists()


@pytest.mark.parametrize(
    "content, message",
    [(b"", "damaged"), (b"PK\x03\x04 half a zip", "damaged"), (None, "damaged")],
)
def test_damaged_files_are_refused(tmp_path: Path, content: bytes | None, message: str):
    path = saved(tmp_path / "x.pt", official(model()))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)
    with pytest.raises(UserError, match=message):
        read_checkpoint(path)


def test_files_without_weights_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no weights"):
        read_checkpoint(saved(tmp_path / "x.pt", {"steps": 3}))
    with pytest.raises(UserError, match="holds a list"):
        read_checkpoint(saved(tmp_path / "y.pt", [1, 2]))
    with pytest.raises(UserError, match="no file"):
        read_checkpoint(tmp_path / "z.pt")


@pytest.mark.parametrize(
    "changes", [{}, {"channel_multipliers": (1,)}, {"channel_multipliers": (1, 1, 2, 4)}, {"num_res_blocks": 2}]
)
def test_sizes_of_tokenizers_are_inferred(tmp_path: Path, changes: dict[str, Any]):
    torch.manual_seed(0)
    expected = VQ2D(replace(VQ, **changes))
    names = tokenizer_names(expected)
    assert len(set(names.values())) == len(names) == len(expected.state_dict())
    weights = {names[name]: value for name, value in expected.state_dict().items()}
    meter = {"quantize.codebook_used": torch.zeros(9)}
    checkpoint = read_checkpoint(saved(tmp_path / "x.pt", {"model": weights | meter, "discriminator": {}}))
    config = infer_tokenizer_config(checkpoint)
    assert config == expected.config
    for name, value in load_tokenizer(checkpoint, config).state_dict().items():
        assert torch.equal(value, expected.state_dict()[name])


def test_a_transformer_is_no_tokenizer_and_unknown_tensors_are_named(tmp_path: Path):
    with pytest.raises(UserError, match="no LlamaGen tokenizer"):
        infer_tokenizer_config(read_checkpoint(saved(tmp_path / "x.pt", official(model()))))
    tokenizer = VQ2D(VQ)
    names = tokenizer_names(tokenizer)
    weights = {names[name]: value for name, value in tokenizer.state_dict().items()} | {"encoder.extra": torch.zeros(1)}
    with pytest.raises(UserError, match="encoder.extra"):
        load_tokenizer(Checkpoint(Path("x.pt"), weights, {}), VQ)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "model._orig_mod.", "module.model."])
@pytest.mark.parametrize("container", [None, "model", "state_dict", "ema"])
def test_prefixes_of_wrappers_are_removed(tmp_path: Path, prefix: str, container: str | None):
    tokenizer = VQ2D(VQ)
    names = tokenizer_names(tokenizer)
    codes = {names[name]: value for name, value in tokenizer.state_dict().items()}
    for weights in (official(model()), codes):
        wrapped = {f"{prefix}{name}": value for name, value in weights.items()}
        path = saved(tmp_path / "x.pt", wrapped if container is None else {container: wrapped})
        assert set(read_checkpoint(path, ema=container == "ema").weights) == set(weights)


def test_the_class_that_a_refused_file_names_is_in_the_message(tmp_path: Path):
    path = saved(tmp_path / "x.pt", {"model": official(model()), "best": np.float64(1.0)})
    with pytest.raises(UserError, match=r"it holds numpy\._core\.multiarray\.scalar") as caught:
        read_checkpoint(path)
    assert "\x1b" not in str(caught.value)
