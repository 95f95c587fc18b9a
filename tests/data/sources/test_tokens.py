import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from mutoscope.data.loader import StepSampler, make_loader
from mutoscope.data.sources.tokens import (
    StoredField,
    TokenCache,
    TokenCacheInfo,
    TokenCacheWriter,
    TokensData,
    partial_folder,
    token_dtype,
)
from mutoscope.errors import UserError

INFO = TokenCacheInfo(7, (2, 3, 3), "int16", "vq", "hash", ("frame-prediction",), {"kind": "shapes"})


def clips(start, count, codes=500):
    tokens = torch.arange(start, start + count)[:, None, None, None] * 10 + torch.zeros(1, 2, 3, 3, dtype=torch.long)
    return tokens % codes, torch.arange(start, start + count), {"frame-prediction": (tokens + 1) % codes}


def fill(folder, info=INFO):
    writer = TokenCacheWriter(folder, info)
    while writer.position < info.num_clips:
        writer.write(*clips(writer.position, min(3, info.num_clips - writer.position)))
    return writer.finish()


def test_a_written_cache_is_read_back_as_batches(tmp_path):
    cache = fill(tmp_path / "cache")
    batch = cache[[5, 0]]
    tokens, _, conditions = clips(5, 1)
    assert cache.num_clips == len(cache) == 7 and cache.info == INFO
    assert torch.equal(batch["tokens"][:1], tokens) and batch["tokens"].dtype == torch.int64
    assert torch.equal(batch["conditions"]["frame-prediction"][:1], conditions["frame-prediction"])
    assert batch["label"].tolist() == [5, 0]


def test_an_interrupted_writer_is_continued_where_it_stopped(tmp_path):
    writer = TokenCacheWriter(tmp_path / "cache", INFO)
    writer.write(*clips(0, 4))
    del writer
    with pytest.raises(UserError, match="not a finished token cache"):
        TokenCache(tmp_path / "cache")
    again = TokenCacheWriter(tmp_path / "cache", INFO)
    assert again.position == 4
    again.write(*clips(4, 3))
    assert torch.equal(again.finish()[range(7)]["tokens"], clips(0, 7)[0])
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_a_writer_that_died_between_a_file_and_its_header_is_started_again(tmp_path):
    partial = partial_folder(tmp_path / "cache")
    partial.mkdir()
    (partial / "label.npy").touch()
    assert fill(tmp_path / "cache")[range(7)]["label"].tolist() == list(range(7))


def test_an_unfinished_cache_of_another_tokenizer_is_not_continued(tmp_path):
    TokenCacheWriter(tmp_path / "cache", INFO).write(*clips(0, 4))
    with pytest.raises(UserError, match="another tokenizer"):
        TokenCacheWriter(tmp_path / "cache", replace(INFO, tokenizer_hash="other"))


def test_a_finished_cache_is_never_overwritten(tmp_path):
    fill(tmp_path / "cache")
    with pytest.raises(UserError, match="already exists"):
        TokenCacheWriter(tmp_path / "cache", INFO)


def test_too_many_clips_and_an_early_finish_are_errors(tmp_path):
    writer = TokenCacheWriter(tmp_path / "cache", INFO)
    with pytest.raises(ValueError, match="do not fit"):
        writer.write(*clips(0, 8))
    with pytest.raises(ValueError, match="only 0 of 7"):
        writer.finish()
    assert not (tmp_path / "cache").exists()


def test_tokens_that_do_not_fit_the_stored_type_are_errors(tmp_path):
    writer = TokenCacheWriter(tmp_path / "cache", replace(INFO, conditions=()))
    tokens, label, _ = clips(0, 1)
    with pytest.raises(ValueError, match="do not fit int16"):
        writer.write(tokens + 40_000, label)
    assert writer.position == 0


def test_continuous_latents_are_stored_in_half_precision(tmp_path):
    info = TokenCacheInfo(2, (4, 2, 3, 3), token_dtype(None), "vae", "hash")
    writer = TokenCacheWriter(tmp_path / "cache", info)
    latents = torch.randn(2, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    writer.write(latents, torch.tensor([1, 2]))
    batch = writer.finish()[[0, 1]]
    assert batch["tokens"].dtype == torch.float32
    torch.testing.assert_close(batch["tokens"], latents.half().float(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(512, "int16"), (32768, "int16"), (32769, "int32"), (None, "float16")]
)
def test_the_stored_type_holds_the_vocabulary(vocab_size, dtype):
    assert token_dtype(vocab_size) == dtype


def _metadata(change):
    def damage(folder):
        values = json.loads((folder / "metadata.json").read_text())
        change(values)
        (folder / "metadata.json").write_text(json.dumps(values))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        _metadata(lambda v: v.pop("dtype")),
        _metadata(lambda v: v.update(dtype="object")),
        _metadata(lambda v: v.update(num_clips=8)),
        lambda folder: (folder / "metadata.json").write_text("{"),
        lambda folder: (folder / "tokens.npy").write_bytes((folder / "tokens.npy").read_bytes()[:-9]),
        lambda folder: (folder / "label.npy").unlink(),
        lambda folder: np.save(folder / "label.npy", np.zeros(3, np.int64)),
    ],
)
def test_a_damaged_cache_is_reported_when_it_is_opened(tmp_path, damage):
    fill(tmp_path / "cache")
    damage(tmp_path / "cache")
    with pytest.raises(UserError, match=r"tokenize"):
        TokenCache(tmp_path / "cache")


