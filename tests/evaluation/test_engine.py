"""`evaluate` as the command line uses it: every protocol by name, and the same figures from several processes."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mutoscope.errors import UserError
from mutoscope.evaluation.engine import PROTOCOLS, Report, evaluate
from mutoscope.evaluation.networks.shapes_classifier import ShapesClassifier
from mutoscope.evaluation.protocols.published import VIDEO_PROTOCOLS
from mutoscope.evaluation.sources.shapes_clips import shapes_listing
from mutoscope.ownership import owned
from small_shapes_model import save_small_model


def listed(classifier: ShapesClassifier, seed: int, protocol: str = "shapes") -> Report:
    return evaluate(shapes_listing(4, seed=seed), protocol, num_clips=4, classifier=classifier)


@pytest.mark.parametrize("protocol", ["shapes", "shapes-files", "shapes-10k"])
def test_protocols_of_either_kind_measure_the_same_clips_alike(classifier: ShapesClassifier, protocol: str):
    real = listed(classifier, 1_000_003, protocol)["metrics"]
    other = listed(classifier, 5, protocol)["metrics"]
    assert real["shapes_fvd"]["value"] == pytest.approx(0, abs=1e-6)  # the real clips themselves
    assert (other["shapes_fvd"]["value"] or 0) > 1e-3
    assert real["shapes_fvd_real"] == other["shapes_fvd_real"]


def test_a_protocol_of_ones_own_needs_no_name(classifier: ShapesClassifier):
    own = replace(VIDEO_PROTOCOLS["shapes-10k"], name="two-clips", num_clips=2, num_real=2)
    report = evaluate(shapes_listing(2, seed=5), own, classifier=classifier)
    assert report["protocol"] == "two-clips" and report["num_clips"] == 2
    assert "two-clips" not in PROTOCOLS


def test_the_source_is_named_or_described_by_its_type(classifier: ShapesClassifier):
    assert listed(classifier, 5)["source"] == "ClipListing"


def test_unknown_protocols_are_refused_before_the_source_is_opened():
    with pytest.raises(UserError, match="Unknown protocol 'bair-frame': did you mean 'bair-frame-prediction'"):
        evaluate("no-such-model", "bair-frame")


def run(command: list[str]) -> None:
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


def refused(command: list[str], state: Path) -> str:
    """What an evaluation says whose state belongs to another process; torchrun's own report follows."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with owned(state, "evaluate"):
        command = [sys.executable, *command, "--state", str(state)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1, done.stderr[-3000:]
    return done.stderr


@pytest.mark.slow
def test_two_processes_share_the_clips_of_a_shapes_protocol(tmp_path: Path):
    model = save_small_model(tmp_path / "small")
    options = ["evaluate", str(model), "--num-clips", "6", "--batch-size", "2", "--num-decoding-steps", "1", "--out"]
    processes = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run(["-m", "mutoscope", *options, str(tmp_path / "one.json")])
    run([*processes, "-m", "mutoscope", *options, str(tmp_path / "two.json"), "--state", str(tmp_path / "state")])
    said = refused([*processes, "-m", "mutoscope", *options, str(tmp_path / "no.json")], tmp_path / "state")
    assert said.count("mutoscope: ") == 1 and "is being written by `mutoscope evaluate`" in said, said
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one["metrics"] == two["metrics"] and {"shapes_fvd", "prediction_psnr_db"} <= set(one["metrics"])
