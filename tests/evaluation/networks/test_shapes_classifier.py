"""The classifier: readings of clips, and which of them are correct."""

import torch

from mutoscope.data.sources.shapes.world import ShapesConfig
from mutoscope.evaluation.networks.shapes_classifier import Readings
from mutoscope.evaluation.sources.shapes_clips import real_clips


def test_readings_do_not_depend_on_what_else_is_read(classifier):
    clips = real_clips(ShapesConfig(num_frames=8), 0, 35).video  # more than one batch
    together, alone = classifier.read(clips), classifier.read(clips[33:34])
    assert len(together) == 35 and together.features.dtype == torch.float64
    torch.testing.assert_close(together.features[33:34], alone.features, atol=1e-5, rtol=1e-5)


def test_clips_of_mixed_sizes_are_read_at_the_size_of_the_classifier(classifier):
    flat = [torch.full((16, h, w, 3), 90, dtype=torch.uint8) for h, w in ((32, 32), (64, 48), (20, 90))]
    features = classifier.read(flat).features
    torch.testing.assert_close(features[0], features[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features[0], features[2], atol=1e-5, rtol=1e-5)


def test_a_choice_head_must_name_the_attribute_and_a_presence_head_every_entry():
    logits = {
        "class": torch.eye(3) * 5,
        "num_objects": torch.tensor([[9.0, 0, 0], [0, 9.0, 0], [0, 0, 9.0]]),
        "colors_present": torch.tensor([[4.0, -4.0], [4.0, 4.0], [-4.0, -4.0]]),
    }
    readings = Readings(torch.zeros(3, 2), logits)
    truth = {
        "class": torch.tensor([0, 2, 2]),
        "num_objects": torch.tensor([1, 2, 1]),
        "colors_present": torch.tensor([[1, 0], [1, 0], [0, 0]]),
    }
    assert readings.correct("class", truth).tolist() == [True, False, True]
    assert readings.correct("num_objects", truth).tolist() == [True, True, False]
    assert readings.correct("colors_present", truth).tolist() == [True, False, True]
