"""Actions of a run: the numbers that training and sampling read, and what a model folder keeps of them."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from mutoscope import hub
from mutoscope.actions import ActionSpec
from mutoscope.data.sources.shapes.source import ShapesData
from mutoscope.data.sources.tokens import StoredField, TokenCache, TokenCacheInfo, TokenCacheWriter, TokensData
from mutoscope.errors import UserError
from mutoscope.families.base import Parts
from mutoscope.families.magi import MAGI_FAMILY, MAGICall, MAGIGenerator, MAGIRequest, MAGISteering
from mutoscope.hub import ModelIndex
from mutoscope.models.magi import MAGI, MAGIBatch, MAGIConfig
from mutoscope.pipeline import VideoPipeline
from mutoscope.recipes.shapes import magi_shapes
from mutoscope.runs.actions import actions_of, with_scaled_actions
from mutoscope.runs.sheets import GenerationSheet
from mutoscope.runs.tokenize import tokenize
from mutoscope.runs.train import train
from mutoscope.sampling.base import last_of
from mutoscope.sampling.frame_stream import FrameStreamSamplerConfig
from mutoscope.tokenizers.base import TokenizerSpec, VideoTokenizer
from mutoscope.training.config import ModelRecipe
from tiny_magi import SAMPLING, tiny_config, tiny_index, tiny_magi, tiny_vae

SPEC = ActionSpec(("press", "dx"), "continuous", (0.0, 100.0), (1.0, 10.0), ("max", "sum"), fps=10, frame_stride=2)
SHAPES = ShapesData(num_frames=5, height=8, width=12, controllable=True)


def write_cache(folder: Path, spec: ActionSpec | None, count: int = 6) -> TokenCache:
    """Random latents of 5 frames, and actions of which the third clip's are unknown."""
    rng = np.random.default_rng(0)
    rows = np.stack([rng.integers(0, 2, (count, 5)), rng.normal(100, 10, (count, 5))], axis=-1).astype(np.float32)
    rows[2] = np.nan
    described = {name: value for name, value in SHAPES.describe().items() if name != "actions"}
    described |= {} if spec is None else {"actions": spec.to_json()}
    fields = {"actions": StoredField("float32", (5, 2))}
    info = TokenCacheInfo(count, (3, 5, 4, 6), "float16", "tiny", "0", data=described, fields=fields)
    writer = TokenCacheWriter(folder, info)
    tokens = torch.from_numpy(rng.normal(size=(count, 3, 5, 4, 6)))
    writer.write(tokens, torch.zeros(count, dtype=torch.int64), more={"actions": torch.from_numpy(rows)})
    return writer.finish()


def tiny_recipe(folder: Path) -> ModelRecipe:
    """Two updates on the cache in `folder`, beside which there is a tokenizer."""
    index = ModelIndex("tokenizer", num_frames=5, height=8, width=12, model=None)
    hub.save_pretrained(folder.parent / "vae", index, tiny_vae())
    recipe = magi_shapes()
    loop = replace(recipe.loop, num_steps=2, batch_size=6, log_every=1, ema_decay=None, validation_share=0.0)
    return replace(
        recipe,
        tokenizer=str(folder.parent / "vae"),
        data=TokensData(path=str(folder), num_frames=5, height=8, width=12),
        model=tiny_config(num_classes=None, condition_dropout=0.0),
        loop=loop,
        optim=replace(recipe.optim, warmup_steps=1),
        task_weights={"action-conditional": 1.0},
        sampling=SAMPLING,
    )


