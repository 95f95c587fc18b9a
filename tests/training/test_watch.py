from collections.abc import Iterator
from typing import Any

import pytest

from mutoscope.errors import UserError
from mutoscope.training import watch as module
from mutoscope.training.watch import BEAT, LATE, SILENCE, Watch


class Store(dict[str, str]):
    """torch's store, in this process."""

    def set(self, key: str, value: str, /) -> None:
        self[key] = value

    def get(self, key: str, /) -> bytes:  # type: ignore[override]
        return self[key].encode()

    def check(self, keys: list[str], /) -> bool:
        return all(key in self for key in keys)

    def add(self, key: str, amount: int, /) -> int:
        self[key] = str(int(super().get(key, "0")) + amount)
        return int(self[key])


class Ranks:
    """Three ranks with one clock, which beat and look when time passes; those in `stopped` do neither."""

    def __init__(self) -> None:
        self.now, self.store, self.stopped = 0.0, Store(), set[int]()
        self.ended: dict[int, str] = {}
        self.watches = [self._watch(rank) for rank in range(3)]

    def _watch(self, rank: int) -> Watch:
        def give_up(sentence: str) -> None:
            self.ended[rank] = sentence
            self.stopped.add(rank)

        return Watch(self.store, rank, 3, clock=lambda: self.now, give_up=give_up)

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds / BEAT)):
            self.now += BEAT
            for watch in self.watches:
                if watch.rank not in self.stopped:
                    watch._beat()
                    watch.look()


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ranks]:
    def thread() -> Any:  # heartbeats run in a thread of their own
        return object()

    monkeypatch.setattr(module.threading, "current_thread", thread)
    found = Ranks()
    monkeypatch.setattr(module.time, "sleep", lambda seconds: found.wait(BEAT))
    yield found


def test_a_rank_that_stops_is_named_within_two_minutes_once_while_the_others_wait_for_it(ranks: Ranks):
    with ranks.watches[0].exchange(), ranks.watches[1].exchange():
        ranks.wait(600)
        assert not ranks.ended
        ranks.stopped.add(2)
        ranks.wait(SILENCE + 2 * BEAT)
    assert ranks.ended[1] == "" and SILENCE + 2 * BEAT < 120
    assert ranks.ended[0].startswith("Rank 2 (process ") and "has died or was stopped" in ranks.ended[0]


def test_a_store_that_is_gone_ends_a_meeting_in_one_sentence(ranks: Ranks, monkeypatch: pytest.MonkeyPatch):
    def gone(key: str, amount: int) -> int:
        raise RuntimeError("Broken pipe")  # of torch, without a class of its own

    monkeypatch.setattr(ranks.store, "add", gone)
    with pytest.raises(UserError, match="The process that started the ranks answers no more"):
        ranks.watches[0].meet()


def test_a_rank_that_does_not_wait_ends_with_its_next_exchange(ranks: Ranks):
    ranks.stopped.add(1)
    ranks.wait(SILENCE + 2 * BEAT)
    assert not ranks.ended  # it may be writing a file
    with pytest.raises(UserError, match=r"Rank 1 \(process \d+ on .*\) has died"), ranks.watches[0].exchange():
        pass


def test_ranks_meet_however_long_one_of_them_works_alone_while_its_heart_beats(ranks: Ranks):
    def arrived(key: str, amount: int, /) -> int:
        return 3 if ranks.now > 20_000 else 2

    ranks.store.add = arrived  # type: ignore[method-assign]
    ranks.watches[1].meet()
    assert ranks.now > 20_000 and not ranks.ended


def test_a_meeting_with_a_dead_rank_ends(ranks: Ranks):
    ranks.stopped.add(0)
    with pytest.raises(UserError, match="Rank 0"):
        ranks.watches[1].meet()
    assert ranks.now < 120


def test_a_rank_that_has_ended_is_missed_only_where_another_one_waits_for_it(ranks: Ranks):
    ranks.watches[1].leave()
    ranks.stopped.add(1)
    ranks.wait(600)
    ranks.watches[0].check()
    with ranks.watches[0].exchange():
        ranks.wait(SILENCE + 2 * BEAT)
    assert "Rank 1" in ranks.ended[0] and "has ended while the others work" in ranks.ended[0]


def test_a_living_rank_that_is_late_is_named_and_not_ended(ranks: Ranks, capsys: pytest.CaptureFixture[str]):
    with ranks.watches[0].exchange(), ranks.watches[2].exchange():
        ranks.wait(LATE)
        assert capsys.readouterr().err == ""
        ranks.wait(LATE)
        said = capsys.readouterr().err
    assert said.count("has kept the others waiting") == 1 and "Rank 1" in said and not ranks.ended


def test_a_pause_of_all_ranks_is_no_failure(ranks: Ranks):
    """A laptop that slept: every rank sees that it was away itself."""
    with ranks.watches[0].exchange(), ranks.watches[1].exchange(), ranks.watches[2].exchange():
        ranks.wait(60)
        ranks.now += 10 * SILENCE
        ranks.wait(60)
    assert not ranks.ended


def test_an_exchange_that_breaks_off_names_the_rank_whose_heart_stopped(ranks: Ranks):
    ranks.wait(60)
    ranks.stopped.add(2)
    began = ranks.now
    with pytest.raises(UserError, match="Rank 2"), ranks.watches[0].exchange():
        raise RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:544] Connection closed by peer")
    assert ranks.now - began <= SILENCE


def test_faults_of_the_training_step_are_not_taken_for_those_of_an_exchange(ranks: Ranks):
    with pytest.raises(RuntimeError, match="shapes"), ranks.watches[0].exchange():
        raise RuntimeError("shapes cannot be multiplied")
