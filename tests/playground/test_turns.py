"""Turns are fair, places are counted, and nobody who leaves holds anything up."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from mutoscope.errors import UserError
from mutoscope.playground.turns import Turns


async def nobody(ahead: int) -> None:
    pass


def listing(told: list[int]) -> Callable[[int], Awaitable[None]]:
    async def tell(ahead: int) -> None:
        told.append(ahead)

    return tell


def test_sessions_get_a_turn_each_before_anyone_gets_a_second_one():
    async def play() -> list[int]:
        turns, done = Turns(3, 3), []

        async def session(number: int) -> None:
            async with turns.place(nobody):
                for _ in range(5):
                    await turns.do(lambda: done.append(number))

        await asyncio.gather(*(session(number) for number in range(3)))
        turns.close()
        return done

    done = asyncio.run(play())
    assert all(set(done[start : start + 3]) == {0, 1, 2} for start in range(0, 15, 3))


def test_who_waits_is_told_the_place_and_called_in_order():
    async def play() -> tuple[list[int], list[list[int]]]:
        turns, order, told = Turns(1, 5), [], [[] for _ in range(4)]
        leave = asyncio.Event()

        async def session(number: int) -> None:
            async with turns.place(listing(told[number])):
                order.append(number)
                await leave.wait()

        tasks = []
        for number in range(4):
            tasks.append(asyncio.create_task(session(number)))
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        leave.set()
        await asyncio.gather(*tasks)
        assert turns.taken == turns.queued == 0
        turns.close()
        return order, told

    order, told = asyncio.run(play())
    assert order == [0, 1, 2, 3]
    assert told[0] == [] and told[1][0] == 0 and told[3][0] == 2
    assert all(places == sorted(places, reverse=True) for places in told)


def test_who_leaves_while_waiting_gives_up_the_place():
    async def play() -> list[int]:
        turns, order = Turns(1, 5), []
        leave = asyncio.Event()

        async def session(number: int) -> None:
            async with turns.place(nobody):
                order.append(number)
                await leave.wait()

        tasks = [asyncio.create_task(session(number)) for number in range(3)]
        await asyncio.sleep(0.01)
        tasks[1].cancel()
        await asyncio.sleep(0.01)
        leave.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert turns.taken == turns.queued == 0
        turns.close()
        return order

    assert asyncio.run(play()) == [0, 2]


def test_who_is_called_and_gone_at_once_passes_the_place_on():
    async def play() -> None:
        turns = Turns(1, 5)
        first = turns.place(nobody)
        await first.__aenter__()

        async def wait() -> None:
            async with turns.place(nobody):
                pass

        gone, next_one = asyncio.create_task(wait()), asyncio.create_task(wait())
        await asyncio.sleep(0.01)
        await first.__aexit__(None, None, None)  # calls `gone`, which is cancelled before it runs
        gone.cancel()
        await asyncio.wait_for(next_one, 1)
        assert turns.taken == turns.queued == 0
        turns.close()

    asyncio.run(play())


def test_too_many_are_turned_away():
    async def play() -> None:
        turns = Turns(1, 1)
        async with turns.place(nobody):
            waiting = asyncio.create_task(turns.place(nobody).__aenter__())
            await asyncio.sleep(0.01)
            with pytest.raises(UserError, match="Too many people are waiting"):
                await turns.place(nobody).__aenter__()
        await waiting
        turns.close()

    asyncio.run(play())
