# ruff: noqa: E501 - tables with one case in a line
"""Hostile settings: absurd sizes, deep nesting, endless names and terminal escapes in JSON files."""

import json
from collections.abc import Iterator

from hostile.case import Case, changed, replaced

ESCAPES = "\x1b[2J\x1b[31m\x1b]0;title\x07\u202e\r\b"
GENERATE = "generate {} --out out.mp4"
MAGVIT = (
    "generate model --out out.mp4",
    "evaluate model --num-clips 2",
    "finetune model clips out --loop.num-steps 400",
)
TOKENIZER = ("reconstruct tokenizer clip.mp4 out.mp4", "tokenize tokenizer clips out --num-clips 2")
ABSURD: tuple[tuple[str, str, dict[str, object]], ...] = (
    ("model", "model/config.json", {"num_layers": 10**9}),
    ("model", "model/config.json", {"num_layers": 256, "hidden_size": 2**24, "mlp_size": 2**24}),
    ("model", "model/config.json", {"hidden_size": 10**18}),
    ("model", "model/config.json", {"codebook_size": 2**24, "hidden_size": 2**20}),
    ("model", "model/config.json", {"num_classes": 2**24}),
    ("model", "model/config.json", {"num_special_tokens": 10**18}),
    ("model", "model/config.json", {"latent_shape": [65536, 65536, 65536]}),
    ("model", "model/config.json", {"latent_shape": [1] * 10**6}),
    ("model", "model/config.json", {"tasks": ["frame-prediction"] * 10**6}),
    ("model", "model/config.json", {"num_heads": 0}),
    ("model", "model/config.json", {"dropout": 1e308}),
    ("model", "model/config.json", {"context_frames": 10**12}),
    ("model", "model/config.json", {"condition_clip_shape": [65536, 65536, 65536]}),
    ("tokenizer", "tokenizer/config.json", {"channel_multipliers": [1] * 10**6}),
    ("tokenizer", "tokenizer/config.json", {"channel_multipliers": [2**24, 2**24]}),
    ("tokenizer", "tokenizer/config.json", {"num_res_blocks": 10**9}),
    ("tokenizer", "tokenizer/config.json", {"num_res_blocks": 256, "channel_multipliers": [1] * 64, "temporal_downsample": [False] * 63}),
    ("tokenizer", "tokenizer/config.json", {"filters": 2**24}),
    ("tokenizer", "tokenizer/config.json", {"codebook_size": 2**24, "embedding_dim": 2**20}),
    ("tokenizer", "tokenizer/config.json", {"num_groups": 10**18}),
    ("world", "model/config.json", {"num_layers": 256, "head_layers": 256}),
    ("world", "model/config.json", {"action_size": 2**24}),
    ("world", "model/config.json", {"latent_shape": [65536, 64, 64]}),
    ("world", "model/config.json", {"text_size": 2**24, "text_length": 10**12}),
    ("world", "model/config.json", {"noise_levels": 10**9}),
    ("world", "model/config.json", {"codebook_parts": [2**24] * 64}),
    ("world", "model/config.json", {"diffusion": {"num_train_steps": 10**12}}),
    ("world", "model/config.json", {"patch_size": 10**9}),
    ("world", "tokenizer/config.json", {"levels": [8] * 10**6}),
    ("par", "model/config.json", {"num_layers": 10**9}),
    ("par", "model/config.json", {"mlp_size": 2**24, "hidden_size": 2**24}),
    ("par", "model/config.json", {"num_parallel": 10**18}),
    ("par", "model/config.json", {"num_regions": 10**18}),
    ("par", "model/config.json", {"num_classes": 2**24}),
    ("nova", "model/config.json", {"spatial_layers": 10**9}),
    ("nova", "model/config.json", {"mixer_rank": 2**24, "hidden_size": 2**22}),
    ("nova", "model/config.json", {"num_time_slots": 65536, "latent_shape": [65536, 64, 64]}),
    ("nova", "model/config.json", {"text_size": 2**24, "hidden_size": 2**20}),
    ("nova", "tokenizer/config.json", {"layers_per_block": 10**9}),
    ("nova", "tokenizer/config.json", {"block_channels": [10**9] * 2}),
    ("model", "model_index.json", {"num_frames": 10**12}),
    ("model", "model_index.json", {"height": 10**9, "width": 10**9}),
    ("model", "model_index.json", {"fps": 1e308}),
    ("model", "model_index.json", {"class_names": ["a"] * 10**6}),
    ("model", "model_index.json", {"tokenizer": "../" * 10_000}),
    ("model", "model_index.json", {"tokenizer": "/dev/zero"}),
    ("model", "model_index.json", {"tokenizer": "../model"}),
    ("model", "model_index.json", {"model": "/proc/self/mem"}),
    ("model", "model_index.json", {"sampling": {"num_decoding_steps": 10**12}}),
    ("model", "model_index.json", {"sampling": {"x" * 10**6: 1}}),
    ("model", "model_index.json", {"family": "f" * 10**6}),
    ("model", "model_index.json", {"family": ESCAPES}),
    ("model", "model_index.json", {"format": ESCAPES}),
    ("model", "model_index.json", {"format": "v" * 10**6}),
    ("model", "model_index.json", {ESCAPES: 1}),
    ("model", "model_index.json", {"k" * 10**6: 1}),
    ("model", "model_index.json", {"num_frames": "9" * 10**6}),
    ("model", "model_index.json", {"num_frames": list(range(10**6))}),
    ("model", "model_index.json", {"height": ESCAPES}),
    ("model", "model/config.json", {"class": ESCAPES}),
    ("model", "model/config.json", {"class": "c" * 10**6}),
    ("model", "model/config.json", {"class": {"a": "b" * 10**6}}),
    ("model", "model/config.json", {ESCAPES: [1]}),
    ("model", "model/config.json", {"k" * 10**6: 1}),
    ("model", "model/config.json", {"num_layers": ESCAPES}),
    ("model", "model/config.json", {"num_layers": {"a": ["b" * 10**6] * 20}}),
    ("model", "model/config.json", {"tasks": [ESCAPES]}),
    ("model", "model/config.json", {"tasks": ["t" * 10**6]}),
    ("world", "model_index.json", {"actions": {"names": ["a"] * 10**6}}),
    ("world", "model_index.json", {"actions": {"names": [ESCAPES], "kind": ESCAPES}}),
    ("world", "model_index.json", {"first_frames": {"../../../etc/passwd": 0}}),
    ("nova", "model_index.json", {"text_encoder": "e" * 10**6}),
    ("nova", "model_index.json", {"text_encoder": ESCAPES}),
)  # fmt: skip
LINES = {
    "model": MAGVIT,
    "tokenizer": TOKENIZER,
    "world": (GENERATE.format("world"), "generate world --out out.mp4 --num-frames 3"),
    "par": (GENERATE.format("par"),),
    "nova": ("generate nova --out out.mp4 --prompt red",),
}
TEXTS = {
    "brackets nested a hundred thousand deep": b"[" * 100_000 + b"]" * 100_000,
    "objects nested a hundred thousand deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "objects nested five hundred deep": b'{"a":' * 500 + b"1" + b"}" * 500,
    "a number of a hundred thousand digits": b'{"num_frames": ' + b"9" * 100_000 + b"}",
    "an exponent of a million": b'{"num_frames": 1e1000000}',
    "eighteen megabytes of lists": b'{"a": [' + b"[]," * 6_000_000 + b"[]]}",
    "a name of seventeen megabytes": b'{"' + b"n" * 17_000_000 + b'": 1}',
    "NUL bytes": bytes(1000),
    "random bytes": bytes(range(256)) * 10,
    "another encoding": '{"family": "ä"}'.encode("latin-1"),
    "infinity": b'{"num_frames": Infinity, "family": NaN}',
    "a lone surrogate": b'{"family": "\\ud800"}',
    "a million equal keys": b"{" + b'"a":1,' * 1_000_000 + b'"a":1}',
    "a list": b"[1, 2]",
    "nothing": b"",
}


