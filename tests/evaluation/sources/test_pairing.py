"""Which videos of two folders belong together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mutoscope.errors import UserError
from mutoscope.evaluation.sources.pairing import pair_videos

NAMES = st.lists(st.text("abc/", min_size=1, max_size=4), max_size=8, unique=True)


def test_equal_names_below_the_folders_pair_up_and_others_do_not():
    found = pair_videos(["run/a", "run/b", "c"], ["c", "run/b", "b"], "names")
    assert found.pairs == ((1, 1), (2, 0)) and "by name" in found.how


def test_numbered_samples_belong_to_the_video_they_are_named_after():
    assert pair_videos(["a-0", "a-1", "b_2", "d-0"], ["a", "b"], "names").pairs == ((0, 0), (1, 0), (2, 1))
    assert pair_videos(["a-0", "a-1"], ["a-1", "a-0"], "names").pairs == ((0, 1), (1, 0))  # the whole name wins


def test_file_names_count_where_the_sub_folders_differ_but_only_if_they_occur_once():
    found = pair_videos(["x/a", "x/b", "y/b"], ["z/a", "z/b"], "names")
    assert found.pairs == ((0, 0),) and "file name" in found.how


def test_order_needs_equally_many_and_ignores_names():
    assert pair_videos(["a", "b"], ["x", "y"], "order").pairs == ((0, 0), (1, 1))
    with pytest.raises(UserError, match="equally many videos on both sides, found 2 and 1"):
        pair_videos(["a", "b"], ["x"], "order")


def test_nothing_pairs_up_without_common_names_or_on_request():
    assert pair_videos(["a"], ["b"], "names").pairs == () and pair_videos(["a"], ["a"], "none").pairs == ()
    assert pair_videos(["a"], ["b"], "names").how == "not paired: no names are equal"


@given(NAMES, NAMES)
def test_every_video_of_mine_has_at_most_one_partner_and_equal_names_find_each_other(mine, real):
    pairs = pair_videos(mine, real, "names").pairs
    assert len({own for own, _ in pairs}) == len(pairs)
    expected = {(mine.index(name), real.index(name)) for name in set(mine) & set(real)}
    assert expected <= set(pairs)
