"""The speed benchmark: what is timed, and that figures follow from the times."""

import numpy as np
import pytest

from mutoscope.errors import UserError
from mutoscope.pipeline import VideoPipeline
from mutoscope.studies.speed import SpeedConfig, measure_speed, speed_requests
from tiny_models import tiny_index, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def pipeline() -> VideoPipeline:
    return VideoPipeline(tiny_tokenizer(), tiny_model(), tiny_index())


def test_a_row_states_frames_times_and_memory(pipeline: VideoPipeline) -> None:
    rows = measure_speed(pipeline, SpeedConfig(num_decoding_steps=(2,), batch=3, repeats=2))
    assert [row["mode"] for row in rows] == ["class-conditional", "frame-prediction"]
    for row in rows:
        assert row["frames"] == 24 and row["repeats"] == 2 and row["num_decoding_steps"] == 2
        assert row["seconds_fastest"] <= row["seconds"] <= row["seconds_slowest"]
        assert row["frames_per_second_with_decoding"] == pytest.approx(24 / row["seconds"])
        assert row["peak_memory_bytes"] > 0


def test_the_models_own_number_of_steps_is_the_default(pipeline: VideoPipeline) -> None:
    assert {request.sampling["num_decoding_steps"] for request in speed_requests(pipeline, SpeedConfig())} == {3}


def test_all_samples_are_one_batch(pipeline: VideoPipeline) -> None:
    assert all(request.num_batches == 1 for request in speed_requests(pipeline, SpeedConfig(batch=40)))


def test_warm_ups_are_run_but_not_counted(pipeline: VideoPipeline) -> None:
    runs = []
    measure_speed(pipeline, SpeedConfig(repeats=2), lambda: runs.append(1))
    assert len(runs) == 2 * 3


def test_a_model_without_the_timed_tasks_is_refused() -> None:
    pipeline = VideoPipeline(tiny_tokenizer(), tiny_model(), tiny_index(tasks=("inpaint-central",)))
    with pytest.raises(UserError, match="inpaint-central"):
        speed_requests(pipeline, SpeedConfig())


@pytest.mark.parametrize("values", [{"batch": 0}, {"repeats": 0}])
def test_counts_below_one_are_refused(values: dict) -> None:
    with pytest.raises(UserError, match=str(np.prod(list(values.values())))):
        SpeedConfig(**values)
