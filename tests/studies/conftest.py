"""A classifier and settings small enough to train every variant of a paper in seconds."""

import pytest

from evaluation.fakes import tiny_classifier
from mutoscope.evaluation.networks.shapes_classifier import ShapesClassifier
from mutoscope.studies.claims import ClaimsConfig
from small_shapes_model import save_small_model


@pytest.fixture(scope="package")
def classifier() -> ShapesClassifier:
    return tiny_classifier()


@pytest.fixture(scope="package")
def config(tmp_path_factory: pytest.TempPathFactory) -> ClaimsConfig:
    folder = save_small_model(tmp_path_factory.mktemp("model") / "small")
    small = {"num_train_clips": 4, "num_clips": 3, "num_layers": 1, "hidden_size": 32}
    return ClaimsConfig(str(folder), (0,), num_steps=120, batch_size=2, **small)
