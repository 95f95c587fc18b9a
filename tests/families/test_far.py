"""FAR's calls: what is generated from classes, actions and first frames, streams that are steered, and refusals."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mutoscope.data.video.write import VideoClip
from mutoscope.errors import UserError
from mutoscope.families import FAMILIES, family_of
from mutoscope.families.base import Rollout
from mutoscope.families.far import FARCall, action_rows_of_table, roll_out
from mutoscope.families.transfer import Change, Described
from mutoscope.pipeline import VideoPipeline
from mutoscope.playground.world import World, WorldStart
from mutoscope.sampling.frame_flow import FrameFlowSamplerConfig
from tiny_far import KEYS, LONG, batch_of, save_steered_far, save_tiny_far, tiny_config, tiny_far


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> VideoPipeline:
    return VideoPipeline.from_pretrained(save_steered_far(tmp_path_factory.mktemp("models") / "far"))


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> VideoPipeline:
    return VideoPipeline.from_pretrained(save_tiny_far(tmp_path_factory.mktemp("models") / "long", **LONG))


def frames(count: int, value: int = 90) -> np.ndarray:
    return np.full((count, 8, 12, 3), value, np.uint8)


def test_the_declaration():
    family = FAMILIES["far"]
    assert family_of(tiny_config()) is family
    assert family.capabilities.endless and family.capabilities.steerable and family.capabilities.packs
    assert family.steps(tiny_config(), {"num_decoding_steps": 7}) == 7 * 5
    papers = {paper.name: paper for paper in family.papers()}
    assert papers["far-L"].clip == (16, 128, 128) and papers["far-M-long"].clip == (300, 128, 128)
    assert "action-conditional" in papers["far-B-long"].tasks


@pytest.mark.parametrize(
    ("options", "task", "count"),
    [
        ({}, "class-conditional", 5),
        ({"class_label": "square", "num_frames": 3}, "class-conditional", 3),
        ({"context": frames(2), "num_frames": 4}, "frame-prediction", 4),
        ({"context": frames(1), "class_label": 1}, "class-conditional-frame-prediction", 5),
        ({"actions": "left*2 right"}, "action-conditional", 4),
        ({"task": "unconditional"}, "unconditional", 5),
        ({"task_video": frames(4), "num_frames": 9}, "frame-prediction", 9),
    ],
)
def test_tasks_follow_from_what_is_given(pipeline: VideoPipeline, options, task: str, count: int):
    result = pipeline.generate(**options)
    assert result.request.task == task and result.clips[0].frames.shape == (count, 8, 12, 3)


def clip(pipeline: VideoPipeline, **call: Any) -> np.ndarray:
    found = pipeline(**call)
    assert isinstance(found, VideoClip)
    return found.frames


def test_the_typed_call_is_the_keyword_call(pipeline: VideoPipeline):
    call = FARCall(class_label=2, seed=3, sampling=FrameFlowSamplerConfig(num_decoding_steps=2, guidance_scale=1.5))
    first = pipeline(call)
    second = pipeline(class_label="cross", seed=3, num_decoding_steps=2, guidance_scale=1.5)
    np.testing.assert_array_equal(first.frames, second.frames)


def test_actions_lead_to_the_next_frame(pipeline: VideoPipeline):
    """An action changes the frames after it; the one of the last frame changes nothing that is shown before it."""
    shared: dict[str, Any] = {"context": frames(1), "num_frames": 4, "seed": 1}
    left, right = (clip(pipeline, actions=actions, **shared) for actions in ("left*3", "left right left"))
    np.testing.assert_array_equal(left[0], right[0])
    assert np.abs(left[2].astype(int) - right[2]).max() > 0


def test_guidance_zero_reads_no_conditions(pipeline: VideoPipeline):
    shared: dict[str, Any] = {"context": frames(1), "num_frames": 3, "guidance_scale": 0.0}
    left, right = (clip(pipeline, actions=actions, **shared) for actions in ("left*2", "right*2"))
    np.testing.assert_array_equal(left, right)


def test_samples_of_a_batch_are_those_of_two_batches_of_one_seed_each(pipeline: VideoPipeline):
    clips = pipeline(class_label=[0, 1, 2], batch_size=3)
    assert len(clips) == 3 and not np.array_equal(clips[0].frames, clips[1].frames)


def test_a_stream_is_steered_and_rewound(pipeline: VideoPipeline):
    stream = pipeline.stream(context=frames(1), num_frames=None, seed=2)
    next(stream)
    stream.change(action="left")
    next(stream)
    bookmark = stream.bookmark()
    stream.change(action="left")
    ahead = [frame.astype(int) for frame in itertools.islice(stream, 3)]
    stream.rewind(bookmark)
    stream.change(action="right")
    other = [frame.astype(int) for frame in itertools.islice(stream, 3)]
    stream.rewind(bookmark)
    stream.change(action="left")
    again = [frame.astype(int) for frame in itertools.islice(stream, 3)]
    assert np.abs(ahead[0] - other[0]).max() > 0
    assert all(np.abs(a - b).max() <= 4 for a, b in zip(ahead, again, strict=True))


def test_a_steered_stream_is_the_clip_of_these_actions(pipeline: VideoPipeline):
    """The action that is held when frame t + 1 begins is the one that was done in frame t."""
    stream = pipeline.stream(context=frames(1), num_frames=None, seed=4)
    steered = [next(stream)]
    for action in ("left", "right", "right"):
        stream.change(action=action)
        steered.append(next(stream))
    # The clip's frames in progress read the next action, the stream's the one that is held: only the last action of
    # the clip is free, and both are equal where the action does not change.
    clip = pipeline(context=frames(1), num_frames=4, seed=4, actions="left right right right").frames
    assert np.abs(steered[0].astype(int) - clip[0]).max() <= 1
    held = pipeline.stream(context=frames(1), num_frames=None, seed=4)
    held.change(action="right")
    same = [next(held) for _ in range(4)]
    clip = pipeline(context=frames(1), num_frames=4, seed=4, actions="right*4").frames
    assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(same, clip, strict=True))


def test_rollouts_continue_training_clips_under_their_own_conditions():
    model = tiny_far()
    batch = batch_of(model)
    options = {"num_decoding_steps": 2, "num_diffusion_steps": 3}
    own, again = (roll_out(model, Rollout(batch, 2, options, torch.Generator().manual_seed(1))) for _ in range(2))
    assert own.shape == batch["tokens"].shape and torch.equal(own, again)
    assert torch.equal(own[:, :, :2], batch["tokens"][:, :, :2]) and not torch.equal(own, batch["tokens"])
    other = {**batch, "label": (batch["label"] + 1) % 3}
    changed = roll_out(model, Rollout(other, 2, options, torch.Generator().manual_seed(1)))
    assert not torch.equal(own[:, :, 2:], changed[:, :, 2:])


def test_a_world_is_played_for_longer_than_its_window(long: VideoPipeline):
    world = World(long, WorldStart(0, None, frames(1)[0], 1, {"num_decoding_steps": 2}), remembered=4)
    for _ in range(9):
        card, pixels = world.advance((1.0, 0.0))
    assert card.index == 9 and pixels.shape == (8, 12, 3)
    assert world.rewind(7).index == 7 and world.advance((0.0, 1.0))[0].index == 8


def test_weights_of_eight_bits_give_nearly_the_same(tmp_path: Path):
    folder = save_tiny_far(tmp_path / "wide", hidden_size=64, rotary_channels=(16, 24, 24))
    plain, rounded = (VideoPipeline.from_pretrained(folder, weights=weights) for weights in ("float", "int8"))
    shared: dict[str, Any] = {"class_label": 0, "num_frames": 2, "seed": 1}
    difference = clip(plain, **shared).astype(int) - clip(rounded, **shared)
    assert np.abs(difference).mean() < 20 and not np.array_equal(clip(plain, **shared), frames(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "inpainting"}, "does not do 'inpainting'"),
        ({"task": "frame-prediction"}, "needs first frames"),
        ({"task": "action-conditional"}, "needs actions"),
        ({"actions": "left*2", "num_frames": 9}, "9 latent frames need 8 actions, found 2"),
        ({"actions": "up"}, "no action 'up'"),
        ({"context": frames(5), "num_frames": 5}, "as long as the clip"),
        ({"first_frame": "a"}, "no first frames of its own"),
        ({"prompt": "a circle"}, "take no prompt"),
        ({"num_samples": 0}, "num_samples"),
        ({"class_label": "line"}, "Unknown class label"),
    ],
)
def test_calls_that_do_not_fit_are_refused(pipeline: VideoPipeline, options, message: str):
    with pytest.raises(UserError, match=message):
        pipeline.prepare(**options)


def test_contexts_longer_than_the_long_window_are_refused(long: VideoPipeline):
    with pytest.raises(UserError, match="the long window of this model holds 7, .* give at most 6"):
        long.prepare(context=frames(8), num_frames=12)
    with pytest.raises(UserError, match="reads its last 3 frames in fine patches: window must be at least that"):
        long.prepare(num_frames=4, window=2)
    assert long.prepare(context=frames(6), num_frames=9).num_frames == 9


def test_models_without_actions_and_classes_refuse_them(tmp_path: Path):
    folder = save_tiny_far(tmp_path / "plain", num_classes=None)
    pipeline = VideoPipeline.from_pretrained(folder)
    with pytest.raises(UserError, match="knows no classes"):
        pipeline.prepare(class_label=0)
    with pytest.raises(UserError, match="no condition 'prompt'"):
        pipeline.stream(num_frames=None).change(prompt="a")


def test_rows_of_actions_follow_their_names():
    old = tiny_far().action_embedding
    new = tiny_far(action_size=3).action_embedding
    assert old is not None and new is not None
    before = Described(tiny_config(), actions=KEYS)
    spec = KEYS.plain(("right", "jump", "left"), "buttons")
    change = Change(old.weight, new.weight, before, Described(tiny_config(action_size=3), actions=spec), {})
    rows = action_rows_of_table(change)
    assert np.allclose(rows[[0, 2, 3]].detach(), old.weight[[1, 0, 2]].detach())
    assert not rows[1].any()
