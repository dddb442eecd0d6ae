"""How many requests are under way on lines of all kinds. Time is virtual; the lines are models."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from cache.queue import Priority, Queue
from cache.window import AFRESH_S, LIMIT_MIN, Window
from tests.cache.contents import MIB

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio.testing

    Clock = trio.testing.MockClock


class Line:
    """Fetches of 1 MiB through a queue; ``takes_s`` tells for how long one takes with so many under way."""

    def __init__(self, takes_s: Callable[[int], float], prompt_s: float = 1.0) -> None:
        self.queue = Queue(1024 * MIB, window=Window(16, prompt_s))
        self.takes_s = takes_s
        self.done = 0
        self.slowest = 0.0
        self.under_way = 0

    async def fetch(self, priority: Priority = Priority.DEMAND) -> float:
        asked = trio.current_time()
        turn = self.queue.enter(MIB, priority)
        try:
            await turn.begun.wait()
            waited_s, begun = trio.current_time() - asked, trio.current_time()
            self.under_way += 1
            left = 1.0
            while left > 0:  # what is sent in a moment depends on how many share the line in it
                await trio.sleep(0.05)
                left -= 0.05 / self.takes_s(self.under_way)
            self.under_way -= 1
            self.done += 1
            seconds = trio.current_time() - begun
            self.slowest = max(self.slowest, seconds)
            self.queue.answered(MIB, seconds, is_good=True)
            return waited_s
        finally:
            self.queue.leave(turn)

    async def read_on(self) -> None:
        while True:
            await self.fetch()


async def test_on_a_thin_line_requests_come_one_after_the_other_and_none_is_slow(autojump_clock: Clock) -> None:
    line = Line(lambda count: 0.5 * count)  # 2 MiB/s for all together
    async with trio.open_nursery() as nursery:
        for _ in range(48):
            nursery.start_soon(line.read_on)
        await trio.sleep(10)
        line.slowest = 0
        await trio.sleep(40)
        assert line.slowest < 3.5
        assert line.done >= 0.9 * 2 * 50
        assert LIMIT_MIN <= line.queue.fetches_max <= 7
        nursery.cancel_scope.cancel()


async def test_on_a_line_that_limits_each_connection_all_places_are_used(autojump_clock: Clock) -> None:
    line = Line(lambda _: 2.0)
    async with trio.open_nursery() as nursery:
        for _ in range(48):
            nursery.start_soon(line.read_on)
        await trio.sleep(12)
        assert line.queue.fetches_max == 16
        nursery.cancel_scope.cancel()


async def test_on_a_quick_line_all_places_are_used_within_a_moment(autojump_clock: Clock) -> None:
    line = Line(lambda _: 0.05)
    async with trio.open_nursery() as nursery:
        for _ in range(48):
            nursery.start_soon(line.read_on)
        await trio.sleep(0.3)
        assert line.queue.fetches_max == 16
        nursery.cancel_scope.cancel()


async def test_a_line_that_becomes_quick_again_is_used_again(autojump_clock: Clock) -> None:
    line = Line(lambda count: 0.5 * count)
    async with trio.open_nursery() as nursery:
        for _ in range(48):
            nursery.start_soon(line.read_on)
        await trio.sleep(30)
        line.takes_s = lambda _: 0.05
        await trio.sleep(AFRESH_S / 6)
        assert line.queue.fetches_max == 16
        nursery.cancel_scope.cancel()


async def test_on_a_thin_line_a_reader_still_goes_before_what_is_fetched_ahead(autojump_clock: Clock) -> None:
    line = Line(lambda count: 0.5 * count)

    async def ahead() -> None:
        while True:
            await line.fetch(Priority.READ_AHEAD)

    async with trio.open_nursery() as nursery:
        for _ in range(48):
            nursery.start_soon(ahead)
        await trio.sleep(30)
        assert await line.fetch(Priority.DEMAND) < 2.5
        nursery.cancel_scope.cancel()


async def test_without_a_limit_nothing_changes_it(autojump_clock: Clock) -> None:
    window = Window(16, math.inf)
    for seconds in (0.1, 100, 0.1):
        await trio.sleep(seconds)
        window.answered(MIB, seconds, is_good=False)
        assert window.limit == 16


async def test_what_waits_for_a_source_to_come_back_takes_no_place(autojump_clock: Clock) -> None:
    queue = Queue(1024 * MIB, window=Window(2, math.inf))
    turns = [queue.enter(MIB, Priority.DEMAND) for _ in range(4)]
    assert [turn.begun.is_set() for turn in turns] == [True, True, False, False]
    queue.park(turns[0], is_parked=True)
    assert turns[2].begun.is_set()
    queue.leave(turns[0])
    assert not turns[3].begun.is_set()
    queue.leave(turns[1])
    assert turns[3].begun.is_set()
