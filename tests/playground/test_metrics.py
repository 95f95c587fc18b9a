"""The text that Prometheus reads."""

from mutoscope.playground.metrics import BOUNDS, Metrics, exposition


def test_counters_gauges_and_the_histogram_are_listed():
    metrics = Metrics(frames=3, refused=1)
    for seconds in (0.005, 0.03, 0.03, 99.0):
        metrics.frame_seconds.observe(seconds)
    lines = exposition(metrics, {"sessions_active": 2}).splitlines()
    assert "mutoscope_frames_total 3" in lines and "mutoscope_sessions_active 2" in lines
    assert 'mutoscope_frame_seconds_bucket{le="0.01"} 1' in lines
    assert 'mutoscope_frame_seconds_bucket{le="0.05"} 3' in lines
    assert 'mutoscope_frame_seconds_bucket{le="+Inf"} 4' in lines and "mutoscope_frame_seconds_count 4" in lines


def test_a_bound_belongs_to_its_own_bucket():
    metrics = Metrics()
    metrics.frame_seconds.observe(BOUNDS[0])
    assert f'mutoscope_frame_seconds_bucket{{le="{BOUNDS[0]:g}"}} 1' in exposition(metrics, {})
