"""A small classifier of the shapes dataset, which every test of figures shares."""

import pytest

from evaluation.fakes import tiny_classifier
from mutoscope.evaluation.networks.shapes_classifier import ShapesClassifier


@pytest.fixture(scope="session")
def classifier() -> ShapesClassifier:
    return tiny_classifier()
