"""A played stream: keys lead to frames, every frame can be returned to, memory is bounded."""

from pathlib import Path

import numpy as np
import pytest

from mutoscope.errors import UserError
from mutoscope.models.magi import MAGI
from mutoscope.pipeline import VideoPipeline
from mutoscope.playground.world import World, WorldStart
from tiny_magi import save_steered_magi
from tiny_models import save_tiny_model

PICTURE = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
LEFT, RIGHT = (-1.0, 0.0), (1.0, 0.0)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> VideoPipeline:
    return VideoPipeline.from_pretrained(save_steered_magi(tmp_path_factory.mktemp("magi") / "m"))


def world_of(pipeline: VideoPipeline, remembered: int = 50, **start: object) -> World:
    return World(pipeline, WorldStart(class_label="square", **start), remembered)  # type: ignore[arg-type]


def played(world: World, actions: list[tuple[float, ...]]) -> list[np.ndarray]:
    return [world.advance(action)[1] for action in actions]


def equal(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(np.abs(x.astype(int) - y).max() <= 1 for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("picture", [None, PICTURE])
def test_what_is_played_is_what_the_pipeline_generates_under_the_same_actions(pipeline, picture):
    world = world_of(pipeline, picture=picture, seed=3)
    frames = [world.first.pixels(), *played(world, [LEFT, RIGHT, RIGHT])]
    context = {} if picture is None else {"context": picture}
    actions = np.array([LEFT, RIGHT, RIGHT], np.float32)
    clip = pipeline(class_label="square", seed=3, actions=actions, num_frames=4, **context)
    assert equal(frames, list(clip.frames))


def test_a_key_changes_the_very_next_frame(pipeline: VideoPipeline):
    one, other = world_of(pipeline), world_of(pipeline)
    assert equal(played(one, [LEFT]), played(other, [LEFT]))
    assert not equal(played(one, [LEFT]), played(other, [RIGHT]))


@pytest.mark.parametrize("picture", [None, PICTURE])
def test_work_ahead_reads_the_frame_before_and_changes_nothing(pipeline: VideoPipeline, picture, monkeypatch):
    actions, reads = [LEFT, RIGHT] * 3, []
    frames = played(world_of(pipeline, picture=picture), actions)
    world, model = world_of(pipeline, picture=picture), pipeline.model
    assert isinstance(model, MAGI)
    observe, again = model.observe, []
    world.work_ahead()  # before the first frame there is nothing to do
    monkeypatch.setattr(model, "observe", lambda *rest: (reads.append(rest), observe(*rest)))
    for action in actions:
        again.append(world.advance(action)[1])
        reads.clear()
        world.work_ahead()
        assert reads
    assert equal(frames, again)


@pytest.mark.parametrize("picture", [None, PICTURE])
@pytest.mark.parametrize("index", [0, 1, 3])
def test_every_frame_can_be_returned_to(pipeline: VideoPipeline, picture, index: int):
    world = world_of(pipeline, picture=picture)
    frames = [world.first.pixels(), *played(world, [LEFT] * 5)]
    card = world.rewind(index)
    assert card.index == index and (card.pixels() == frames[index]).all()
    assert world.last.index == index
    assert equal(played(world, [LEFT] * 2), frames[index + 1 : index + 3])
    world.rewind(index)
    assert not equal(played(world, [RIGHT]), frames[index + 1 : index + 2])


def test_only_so_many_frames_are_remembered_and_the_first_one(pipeline: VideoPipeline):
    world = world_of(pipeline, remembered=4)
    first = world.first.pixels()
    played(world, [LEFT] * 9)
    assert world.indices == range(6, 10) and [card.index for card in world.cards()] == [6, 7, 8, 9]
    with pytest.raises(UserError, match="Frame 5 is not remembered"):
        world.rewind(5)
    assert (world.rewind(0).pixels() == first).all()
    assert world.indices == range(0, 1)


def test_cards_know_their_actions_and_times(pipeline: VideoPipeline):
    world = world_of(pipeline)
    card, _ = world.advance(LEFT)
    assert card.action == LEFT and card.index == 1
    assert card.seconds_sampling > 0 and card.seconds_decoding > 0


def test_models_without_such_streams_are_refused(tmp_path: Path):
    magvit = VideoPipeline.from_pretrained(save_tiny_model(tmp_path / "m"))
    with pytest.raises(UserError, match="do not generate streams that can be steered"):
        World(magvit, WorldStart(), 10)