def test_a_pickled_cache_does_not_carry_its_arrays(tmp_path):
    cache = fill(tmp_path / "cache")
    content = pickle.dumps(cache)
    assert len(content) < 1000
    assert torch.equal(pickle.loads(content)[[2]]["tokens"], cache[[2]]["tokens"])


@pytest.mark.slow
def test_workers_read_the_same_batches(tmp_path):
    cache = fill(tmp_path / "cache")
    sampler = StepSampler(cache.num_clips, 3, 5, seed=1)
    runs = [[b["tokens"] for b in make_loader(cache, sampler, num_workers=workers)] for workers in (0, 2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_captions_and_motion_are_kept_beside_the_clips(tmp_path):
    info = replace(INFO, num_clips=2, conditions=(), caption_shape=(4, 3), motion=True)
    writer = TokenCacheWriter(tmp_path / "cache", info)
    tokens, label, _ = clips(0, 2)
    caption = torch.arange(24.0).view(2, 4, 3)
    more = {"caption": caption, "caption_length": torch.tensor([1, 4]), "motion": torch.tensor([0.25, 3.0])}
    with pytest.raises(ValueError, match="caption"):
        writer.write(tokens, label)
    writer.write(tokens, label, more=more)
    batch = writer.finish()[[1, 0]]
    assert torch.equal(batch["caption"], caption[[1, 0]])
    assert batch["caption_mask"].tolist() == [[True] * 4, [True, False, False, False]]
    assert batch["motion"].tolist() == [3.0, 0.25]


FIELDS = {
    "interval": StoredField("int64"),
    "history_only": StoredField("bool", (2,)),
    "history": StoredField("int16", (2, 3, 3)),
    "actions": StoredField("float32", (2, 3)),
}


def fill_fields(folder):
    writer = TokenCacheWriter(folder, replace(INFO, fields=FIELDS))
    actions = torch.arange(42.0).view(7, 2, 3)
    actions[4] = torch.nan
    seen_only = torch.arange(14).view(7, 2) % 3 == 1
    more = {"interval": torch.arange(7) + 1, "history_only": seen_only, "history": clips(7, 7)[0], "actions": actions}
    writer.write(*clips(0, 7), more)
    return writer.finish(), more


def test_fields_are_kept_by_name_and_unknown_actions_stay_unknown(tmp_path):
    cache, more = fill_fields(tmp_path / "cache")
    batch = cache[[4, 2]]
    assert batch["interval"].tolist() == [5, 3]
    assert batch["history_only"].dtype == torch.bool and torch.equal(
        batch["history_only"], more["history_only"][[4, 2]]
    )
    assert torch.equal(batch["history"], clips(7, 7)[0][[4, 2]])
    assert batch["actions"][0].isnan().all()
    assert torch.equal(batch["actions"][1], more["actions"][2])
    assert set(cache.fields) == {"label", *FIELDS}


def former(values):
    """Metadata as earlier versions wrote it: one key for each field."""
    values = {name: value for name, value in values.items() if name != "fields"}
    return values | {"interval": True, "action_shape": [2, 3], "history_only": True, "history": True}


def test_a_cache_of_an_earlier_version_opens_with_the_same_fields(tmp_path):
    cache, _ = fill_fields(tmp_path / "cache")
    path = tmp_path / "cache" / "metadata.json"
    path.write_text(json.dumps(former(json.loads(path.read_text()))))
    old = TokenCache(tmp_path / "cache")
    assert old.info == cache.info
    assert torch.equal(old[[2]]["actions"], cache[[2]]["actions"])


def test_an_unfinished_cache_of_an_earlier_version_is_continued(tmp_path):
    info = replace(INFO, fields={"interval": StoredField("int64")})
    TokenCacheWriter(tmp_path / "cache", info).write(*clips(0, 4), {"interval": torch.ones(4, dtype=torch.int64)})
    path = tmp_path / "cache.partial" / "progress.json"
    progress = json.loads(path.read_text())
    del progress["info"]["fields"]
    progress["info"] |= {"interval": True, "action_shape": None, "history_only": False, "history": False}
    path.write_text(json.dumps(progress))
    assert TokenCacheWriter(tmp_path / "cache", info).position == 4


def test_a_cache_is_no_source_of_pixels(tmp_path):
    fill(tmp_path / "cache")
    data = TokensData(path=str(tmp_path / "cache"))
    assert data.describe() == {"kind": "shapes"} and data.cache().num_clips == 7
    with pytest.raises(UserError, match="pixels are needed"):
        data.open()
    with pytest.raises(UserError, match="needs a path"):
        TokensData().cache()


def test_latents_that_are_not_finite_are_a_sentence_that_names_the_clips(tmp_path):
    info = TokenCacheInfo(4, (2, 1, 2, 2), "float16", "vae", "hash")
    for bad, found in ((float("nan"), "hold NaN or infinity"), (1e5, "reach 100000")):
        writer = TokenCacheWriter(tmp_path / found[:4], info)
        writer.write(torch.zeros(2, 2, 1, 2, 2), torch.zeros(2, dtype=torch.int64))
        latents = torch.zeros(2, 2, 1, 2, 2)
        latents[1, 0, 0, 0, 0] = bad
        with pytest.raises(UserError, match=f"tokens of clips 2 … 3 do not fit float16.*they {found}"):
            writer.write(latents, torch.zeros(2, dtype=torch.int64))
        assert writer.position == 2 and not (tmp_path / found[:4]).exists()
