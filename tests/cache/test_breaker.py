"""When a source is left alone, how it is looked at, and when it is asked again. All time is virtual."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.sources.breaker import Breaker, BreakerLimits
from cache.sources.measured import Measured, Numbers
from manifest.errors import AccessDenied, DamfsError, DigestMismatch, KnownDown, NotFound, Unavailable
from tests.cache.played import DATA, FOREVER, Played, Unprobed, ref, unobserved

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.usefixtures("expects_log")

LIMITS = BreakerLimits()


@asynccontextmanager
async def running(source: Unprobed) -> AsyncIterator[Breaker]:
    breaker = Breaker(Measured(source, Numbers(), unobserved), Numbers(), LIMITS, raw=source)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(breaker.run)
        yield breaker
        nursery.cancel_scope.cancel()


async def outcome(breaker: Breaker, *, within_s: float = 30) -> bytes | type[DamfsError]:
    try:
        return bytes(await breaker.fetch(ref(), trio.current_time() + within_s))
    except DamfsError as error:
        return type(error)


async def failures(breaker: Breaker, count: int) -> None:
    for _ in range(count):
        assert await outcome(breaker) is Unavailable


async def test_a_source_that_fails_again_and_again_is_asked_no_more(autojump_clock: trio.testing.MockClock) -> None:
    source = Played()
    source.down()
    async with running(source) as breaker:
        await failures(breaker, LIMITS.failures_max)
        asked = len(source.asked)
        assert await outcome(breaker) is KnownDown
        assert len(source.asked) == asked
        assert breaker.status().breaker == "open"
        assert "connection refused" in (breaker.status().down_because or "")


async def test_one_good_answer_makes_up_for_the_failures_before_it(autojump_clock: trio.testing.MockClock) -> None:
    source = Played()
    async with running(source) as breaker:
        for _ in range(3):
            source.down()
            await failures(breaker, LIMITS.failures_max - 1)
            source.up()
            assert await outcome(breaker) == DATA


@pytest.mark.parametrize("answer", [NotFound("gone"), AccessDenied("no"), DigestMismatch("wrong")])
async def test_what_is_an_answer_is_no_failure(autojump_clock: trio.testing.MockClock, answer: DamfsError) -> None:
    source = Played(fault=answer)
    async with running(source) as breaker:
        for _ in range(20):
            assert await outcome(breaker) is type(answer)


async def test_it_is_asked_again_within_seconds_of_its_return_without_any_request(
    autojump_clock: trio.testing.MockClock,
) -> None:
    source = Played()
    source.down()
    async with running(source) as breaker:
        await failures(breaker, LIMITS.failures_max)
        await trio.sleep(600)
        assert len(source.probed) <= 600 / (LIMITS.pause_s_max / 2) + 10
        source.up()
        returned = trio.current_time()
        while breaker.reason is not None:  # noqa: ASYNC110  virtual time
            await trio.sleep(0.1)
        assert trio.current_time() - returned <= LIMITS.pause_s_max + 0.2
        assert await outcome(breaker) == DATA


async def test_a_reason_to_hope_has_it_probed_at_once(autojump_clock: trio.testing.MockClock) -> None:
    source = Played()
    source.down()
    async with running(source) as breaker:
        await failures(breaker, LIMITS.failures_max)
        await trio.sleep(60)
        source.up()
        breaker.hurry()
        await trio.sleep(0.05)
        assert breaker.reason is None


async def test_one_probe_at_a_time_however_often_somebody_hopes(autojump_clock: trio.testing.MockClock) -> None:
    source = Played()
    source.down()
    async with running(source) as breaker:
        await failures(breaker, LIMITS.failures_max)
        source.probe_delay_s = 1
        for _ in range(100):
            breaker.hurry()
            await trio.sleep(0.05)
        assert source.probes_at_once == 1
        assert len(source.probed) <= 8


async def test_readers_are_told_at_once_while_a_probe_is_under_way(autojump_clock: trio.testing.MockClock) -> None:
    source = Played()
    source.down()
    async with running(source) as breaker:
        await failures(breaker, LIMITS.failures_max)
        source.probe_delay_s = FOREVER
        await trio.sleep(1.5)
        assert breaker.status().breaker == "half-open"
        begun = trio.current_time()
        assert await outcome(breaker) is KnownDown
        assert trio.current_time() == begun


async def test_a_source_that_is_slow_but_answers_a_probe_is_not_down(autojump_clock: trio.testing.MockClock) -> None:
    source = Played(delay_s=FOREVER)
    async with running(source) as breaker:
        for _ in range(10):
            assert await outcome(breaker, within_s=15) is Unavailable
        assert breaker.reason is None
        assert source.probed


async def test_a_source_that_gives_nothing_and_answers_no_probe_is_down_and_whoever_waits_is_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    source = Played()
    source.mute()
    async with running(source) as breaker:
        begun = trio.current_time()
        assert await outcome(breaker, within_s=600) is KnownDown
        assert trio.current_time() - begun <= LIMITS.silence_s + 4.1
        assert source.given_up == 1


async def test_a_source_that_cannot_be_probed_is_asked_for_what_was_wanted_last(
    autojump_clock: trio.testing.MockClock,
) -> None:
    source = Unprobed(fault=Unavailable("down"), delay_s=0.01)
    async with running(source) as breaker:
        await failures(breaker, LIMITS.failures_max)
        source.fault = None
        await trio.sleep(1)
        assert breaker.reason is None


async def test_an_answer_to_a_request_from_before_closes_it(autojump_clock: trio.testing.MockClock) -> None:
    source = Played()
    async with running(source) as breaker, trio.open_nursery() as nursery:
        source.delay_s = 1.5
        nursery.start_soon(outcome, breaker)
        await trio.sleep(0.1)
        source.down()
        await failures(breaker, LIMITS.failures_max)
        assert breaker.reason is not None
        await trio.sleep(1.5)
        assert breaker.reason is None


async def test_wrong_answers_open_it_when_they_are_more_than_one_in_ten(autojump_clock: trio.testing.MockClock) -> None:
    source = Played()
    async with running(source) as breaker:
        for _ in range(20):
            breaker.blame("flipped")
            for _ in range(12):
                assert await outcome(breaker) == DATA
        assert breaker.reason is None
        seen = set()
        for _ in range(10):
            breaker.blame("flipped")
            seen.add(await outcome(breaker))
        assert KnownDown in seen


async def test_with_too_little_time_nothing_is_asked_and_nobody_blamed(autojump_clock: trio.testing.MockClock) -> None:
    source = Played()
    async with running(source) as breaker:
        for _ in range(20):
            assert await outcome(breaker, within_s=0.01) is Unavailable
        assert source.asked == []
        assert breaker.reason is None


async def test_what_is_held_passes_nothing_not_even_probes(autojump_clock: trio.testing.MockClock) -> None:
    source = Played()
    async with running(source) as breaker:
        breaker.hold("offline, as asked for")
        assert await outcome(breaker) is KnownDown
        await trio.sleep(60)
        assert (source.asked, source.probed) == ([], [])
        breaker.hold(None)
        assert await outcome(breaker) == DATA


STEP = st.tuples(st.sampled_from(["ok", "down", "mute", "slow", "missing"]), st.floats(0.01, 20), st.integers(0, 8))


@settings(max_examples=60, deadline=None)
@given(st.lists(STEP, max_size=12))
def test_whatever_a_source_does_every_request_ends_in_time_and_a_source_that_is_well_is_asked_within_seconds(
    steps: list[tuple[str, float, int]],
) -> None:
    async def main() -> None:
        source = Played()
        async with running(source) as breaker, trio.open_nursery() as nursery:
            for what, seconds, readers in steps:
                source.up()
                source.probe_delay_s = 0.01
                if what == "down":
                    source.down()
                elif what == "mute":
                    source.mute()
                elif what == "slow":
                    source.delay_s = 5
                elif what == "missing":
                    source.fault = NotFound("gone")
                for _ in range(readers):
                    nursery.start_soon(in_time, breaker)
                await trio.sleep(seconds)
                state = breaker.status().breaker
                assert (breaker.reason is None) == (state == "closed")
                assert source.probes_at_once <= 1
            source.up()
            source.probe_delay_s = 0.01
            await trio.sleep(35)  # what is still under way has ended, and the longest pause and a probe are over
            assert await outcome(breaker) == DATA

    async def in_time(breaker: Breaker) -> None:
        begun = trio.current_time()
        await outcome(breaker, within_s=20)
        assert trio.current_time() - begun <= 20.001

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_a_probe_that_meets_a_bug_or_no_thread_is_a_failed_one_and_ends_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    source = Played()
    source.down()
    async with running(source) as breaker:
        await failures(breaker, LIMITS.failures_max)
        source.probe_fault = RuntimeError("can't start new thread")  # type: ignore[assignment]  # nothing it may raise
        await trio.sleep(20)
        assert "can't start new thread" in (breaker.status().down_because or "")
        source.up()
        await trio.sleep(LIMITS.pause_s_max + 1)
        assert await outcome(breaker) == DATA
