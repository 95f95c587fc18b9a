"""The decoding loop with fake networks: what must hold for any logits."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.errors import UserError
from mutoscope.layers.token_masking import MASK_TOKEN
from mutoscope.models.magvit import Magvit, MagvitConfig
from mutoscope.sampling.base import TokenEvent
from mutoscope.sampling.masked import MaskedCondition, MaskedSampler, MaskedSamplerConfig

NUM_CODES = 7


class FakeModel:
    """Logits that depend on every token shown and on the label; keeps what it was shown."""

    device = torch.device("cpu")

    def __init__(self, latent_shape: tuple[int, int, int] = (2, 3, 3), flat: bool = False):
        self.latent_shape, self.flat = latent_shape, flat
        self.shown: list[tuple[torch.Tensor, bool]] = []

    def logits(self, tokens, task, label=None, unconditional=False):
        self.shown.append((tokens, unconditional))
        if self.flat:
            return torch.zeros(*tokens.shape, NUM_CODES)
        codes = torch.arange(NUM_CODES)
        own = torch.cos(tokens[..., None] * 1.7 + codes)
        shared = torch.sin(tokens.flatten(1).sum(1)[:, None] * 0.3 + codes)[:, None, None, None]
        extra = 0.0 if label is None or unconditional else torch.cos(label[:, None] * 2.1 + codes)[:, None, None, None]
        return own + shared + extra


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drain(
    model,
    seed: int = 0,
    task: str = "class-conditional",
    label=None,
    condition_tokens=None,
    condition_mask=None,
    batch_size=None,
    **config,
) -> list[TokenEvent]:
    known = next((len(x) for x in (condition_tokens, label) if x is not None), batch_size or 1)
    condition = MaskedCondition(task, known, label, condition_tokens, condition_mask)
    return list(MaskedSampler(MaskedSamplerConfig(**config)).sample(model, condition, seeded(seed)))


SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
SCHEDULES = st.sampled_from(["cosine", "uniform", "exp", "log", "pow2", "pow0.5", "poly:-1,0,1"])
SETTINGS = {
    "shape": SHAPES,
    "steps": st.integers(1, 30),
    "schedule": SCHEDULES,
    "density": st.floats(0, 1),
    "flat": st.booleans(),
    "temperature": st.sampled_from([0.0, 4.5, 400.0]),
    "seed": st.integers(0, 2**16),
}


def decode_around(shape, steps, schedule, density, flat, temperature, seed, mask_shape=None, **config):
    """Random given tokens at random positions, and the events of decoding the rest."""
    mask = torch.rand(mask_shape or shape, generator=seeded(seed)) < density
    tokens = torch.randint(0, NUM_CODES, (2, *shape), generator=seeded(seed + 1))
    given_tokens = {"condition_tokens": tokens, "condition_mask": mask}
    config |= {"schedule": schedule, "num_decoding_steps": steps, "choice_temperature": temperature}
    return mask, tokens, drain(FakeModel(shape, flat), seed, **given_tokens, **config)


@given(**SETTINGS, keep_given=st.booleans())
def test_decoding_always_ends_complete(shape, steps, keep_given, **others):
    mask, _, events = decode_around(shape, steps, mask_shape=(2, *shape), keep_given=keep_given, **others)
    last = events[-1]
    assert last.is_last and not any(event.is_last for event in events[:-1])
    assert len(events) <= steps and [event.step for event in events] == list(range(len(events)))
    assert torch.equal(last.tokens, last.proposal)
    assert int(last.proposal.min()) >= 0 and int(last.proposal.max()) < NUM_CODES
    decided = torch.stack([event.decided for event in events]).sum(0)
    assert torch.equal(decided, (~mask).long() if keep_given else torch.ones_like(decided))


@given(**SETTINGS)
def test_given_tokens_never_change(**settings):
    mask, tokens, events = decode_around(**settings, keep_given=True)
    for event in events:
        assert torch.equal(event.tokens[:, mask], tokens[:, mask])
        assert torch.equal(event.proposal[:, mask], tokens[:, mask])


@given(**SETTINGS)
def test_decided_tokens_never_change(shape, **others):
    mask, tokens, events = decode_around(shape, **others)
    known = torch.zeros(2, *shape, dtype=torch.bool)
    for before, after in itertools.pairwise(events):
        known = known | before.decided
        assert torch.equal(after.tokens[known], before.tokens[known])
        assert bool(after.confidence[known].isinf().all()) and bool(after.confidence[~known].isfinite().all())
        # What is undecided shows its condition token, or [MASK].
        undecided = ~known
        assert torch.equal(before.tokens[undecided & mask], tokens[undecided & mask])
        assert bool((before.tokens[undecided & ~mask] == MASK_TOKEN).all())


def test_every_step_but_a_tie_decides_something():
    events = drain(FakeModel((4, 8, 8)), num_decoding_steps=64)
    assert all(bool(event.decided.flatten(1).any(1).all()) for event in events)


def test_steps_mask_as_many_tokens_as_the_schedule_says():
    events = drain(FakeModel((4, 16, 16)))
    masked = [int((event.tokens == MASK_TOKEN).sum()) for event in events]
    assert masked == [1015, 989, 946, 886, 812, 724, 623, 511, 391, 265, 133, 0]


def test_kept_tokens_do_not_count():
    mask = torch.zeros(2, 2, 4, dtype=torch.bool)
    mask[0] = True
    tokens = torch.zeros(1, 2, 2, 4, dtype=torch.long)
    events = drain(
        FakeModel((2, 2, 4)),
        condition_tokens=tokens,
        condition_mask=mask,
        keep_given=True,
        schedule="uniform",
        num_decoding_steps=4,
    )
    assert [int((event.tokens == MASK_TOKEN).sum()) for event in events] == [6, 4, 2, 0]


def test_more_steps_than_tokens_stop_early_instead_of_starting_over():
    events = drain(FakeModel((1, 2, 2)), num_decoding_steps=50)
    masked = [int((event.tokens == MASK_TOKEN).sum()) for event in events]
    assert masked == [3, 2, 1, 0]


def test_tokens_are_looked_at_only_where_it_may_be_the_end(monkeypatch: pytest.MonkeyPatch):
    looks: list[torch.Size] = []
    monkeypatch.setattr(torch.Tensor, "any", lambda self: looks.append(self.shape) or self.sum() > 0)
    assert len(drain(FakeModel((2, 4, 4)), num_decoding_steps=12)) == 12
    assert len(looks) == 1  # at the condition, before the first step
    assert len(drain(FakeModel((1, 2, 2)), num_decoding_steps=12)) == 4 and len(looks) > 2


def test_a_single_token_is_decided_at_once():
    events = drain(FakeModel((1, 1, 1)), num_decoding_steps=12)
    assert len(events) == 1 and events[0].is_last


def test_condition_tokens_are_refined_unless_kept():
    shape = (2, 4, 4)
    tokens = torch.full((4, *shape), 3)
    results = [
        drain(FakeModel(shape), task="frame-prediction", condition_tokens=tokens, keep_given=keep)[-1].proposal
        for keep in (False, True)
    ]
    assert bool((results[0][:, 0] != 3).any()) and bool((results[1][:, 0] == 3).all())


def test_the_condition_region_follows_from_the_task():
    model, tokens = FakeModel((4, 4, 4)), torch.zeros(1, 4, 4, 4, dtype=torch.long)
    drain(model, task="frame-interpolation", condition_tokens=tokens)
    first_input = model.shown[0][0][0]
    assert [bool((frame == 0).all()) for frame in first_input] == [True, False, False, True]
    assert bool((first_input[1:3] == MASK_TOKEN).all())


def test_the_unconditional_pass_does_not_see_the_condition():
    model, tokens = FakeModel((2, 3, 3)), torch.ones(1, 2, 3, 3, dtype=torch.long)
    events = drain(model, task="frame-prediction", condition_tokens=tokens, guidance_scale=2.0)
    assert [unconditional for _, unconditional in model.shown] == [False, True] * len(events)
    known = torch.zeros(1, 2, 3, 3, dtype=torch.bool)
    for event, (shown, _), (hidden, _) in zip(events, model.shown[::2], model.shown[1::2], strict=True):
        assert bool((hidden[~known] == MASK_TOKEN).all()) and torch.equal(hidden[known], shown[known])
        known = known | event.decided


def test_guidance_scale_one_needs_no_second_pass():
    model = FakeModel()
    events = drain(model)
    assert len(model.shown) == len(events)


def test_one_seed_gives_one_result():
    first, second, other = (drain(FakeModel(), seed, batch_size=3)[-1].proposal for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])  # samples of a batch differ


def test_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    drain(FakeModel())
    assert torch.equal(torch.rand(3), expected)


def test_batch_size_follows_from_what_is_given():
    label = torch.tensor([0, 1, 2])
    assert drain(FakeModel(), label=label)[-1].tokens.shape[0] == 3
    assert drain(FakeModel(), batch_size=2)[-1].tokens.shape[0] == 2
    assert drain(FakeModel())[-1].tokens.shape[0] == 1


def test_greedy_decoding_ignores_the_seed():
    first, second = (drain(FakeModel(), seed, temperature=0.0, choice_temperature=0.0)[-1].proposal for seed in (1, 2))
    assert torch.equal(first, second)


def test_top_k_one_takes_the_most_probable():
    model = FakeModel((1, 1, 1))
    assert int(drain(model, top_k=1)[-1].proposal) == int(model.logits(torch.full((1, 1, 1, 1), -1), "").argmax())


def test_events_carry_time_and_finished_frames():
    events = drain(FakeModel((2, 3, 3)))
    seconds = [event.seconds for event in events]
    assert seconds == sorted(seconds) and seconds[0] > 0
    assert events[-1].frames == slice(0, 2) and all(event.frames is None for event in events[:-1])
    assert {event.num_steps for event in events} == {12}


def test_a_missing_condition_and_an_unknown_task_are_refused():
    with pytest.raises(UserError, match="needs condition tokens"):
        drain(FakeModel(), task="frame-prediction")
    with pytest.raises(UserError, match="There is no task"):
        drain(FakeModel(), task="frames")


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_decoding_steps": 0},
        {"schedule": "cosinus"},
        {"temperature": -1.0},
        {"top_k": 0},
        {"top_p": 0.0},
        {"choice_temperature": -1.0},
        {"top_p": 1.5},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(wrong: dict):
    with pytest.raises(UserError):
        dataclasses.replace(MaskedSamplerConfig(), **wrong)


def test_the_real_network_speaks_the_protocol():
    torch.manual_seed(0)
    model = Magvit(MagvitConfig(1, 16, 2, 32, NUM_CODES, 3, 16, (2, 3, 3), task_token=True)).eval()
    tokens = torch.zeros(2, 2, 3, 3, dtype=torch.long)
    for task in ("class-conditional", "class-conditional-frame-prediction"):
        events = drain(model, task=task, label=torch.tensor([0, 2]), condition_tokens=tokens, guidance_scale=1.5)
        assert events[-1].is_last and not events[-1].confidence.requires_grad


def test_masks_and_conditions_of_the_wrong_size_are_refused():
    with pytest.raises(UserError, match=r"mask must have the latent shape \(2, 3, 3\), found \(2, 3, 4\)"):
        drain(FakeModel(), condition_mask=torch.ones(2, 3, 4, dtype=torch.bool))
    with pytest.raises(UserError, match=r"tokens must have the shape \(1, 2, 3, 3\), found \(1, 2, 2, 2\)"):
        drain(FakeModel(), task="frame-prediction", condition_tokens=torch.zeros(1, 2, 2, 2, dtype=torch.int64))


class NamingModel(FakeModel):
    """Names the class that is the sum of the first given tokens; keeps which tasks and labels it was told."""

    def __init__(self):
        super().__init__()
        self.told: list[tuple[str, list[int] | None]] = []

    def logits(self, tokens, task, label=None, unconditional=False):
        self.told.append((task, None if label is None else label.tolist()))
        return super().logits(tokens, task, label, unconditional)

    def class_logits(self, condition_tokens):
        return 50.0 * torch.nn.functional.one_hot(condition_tokens[:, 0].flatten(1).sum(1) % 5, 5)


def condition(total: int) -> torch.Tensor:
    tokens = torch.zeros(2, 2, 3, 3, dtype=torch.long)
    tokens[0, 0, 0, 0] = total
    return tokens


def test_a_class_is_drawn_from_what_is_given_and_told_from_then_on():
    model = NamingModel()
    drain(model, task="frame-prediction", condition_tokens=condition(3), draw_class=True, num_decoding_steps=4)
    assert model.told == [("class-conditional-frame-prediction", [3, 0])] * 4


def test_a_drawn_class_continues_exactly_as_one_that_was_asked_for():
    config = {"num_decoding_steps": 4, "temperature": 0.0, "choice_temperature": 0.0, "guidance_scale": 2.0}
    drawn = drain(NamingModel(), task="frame-prediction", condition_tokens=condition(3), draw_class=True, **config)
    told, given = "class-conditional-frame-prediction", torch.tensor([3, 0])
    asked = drain(NamingModel(), task=told, label=given, condition_tokens=condition(3), draw_class=True, **config)
    plain = drain(NamingModel(), task="frame-prediction", condition_tokens=condition(3), **config)
    assert torch.equal(drawn[-1].proposal, asked[-1].proposal)
    assert not torch.equal(drawn[-1].proposal, plain[-1].proposal)


def test_classes_are_drawn_as_often_as_the_network_says():
    class Undecided(NamingModel):
        def class_logits(self, condition_tokens):
            return torch.tensor([0.7, 0.3, 0.0]).log().expand(len(condition_tokens), 3)

    model = Undecided()
    drain(model, task="frame-prediction", condition_tokens=condition(0)[:1].expand(600, -1, -1, -1), draw_class=True)
    labels = model.told[0][1]
    assert labels is not None and set(labels) == {0, 1} and 380 < labels.count(0) < 460


def test_a_network_that_names_no_classes_cannot_draw_one():
    with pytest.raises(AttributeError, match="class_logits"):
        drain(FakeModel(), task="frame-prediction", condition_tokens=condition(3), draw_class=True)
