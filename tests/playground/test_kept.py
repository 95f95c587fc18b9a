"""What is kept for clients is bounded in number, size and time."""

import pytest

from mutoscope.errors import UserError
from mutoscope.playground.kept import Kept


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_names_cannot_be_guessed_and_lead_to_what_was_kept():
    kept: Kept[str] = Kept(10, 100, 60)
    names = [kept.add(f"value {i}", 1) for i in range(5)]
    assert len(set(names)) == 5 and all(len(name) >= 16 for name in names)
    assert [kept.get(name) for name in names] == [f"value {i}" for i in range(5)]
    with pytest.raises(UserError, match="no longer here"):
        kept.get("../etc/passwd")


def test_the_oldest_is_forgotten_where_there_are_too_many():
    kept: Kept[int] = Kept(3, 100, 60)
    names = [kept.add(i, 1) for i in range(5)]
    assert len(kept) == 3
    assert [kept.get(name) for name in names[2:]] == [2, 3, 4]
    with pytest.raises(UserError):
        kept.get(names[0])


def test_the_oldest_is_forgotten_where_they_are_too_large_together():
    kept: Kept[int] = Kept(10, 100, 60)
    names = [kept.add(i, 40) for i in range(3)]
    with pytest.raises(UserError):
        kept.get(names[0])
    assert kept.get(names[1]) == 1
    with pytest.raises(UserError, match="too many to keep"):
        kept.add(4, 101)


def test_everything_is_forgotten_after_a_while():
    clock = Clock()
    kept: Kept[int] = Kept(10, 100, 60, clock)
    name = kept.add(1, 1)
    clock.now = 61
    assert len(kept) == 0
    with pytest.raises(UserError):
        kept.get(name)