def test_training_and_sampling_read_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, batches = write_cache(tmp_path / "tokens", SPEC), []
    loss = MAGI.loss

    def recorded(self: MAGI, batch: MAGIBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        batches.append(batch)
        return loss(self, batch, generator)

    monkeypatch.setattr(MAGI, "loss", recorded)
    assert train(tiny_recipe(tmp_path / "tokens"), tmp_path / "out").finished
    pipeline, raw = VideoPipeline.from_pretrained(tmp_path / "out"), cache[range(6)]["actions"].numpy()
    assert pipeline.index.actions == SPEC and "actions" not in pipeline.index.data
    model = cast(MAGI, pipeline.model)
    [order] = [  # clips of a batch are shuffled: their rows say which clip is which
        [int(np.abs(np.nan_to_num(SPEC.scaled(raw)) - np.nan_to_num(row)).sum((1, 2)).argmin()) for row in batch]
        for batch in [batches[0]["actions"].numpy()]
    ]
    assert sorted(order) == list(range(6))
    trained = model.batch_conditions(batches[0], model.draw(model.to_tokens(batches[0]["tokens"]), torch.Generator()))
    request = pipeline.prepare(actions=list(raw[order]), num_frames=5, guidance_scale=1.0)
    assert isinstance(request, MAGIRequest)
    steering = MAGISteering(request.generator, request, slice(0, 6))
    for frame in range(5):
        sampled = steering.at(frame).actions
        assert trained.actions is not None and sampled is not None
        torch.testing.assert_close(sampled[:, 0], trained.actions[:, frame], rtol=0, atol=0, equal_nan=True)


def test_contact_sheets_show_recorded_actions_in_their_own_units() -> None:
    model, examples = tiny_magi(), SHAPES.examples(2)
    index = tiny_index(model, actions=SPEC)
    pipeline = VideoPipeline(tiny_vae(), model, index)
    context = [clip[:1] for clip in examples["video"].numpy()]
    rows = examples["actions"].numpy().copy()
    rows[..., 0] = rows[..., 0] > 0
    examples["actions"] = torch.from_numpy(rows)
    sheet = GenerationSheet(tiny_vae(), index, examples).generate(model, "action-conditional")
    plain = pipeline.generate(context=context, actions=list(rows), num_frames=5, task="action-conditional").clips
    np.testing.assert_array_equal(sheet.numpy(), np.stack([clip.frames for clip in plain]))


def test_a_row_of_a_contact_sheet_with_one_unknown_number_is_unknown_as_in_training() -> None:
    model, examples = tiny_magi(), SHAPES.examples(2)
    index = tiny_index(model, actions=ActionSpec.plain(("dx", "dy"), "continuous"))
    sheets = []
    for unknown in ([1], [0, 1]):
        examples["actions"][:, 2, unknown] = torch.nan
        sheets.append(GenerationSheet(tiny_vae(), index, examples).generate(model, "action-conditional"))
    np.testing.assert_array_equal(sheets[0], sheets[1])


def test_shapes_name_their_actions_in_the_model_folder(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "tokens")
    recipe = replace(recipe, data=SHAPES, cache_clips=6)
    assert train(recipe, tmp_path / "out").finished
    pipeline = VideoPipeline.from_pretrained(tmp_path / "out")
    assert pipeline.index.actions == ActionSpec.plain(("dx", "dy"), "continuous", fps=8)
    assert len(pipeline.generate(actions="dx=1*2 dy=-0.5").clips[0].frames) == 4


def test_caches_of_earlier_versions_are_used_again_and_learn_their_names(tmp_path: Path) -> None:
    vae, options = tiny_vae(), {"num_clips": 3, "fields": ("actions",)}
    described = SHAPES.origin()
    old = {name: value for name, value in described.items() if name != "actions"}
    before = tokenize(vae, "vae", SHAPES.open(), tmp_path / "tokens", data=old, **options)
    again = tokenize(vae, "vae", SHAPES.open(), tmp_path / "tokens", data=described, **options)
    assert again.info == before.info
    spec = actions_of(again.info.data, SHAPES, tiny_config())
    assert spec is not None and spec.names == ("dx", "dy")
    renamed = described | {"actions": SPEC.to_json()}
    tokenize(vae, "vae", SHAPES.open(), tmp_path / "new", data=described, **options)
    with pytest.raises(UserError, match="other clips"):
        tokenize(vae, "vae", SHAPES.open(), tmp_path / "new", data=renamed, **options)


def test_only_models_of_actions_keep_what_actions_mean() -> None:
    assert actions_of({"actions": SPEC.to_json()}, SHAPES, tiny_config(action_size=None)) is None
    with pytest.raises(UserError, match=r"2 numbers of action \(press, dx\).*set model.action_size to 2"):
        actions_of({"actions": SPEC.to_json()}, SHAPES, tiny_config(action_size=3))
    with pytest.raises(UserError, match="actions of the clips: unknown key 'name'"):
        actions_of({"actions": {"name": ["x"]}}, SHAPES, tiny_config())


# Two lamps: the next frame shows whether the button was pressed, and on which side of 100 the axis was.
LAMPS = MAGIConfig(
    hidden_size=32,
    num_layers=1,
    num_heads=1,
    latent_shape=(4, 1, 2),
    patch_size=1,
    codebook_parts=(2,),
    action_size=2,
    dropout=0.0,
    noise_levels=0,
    condition_dropout=0.0,
)


def lamps(count: int, seed: int) -> MAGIBatch:
    rng = np.random.default_rng(seed)
    rows = np.stack([rng.integers(0, 2, (count, 4)), rng.choice([90, 110], (count, 4))], -1).astype(np.float32)
    first, rest = rng.integers(0, 2, (count, 1, 2)), rows[:, :-1] > [[0.5, 100]]
    tokens = torch.from_numpy(np.concatenate([first, rest], axis=1).astype(np.int64))[:, :, None]  # (b, t, 1, 2)
    return {"tokens": tokens, "actions": torch.from_numpy(rows)}


@pytest.fixture(scope="module")
def lamp_model() -> MAGI:
    """Trained for 60 updates on the lamps."""
    torch.manual_seed(0)
    model, generator = MAGI(LAMPS), torch.Generator().manual_seed(0)
    prepare = with_scaled_actions(MAGI_FAMILY.batch_step(LAMPS, {}), SPEC)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(60):
        loss, _ = model.loss(cast(MAGIBatch, prepare(lamps(32, step), step)), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def test_a_trained_model_knows_each_column_and_the_frame_it_leads_to(lamp_model: MAGI) -> None:
    prepare, held_back = with_scaled_actions(MAGI_FAMILY.batch_step(LAMPS, {}), SPEC), lamps(128, 10**6)

    @torch.no_grad()
    def loss(rows: Tensor) -> float:
        batch = cast(MAGIBatch, prepare({**held_back, "actions": rows}, 0))
        return lamp_model.loss(batch, torch.Generator().manual_seed(0))[0].item()

    rows = held_back["actions"]
    right, columns, earlier, later = (loss(r) for r in (rows, rows.flip(-1), rows.roll(1, 1), rows.roll(-1, 1)))
    assert 3 * right < min(columns, earlier, later)


def test_a_trained_model_does_what_is_written(lamp_model: MAGI) -> None:
    tokenizer = cast(VideoTokenizer, SimpleNamespace(spec=TokenizerSpec(1, 1, vocab_size=2, per_frame=True)))
    index = ModelIndex("magi", num_frames=4, height=1, width=2, tasks=LAMPS.tasks, actions=SPEC)
    generator = MAGIGenerator(Parts(tokenizer, lamp_model, index, torch.device("cpu")))
    text = "press+dx=110 dx=90 press+dx=90"
    request = generator.prepare(
        MAGICall(actions=text, num_samples=16, sampling=FrameStreamSamplerConfig(num_decoding_steps=2))
    )
    [events] = request.events()
    found = last_of(events).proposal[:, 1:, 0].float().mean(0)  # (3, 2): shares of lit lamps after the first frame
    expected = torch.tensor([[1.0, 1], [0, 0], [1, 0]])
    assert request.num_frames == 4 and (found - expected).abs().max() < 0.2