def setting_cases() -> Iterator[Case]:
    """All of them."""
    for model, file, values in ABSURD:
        label = ", ".join(f"{name[:30]!r} {str(value)[:40]!r}" for name, value in values.items())
        yield Case(f"{model}/{file} with {label}", "settings", changed(model, file, values), LINES[model])
    for name, content in TEXTS.items():
        for model, file in (
            ("model", "model_index.json"),
            ("model", "model/config.json"),
            ("tokenizer", "tokenizer/config.json"),
        ):
            write = replaced(model, file, content)
            yield Case(f"{model}/{file} with {name}", "JSON", write, LINES[model][:2])
    yield from recipe_cases()


def recipe_cases() -> Iterator[Case]:
    from mutoscope.recipes.catalog import RECIPES
    from mutoscope.training.config import to_json

    tokenizer, model = (json.loads(json.dumps(to_json(RECIPES[name]()))) for name in ("vq-shapes", "magvit-shapes"))
    absurd: tuple[tuple[dict[str, object], str, object], ...] = (
        (tokenizer, "tokenizer.num_res_blocks", 10**9),
        (tokenizer, "tokenizer.channel_multipliers", [1] * 10**6),
        (tokenizer, "tokenizer.filters", 2**24),
        (tokenizer, "tokenizer.embedding_dim", 2**24),
        (tokenizer, "data.num_frames", 10**12),
        (tokenizer, "data.height", 10**7),
        (tokenizer, "loop.batch_size", 10**12),
        (tokenizer, "loop.num_workers", 10**9),
        (tokenizer, "loop.threads", 10**9),
        (tokenizer, "name", "n" * 10**6),
        (tokenizer, "name", ESCAPES),
        (tokenizer, "recipe", ESCAPES),
        (tokenizer, "k" * 10**6, 1),
        (model, "model.num_layers", 10**9),
        (model, "model.hidden_size", 2**24),
        (model, "model.latent_shape", [65536, 65536, 65536]),
        (model, "tokenizer", ESCAPES),
        (model, "tokenizer", "t" * 10**6),
        (model, "text_encoder", "../" * 10_000),
        (model, "num_clips", 10**18),
        (model, "task_weights", {"t" * 10**6: 1.0}),
        (model, "sampling", {"num_decoding_steps": 10**12}),
    )
    for base, key, value in absurd:
        recipe = json.loads(json.dumps(base))
        inner, *parts = recipe, *key.split(".")
        for part in parts[:-1]:
            inner = inner[part]
        inner[parts[-1]] = value
        label = f"{key[:30]!r} {str(value)[:40]!r}"
        content = json.dumps(recipe).encode()
        yield Case(
            f"recipe.json with {label}", "recipe", lambda folder, c=content: (folder / "r.json").write_bytes(c),
            ("train r.json --out out --device cpu",),
        )  # fmt: skip
    for name, content in TEXTS.items():
        yield Case(
            f"recipe.json with {name}", "JSON", lambda folder, c=content: (folder / "r.json").write_bytes(c),
            ("train r.json --out out --device cpu",),
        )  # fmt: skip
