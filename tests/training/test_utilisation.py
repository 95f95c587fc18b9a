import pytest
import torch

from mutoscope.recipes.shapes import magi_shapes, shapes_features, vq_shapes
from mutoscope.training.config import LoopConfig
from mutoscope.training.utilisation import FIRST_SECONDS, Utilisation, tokens_per_clip
from training.test_pace import Clock

LOOP = LoopConfig(100, 4)
CPU = torch.device("cpu")
RATE = 1e6  # operations per second of the device in these tests
PRODUCT = 2 * 10 * 20 * 30  # operations of the update


def update() -> None:
    torch.mm(torch.ones(10, 20), torch.ones(20, 30))


def started(clock: Clock, tokens: int | None = None) -> Utilisation:
    return Utilisation(LOOP, CPU, tokens, clock, lambda device, number: RATE)


def test_tokens_of_a_clip_are_those_that_the_model_predicts():
    assert tokens_per_clip(magi_shapes()) == 16 * 4 * 4  # patches of 2x2 latents
    assert tokens_per_clip(vq_shapes()) is None and tokens_per_clip(shapes_features()) is None


def test_speed_in_clips_tokens_and_the_share_of_waiting():
    values = started(Clock(), tokens=256).values(updates=10, seconds=20.0, waiting=5.0)
    assert values == {"clips_per_second": 2.0, "data_share": 0.25, "tokens_per_second": 512.0}
    assert "tokens_per_second" not in started(Clock()).values(10, 20.0, 0.0)


def test_one_update_is_counted_once_the_run_is_long_enough():
    clock = Clock()
    use = started(clock)
    with use.counting() as counted:
        update()
    assert not counted and "model_flops_use" not in use.values(1, 1.0, 0.0)
    clock.now += FIRST_SECONDS
    with use.counting() as counted:
        update()
    assert counted
    assert use.values(10, 2.0, 0.0)["model_flops_use"] == pytest.approx(10 * PRODUCT / 2 / RATE)
    with use.counting() as counted:
        update()
    assert not counted


def test_the_sentence_for_the_log_names_what_is_known():
    clock = Clock()
    use = started(clock, tokens=256)
    assert use.sentence() == ""
    use.values(10, 20.0, 5.0)
    assert use.sentence() == "Lately 2 clips/s, 512 tokens/s, 25.0% of the time waiting for data."
    clock.now += FIRST_SECONDS
    with use.counting():
        update()
    use.values(10, 2.0, 0.0)
    assert "6.0% of the" in use.sentence() and "matrix products of float32" in use.sentence()


def test_bfloat16_is_compared_with_its_own_products():
    loop = LoopConfig(100, 4, autocast="bf16")
    numbers: list[str] = []

    def rate(device: torch.device, number: str) -> float:
        numbers.append(number)
        return RATE

    clock = Clock()
    use = Utilisation(loop, CPU, None, clock, rate)
    clock.now += FIRST_SECONDS
    with use.counting():
        update()
    assert numbers == ["bfloat16"]
