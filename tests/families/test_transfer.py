"""Weights follow the data: rows and columns by name, tables by interpolation, and the start equals the old model."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mutoscope.actions import ActionSpec
from mutoscope.errors import UserError
from mutoscope.families import FAMILIES, family_of
from mutoscope.families.transfer import (
    Change,
    Described,
    TransferReport,
    change_lines,
    class_rows,
    columns_by_name,
    interpolated,
    position_table,
)
from mutoscope.models.base import AnyModel, ClipFacts
from mutoscope.models.magi import MAGI, MAGIBatch
from mutoscope.models.nova import NOVA
from tiny_magi import NAMES, batch_of, tiny_magi
from tiny_models import CLASS_NAMES, MODEL, tiny_model, tiny_par
from tiny_nova import tiny_nova

WORDS, MORE_WORDS = ("blue", "circle"), ("a", "blue", "circle", "dog")


def transfer(old: AnyModel, new: AnyModel, before: Described | None = None, after: Described | None = None):
    before, after = before or Described(old.config), after or Described(new.config)
    return family_of(old.config).transfer(old, new, before, after)


def loss(model: MAGI, batch: MAGIBatch) -> Tensor:
    with torch.no_grad():
        return model.loss(batch, torch.Generator().manual_seed(3))[0]


# ------------------------------------------------------------------------------------------------ rows and columns


def table_of(names: tuple[str, ...], config: Any) -> Described:
    return Described(config, classes=names)


def test_class_rows_are_kept_by_name_and_the_null_row_stays():
    old, new = tiny_magi(), tiny_magi(num_classes=4)
    assert old.class_embedding is not None and new.class_embedding is not None
    rows, fresh = old.class_embedding.weight.clone(), new.class_embedding.weight.clone()
    names = ("dog", "cross", "circle", "cat")
    report = transfer(old, new, table_of(NAMES, old.config), table_of(names, new.config))
    result = new.class_embedding.weight
    assert torch.equal(result[1], rows[NAMES.index("cross")]) and torch.equal(result[2], rows[NAMES.index("circle")])
    assert torch.equal(result[4], rows[3])
    torch.testing.assert_close(result[0], rows[:3].mean(0) + fresh[0])
    assert not torch.equal(result[0], result[3])  # new classes differ, so that they can part
    assert report.adapted == ("class_embedding.weight",) and not report.new and not report.dropped


def test_equal_numbers_of_other_classes_do_not_keep_their_rows():
    old, new = tiny_magi(), tiny_magi()
    report = transfer(old, new, table_of(NAMES, old.config), table_of(("x", "y", "z"), new.config))
    assert report.adapted == ("class_embedding.weight",)
    same = transfer(old, tiny_magi())
    assert same.adapted == () and "class_embedding.weight" in same.kept


@given(st.permutations([*CLASS_NAMES, "new"]), st.integers(1, 4))
def test_magvits_vocabulary_keeps_codes_special_tokens_and_shared_classes(order: list[str], count: int):
    names = tuple(order[:count])
    old, new = tiny_model(), tiny_model(replace(MODEL, num_classes=count))
    torch.nn.init.normal_(old.head.bias)
    transfer(old, new, table_of(CLASS_NAMES, old.config), table_of(names, new.config))
    codes, special = MODEL.codebook_size, 1 + MODEL.num_special_tokens  # "no class" and the special tokens
    for before, after in ((old.token_embedding.weight, new.token_embedding.weight), (old.head.bias, new.head.bias)):
        assert torch.equal(after[:codes], before[:codes]) and torch.equal(after[-special:], before[-special:])
        for i, name in enumerate(names):
            if name in CLASS_NAMES:
                assert torch.equal(after[codes + i], before[codes + CLASS_NAMES.index(name)])


def test_new_classes_of_a_model_without_any_start_as_no_class():
    fresh, old = torch.full((3, 2), 0.5), torch.tensor([[4.0, 8.0]])
    config = tiny_magi(num_classes=0).config
    rows = class_rows()(Change(old, fresh, Described(config), Described(replace(config, num_classes=2)), {}))
    assert rows.tolist() == [[4.5, 8.5], [4.5, 8.5], [4.0, 8.0]]


@given(st.permutations(MORE_WORDS), st.integers(1, 3))
def test_columns_go_by_name_in_every_group(wanted: list[str], groups: int):
    old = torch.randn(4, groups * len(WORDS))
    result = columns_by_name(old, WORDS, wanted).unflatten(1, (groups, -1))
    for i, word in enumerate(wanted):
        expected = old.unflatten(1, (groups, -1))[:, :, WORDS.index(word)] if word in WORDS else torch.zeros(4, groups)
        assert torch.equal(result[:, :, i], expected)


# ------------------------------------------------------------------------------------------------ equal at the start


def test_a_model_with_new_words_computes_what_it_did_for_the_old_ones():
    old, new = tiny_nova(text_size=5 * len(WORDS)), tiny_nova(text_size=5 * len(MORE_WORDS))
    before, after = Described(old.config, words=WORDS), Described(new.config, words=MORE_WORDS)
    transfer(old, new, before, after)
    features = torch.zeros(1, 2, 5 * len(WORDS))
    features[0, 0, 0] = features[0, 1, 1] = features[0, 0, 2 * 2 + 1] = 1.0  # words and a neighbour
    wider = columns_by_name(features[0], WORDS, MORE_WORDS)[None]
    wider[0, 1, MORE_WORDS.index("dog")] = 1.0  # a new word has no effect yet
    present = torch.ones(1, 2, dtype=torch.bool)
    torch.testing.assert_close(new.text_prefix(wider, present), old.text_prefix(features, present))
    torch.testing.assert_close(new.null_prefix(1), old.null_prefix(1))


def test_new_actions_and_captions_of_magi_change_nothing_at_first():
    old = tiny_magi(action_size=None)
    torch.manual_seed(5)
    new = MAGI(replace(old.config, action_size=3, text_size=6))
    report = transfer(old, new)
    assert {"null_action", "action_embedding.2.weight", "word_embedding.weight"} <= set(report.new)
    assert not report.adapted and not report.dropped
    batch = batch_of(old)
    assert torch.equal(loss(new.eval(), batch_of(new) | batch), loss(old, batch))


def test_relative_positions_begin_without_effect_and_follow_another_window():
    old = tiny_magi()
    torch.manual_seed(5)
    sizes = {"time_positions": "relative", "window": 3, "keeps_first": True}
    new = MAGI(replace(old.config, **sizes))
    assert set(transfer(old, new).new) == {f"blocks.{i}.time.distances" for i in range(2)}
    assert not any(new.state_dict()[f"blocks.{i}.time.distances"].any() for i in range(2))
    trained, table = tiny_magi(**sizes), "blocks.0.time.distances"
    longer, shorter = (MAGI(replace(old.config, **sizes | {"window": window})) for window in (5, 2))
    transfer(trained, longer), transfer(trained, shorter)
    before = trained.state_dict()[table]
    assert torch.equal(longer.state_dict()[table], before[:, [0, 1, 2, 2, 2, 3]])
    assert torch.equal(shorter.state_dict()[table], before[:, [0, 1, 3]])
    alone = MAGI(replace(trained.config, keeps_first=False))
    transfer(trained, alone)
    assert torch.equal(alone.state_dict()[table], before[:, :3])


def test_known_actions_keep_their_columns_and_new_ones_have_no_effect_yet():
    old, new = tiny_magi(), tiny_magi(action_size=3)
    before = Described(old.config, NAMES, actions=ActionSpec.plain(("left", "right"), "continuous"))
    after = ActionSpec.plain(("jump", "right", "left"), "continuous")
    transfer(old, new, before, Described(new.config, NAMES, actions=after))
    batch = batch_of(old)
    actions = batch["actions"]
    jump = torch.randn_like(actions[..., :1])
    wider = cast(MAGIBatch, batch | {"actions": torch.cat([jump, actions[..., 1:], actions[..., :1]], dim=-1)})
    torch.testing.assert_close(loss(new, wider), loss(old, batch))


def test_actions_with_another_scaling_have_the_effect_that_they_had():
    old, new = tiny_magi(), tiny_magi()
    x = ActionSpec(("x", "y"), "continuous", (0.5, 0.0), (2.0, 1.0), ("sum", "sum"))
    other = ActionSpec(("x", "y"), "continuous", (-1.0, 3.0), (0.5, 4.0), ("sum", "sum"))
    report = transfer(old, new, Described(old.config, NAMES, actions=x), Described(new.config, NAMES, actions=other))
    assert report.adapted == ("action_embedding.0.weight", "action_embedding.0.bias")
    rows = np.random.default_rng(0).normal(size=(2, 5, 2)).astype(np.float32)  # in the recording's own units
    first, second = (cast(MAGIBatch, batch_of(old) | {"actions": torch.from_numpy(s.scaled(rows))}) for s in (x, other))
    torch.testing.assert_close(loss(new, second), loss(old, first))


def test_without_actions_magi_computes_what_it_did_for_unknown_ones():
    old, new = tiny_magi(), tiny_magi(action_size=None)
    report = transfer(old, new)
    assert report.adapted == ("interval_embedding.weight",) and "null_action" in report.dropped
    batch = batch_of(old)
    del batch["actions"]
    torch.testing.assert_close(loss(new, batch), loss(old, batch))


def test_without_classes_magi_computes_what_it_did_for_unknown_ones():
    old, new = tiny_magi(), tiny_magi()
    new = tiny_magi(num_classes=new.config.fitted(ClipFacts((5, 4, 6), 3)).continuing(old.config).num_classes)
    assert new.config.num_classes == 0 and "class-conditional" not in new.config.tasks
    transfer(old, new)
    batch = batch_of(old)
    del batch["label"]
    torch.testing.assert_close(loss(new, batch), loss(old, batch))


def test_dropped_conditions_are_reported():
    old = tiny_magi()
    report = transfer(old, tiny_magi(num_classes=None, action_size=None))
    assert "class_embedding.weight" in report.dropped and "null_action" in report.dropped and not report.new
    text, classes = tiny_nova(), tiny_nova(text_size=None, num_classes=2)
    assert set(transfer(text, classes).new) == {"classes.weight", "class_norm.weight", "class_norm.bias"}


def test_nova_learns_video_from_the_weights_of_images():
    images, video = tiny_nova(num_time_slots=1, latent_shape=(1, 8, 8), mixer_rank=None), tiny_nova()
    report = transfer(images, video)
    assert {name.partition(".")[0] for name in report.new} == {"mixer", "flow_embedding", "fps_embedding"}


# ----------------------------------------------------------------------------------------------------- positions


def test_tables_of_positions_follow_the_grid():
    old, new = tiny_magi(), tiny_magi(latent_shape=(5, 8, 8))
    report = transfer(old, new)
    assert set(report.adapted) == {"role_embedding", "head_position"}
    grid, wider = old.config.grid, new.config.grid
    assert (grid, wider) == ((2, 3), (4, 4))
    expected = interpolated(old.head_position.detach(), (1, *grid), (1, *wider))
    torch.testing.assert_close(new.head_position.detach(), expected)
    torch.testing.assert_close(
        new.role_embedding.detach()[1], interpolated(old.role_embedding.detach()[1], (1, *grid), (1, *wider))
    )


def test_magvits_positions_keep_their_prefix_and_are_interpolated_over_time():
    old, new = tiny_model(), tiny_model(replace(MODEL, latent_shape=(8, 4, 4)))
    transfer(old, new)
    before, after = old.position_embedding.weight.detach(), new.position_embedding.weight.detach()
    prefix = MODEL.prefix_length
    assert torch.equal(after[:prefix], before[:prefix])
    frames = before[prefix:].view(4, 16, -1)
    slower = after[prefix:].view(8, 16, -1)
    torch.testing.assert_close(slower[0], frames[0])  # beyond the first cell's centre
    torch.testing.assert_close(slower[1], 0.75 * frames[0] + 0.25 * frames[1])
    torch.testing.assert_close(slower[2], 0.25 * frames[0] + 0.75 * frames[1])


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))
def test_a_constant_table_stays_constant_on_every_grid(t: int, h: int, w: int, t2: int, h2: int, w2: int):
    table = torch.tensor([[1.0, -2.0]]).expand(t * h * w, 2)
    torch.testing.assert_close(interpolated(table, (t, h, w), (t2, h2, w2)), table[:1].expand(t2 * h2 * w2, 2))


def test_an_equal_grid_keeps_the_table_bit_for_bit():
    model = tiny_magi()
    described = Described(model.config)
    table = model.role_embedding
    assert position_table(1)(Change(table, table, described, described, {})) is table


# ----------------------------------------------------------------------------------------------------- refusals


def refused(old: AnyModel, new: AnyModel) -> str:
    with pytest.raises(UserError) as error:
        transfer(old, new)
    return str(error.value)


def test_other_sizes_are_refused_with_the_field_that_differs():
    message = refused(tiny_magi(), tiny_magi(num_layers=3))
    assert "blocks.2" in message and "missing there" in message and "num_layers" in message
    message = refused(tiny_magi(), tiny_magi(head_size=16))
    assert "head." in message and "head_size" in message
    assert "num_special_tokens" in refused(tiny_model(), tiny_model(replace(MODEL, num_special_tokens=17)))
    assert "codebook_size" in refused(tiny_par(), tiny_par(codebook_size=32))


def test_features_of_another_text_encoder_are_refused():
    assert "text_size" in refused(tiny_nova(), tiny_nova(text_size=8))


def test_par_does_not_turn_images_into_clips():
    images = tiny_par(latent_shape=(1, 4, 4), hidden_size=32)
    clips = tiny_par(hidden_size=32)
    assert "These weights know images" in refused(images, clips)
    assert "These weights know clips" in refused(clips, images)
    transfer(clips, tiny_par(hidden_size=32, latent_shape=(6, 8, 6)))


def test_another_family_is_refused():
    assert "The weights are those of a MAGI, the recipe trains a NOVA" in _other_family()


def _other_family() -> str:
    old, new = tiny_magi(), tiny_nova()
    with pytest.raises(UserError) as error:
        FAMILIES["nova"].transfer(old, new, Described(old.config), Described(new.config))
    return str(error.value)


@pytest.mark.parametrize("build", [tiny_magi, tiny_model, tiny_nova, tiny_par])
def test_a_model_transfers_to_its_equal_unchanged(build: Callable[[], AnyModel]):
    old, new = build(), build()
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.zero_()
    report = transfer(old, new)
    assert set(report.kept) == set(old.state_dict())
    assert all(torch.equal(value, new.state_dict()[name]) for name, value in old.state_dict().items())


# ----------------------------------------------------------------------------------------------------- in words


def test_changes_are_told_by_name():
    old = tiny_magi()
    new = replace(old.config, num_classes=2, action_size=None, latent_shape=(5, 8, 6))
    named = ActionSpec.plain(("x", "y"), "buttons")
    lines = change_lines(Described(old.config, NAMES, actions=named), Described(new, ("circle", "dog")))
    assert lines == [
        "classes: 3 become 2, 1 kept by name, new: dog",
        "actions: 2 removed, since the clips have none",
        "latent frames, rows and columns: 5×4×6 become 5×8×6",
    ]
    report = TransferReport(("a", "b"), ("c",), (), tuple("defghijklm"))
    assert report.lines() == ["2 tensors as they are; adapted: c; dropped: d, e, f, g, h, i, j, k and 2 more"]
    assert change_lines(Described(old.config), Described(old.config)) == []


def test_a_nova_model_is_described_by_words():
    config = cast(NOVA, tiny_nova()).config
    assert change_lines(Described(config, words=WORDS), Described(config, words=MORE_WORDS)) == [
        "words: 2 become 4, 2 kept by name, new: a, dog"
    ]
