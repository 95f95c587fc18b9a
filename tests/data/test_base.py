import numpy as np
import pytest

from mutoscope.data.base import LABEL, MAX_INTERVAL, Field, Item, StackedItems, check_interval
from mutoscope.errors import UserError
from mutoscope.models import magi


class Items:
    actions = None
    """Five clips of one pixel, each as bright as its number."""

    class_names = ("dark", "bright")
    episodes = np.array([0, 0, 0, 1, 1])

    @property
    def fields(self) -> dict[str, Field]:
        return {"label": LABEL}

    def __len__(self) -> int:
        return 5

    def __getitem__(self, item: int, /) -> Item:
        return {"video": np.full((2, 1, 1, 3), item, np.uint8), "label": item // 3, "caption": f"clip {item}"}


def test_items_of_a_dataset_are_stacked_in_the_requested_order():
    source = StackedItems(Items())
    batch = source[[4, 1]]
    assert source.num_clips == 5
    assert batch["video"][:, 0, 0, 0, 0].tolist() == [4, 1] and batch["caption"] == ["clip 4", "clip 1"]
    assert batch["label"].tolist() == [1, 0]


def test_a_stacked_source_has_the_classes_and_fields_of_its_dataset():
    source = StackedItems(Items())
    assert source.class_names == ("dark", "bright") and source.fields == {"label": LABEL}
    assert source.episodes is Items.episodes


def test_intervals_are_limited_to_those_that_magi_embeds():
    assert MAX_INTERVAL == magi.MAX_INTERVAL
    check_interval(MAX_INTERVAL)
    with pytest.raises(UserError, match=r"between 1 and 25, found 26"):
        check_interval(MAX_INTERVAL + 1)
