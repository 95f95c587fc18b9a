"""Hostile state: token caches, interrupted recordings and evaluations, logs, and text encoders."""

import json
from collections.abc import Iterator
from pathlib import Path

from hostile.case import Case, alone
from hostile.settings import ESCAPES, TEXTS
from hostile.weights import ZEROS, npy, safetensors, zeros

INFO = {"num_clips": 2, "clip_shape": [4, 4, 4], "dtype": "int16", "tokenizer": "x", "tokenizer_hash": "y"}
TRAIN = ("train magvit-shapes --data cache --out out --device cpu",)
T5 = {
    "architectures": ["T5EncoderModel"], "model_type": "t5", "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1,
    "num_heads": 2, "vocab_size": 32, "feed_forward_proj": "gated-gelu", "is_encoder_decoder": False,
}  # fmt: skip


def caches() -> Iterator[Case]:
    absurd: dict[str, dict[str, object]] = {
        "exabytes of clips": {"num_clips": 10**18},
        "a shape of exabytes": {"clip_shape": [2**40, 4, 4]},
        "a negative number": {"num_clips": -5},
        "an unknown dtype": {"dtype": ESCAPES},
        "a field outside the folder": {"fields": {"../../../etc/passwd": {"dtype": "int64", "shape": []}}},
        "a field of another dtype": {"fields": {"x": {"dtype": "object", "shape": []}}},
        "a name of a megabyte": {"tokenizer": "n" * 10**6, "k" * 10**6: 1},
        "a million conditions": {"conditions": ["c"] * 10**6},
    }
    for label, values in absurd.items():
        yield Case(f"metadata.json with {label}", "cache", cache(json.dumps(INFO | values).encode()), TRAIN)
    for label, content in TEXTS.items():
        yield Case(f"metadata.json with {label}", "JSON", cache(content), TRAIN)
    for label, content in {"exabytes": npy("(2, 4, 4, 1000000000000)", "'<i2'"), "text": b"x"}.items():
        yield Case(f"tokens.npy of {label}", "cache", cache(json.dumps(INFO).encode(), content), TRAIN)


def cache(metadata: bytes, tokens: bytes | None = None):
    def write(folder: Path) -> None:
        alone("cache/metadata.json", metadata)(folder)
        alone("cache/tokens.npy", npy("(2, 4, 4, 4)", "'<i2'", bytes(256)) if tokens is None else tokens)(folder)
        alone("cache/label.npy", npy("(2,)", "'<i8'", bytes(16)))(folder)

    return write


def recordings() -> Iterator[Case]:
    lines = ("record mutoscope-test/Dot-v0 out --episodes 1 --max-frames 4 --policy random",)
    contents = {
        "three gigabytes of zeros": zeros(ZEROS),
        "Python objects": zeros({"task.npy": npy("(1,)", "'|O'", b"x")}),
        "exabytes": zeros({"task.npy": npy("(1000000000000,)")}),
        "nothing": b"",
        "text": b"hello",
    }
    for label, content in contents.items():
        yield Case(f"a recorded episode with {label}", "recording", episode(content), lines)
    for label, content in TEXTS.items():
        yield Case(f"record.json with {label}", "JSON", alone("out/.parts/record.json", content), lines)


def episode(content: bytes):
    """An interrupted recording that has its only episode; its settings are those of the command."""

    def write(folder: Path) -> None:
        from mutoscope.worlds.catalog import EnvironmentSpec
        from mutoscope.worlds.record import RecordConfig, _described

        config = RecordConfig((EnvironmentSpec("mutoscope-test/Dot-v0"),), "random", 1, 4)
        alone("out/.parts/record.json", json.dumps(_described(config)).encode())(folder)
        alone("out/.parts/000000.npz", content)(folder)

    return write


def encoders() -> Iterator[Case]:
    absurd: dict[str, dict[str, object]] = {
        "a billion layers": {"num_layers": 10**9},
        "a width of exabytes": {"d_model": 10**15},
        "ten billion words": {"vocab_size": 10**10},
        "a type in escapes": {"model_type": ESCAPES},
        "code of its own": {"auto_map": {"AutoModel": "evil.Model"}, "trust_remote_code": True},
        "an architecture of a megabyte": {"architectures": ["A" * 10**6], "model_type": "m" * 10**6},
    }
    lines = ("generate nova --out out.mp4 --prompt red",)
    for label, values in absurd.items():
        yield Case(f"a text encoder of {label}", "text encoder", encoder(json.dumps(T5 | values).encode()), lines)
    for label, content in TEXTS.items():
        yield Case(f"a text encoder with {label}", "JSON", encoder(content), lines)
    words = {"a million words": ["w" * 3] * 10**6, "words that are lists": [[1]], "no words": []}
    for label, value in words.items():
        content = json.dumps({"kind": "words", "vocabulary": value}).encode()
        yield Case(f"a vocabulary of {label}", "text encoder", encoder(content), lines)


def encoder(config: bytes):
    """NOVA with another text encoder."""

    def write(folder: Path) -> None:
        from hostile.case import own_copy

        model = own_copy(folder, "nova")
        found = json.loads((model / "model_index.json").read_text())
        (model / "model_index.json").write_text(json.dumps(found | {"text_encoder": "./encoder"}))
        alone("nova/encoder/config.json", config)(folder)
        alone("nova/encoder/model.safetensors", safetensors({}))(folder)
        alone("nova/encoder/tokenizer.json", b"{}")(folder)

    return write


def state_cases() -> Iterator[Case]:
    """All of them."""
    for cases in (caches, recordings, encoders):
        yield from cases()
