"""Budgets: what may be done beyond the ordinary, and that retries keep to it. All time is virtual."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from cache.sources.allowance import Allowance
from cache.sources.hedged import Hedged
from cache.sources.latency import ANSWERS_MIN, Latencies
from cache.sources.measured import Measured, Numbers
from cache.sources.retry import Retrying
from manifest.errors import KnownDown, Unavailable
from tests.cache.played import DATA, Played, ref, unobserved

Clock = trio.testing.MockClock
STEP = st.tuples(st.sampled_from(["earn", "take", "wait"]), st.floats(0.01, 50))


@given(st.floats(0, 1), st.floats(0, 5), st.floats(0, 100), st.lists(STEP, max_size=60))
def test_what_is_taken_is_never_more_than_the_share_the_rate_and_what_there_was(
    share: float, rate: float, tokens_max: float, steps: list[tuple[str, float]]
) -> None:
    async def main() -> None:
        allowance, earned, taken, begun = Allowance(share, rate, tokens_max), 0.0, 0.0, trio.current_time()
        for what, amount in steps:
            if what == "earn":
                allowance.earn(amount)
                earned += amount
            elif what == "wait":
                await trio.sleep(amount)
            else:
                wait_s = allowance.wait_s(amount)
                was_given = allowance.take(amount)
                assert was_given == (wait_s == 0)
                taken += min(amount, tokens_max) if was_given else 0
            assert taken <= share * earned + rate * (trio.current_time() - begun) + tokens_max + 1e-6

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_a_dead_store_is_not_stormed_by_retries(autojump_clock: Clock) -> None:
    source, numbers = Played(fault=Unavailable("down"), delay_s=0.01), Numbers()
    retrying = Retrying(source, budget=Allowance(0.1, 2, 50), numbers=numbers)
    async with trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(fails, retrying, number, 120)
    assert 200 < len(source.asked) <= 200 + 0.1 * 200 + 50 + 2 * 120
    assert numbers.retries == len(source.asked) - 200
    assert numbers.retries_delayed > 0


async def fails(source: Retrying, number: int, within_s: float) -> None:
    begun = trio.current_time()
    with pytest.raises(Unavailable):
        await source.fetch(ref(number), begun + within_s)
    assert trio.current_time() - begun <= within_s


async def test_when_the_store_answers_again_nobody_waits_for_the_budget(autojump_clock: Clock) -> None:
    source, done = Played(fault=Unavailable("down"), delay_s=0.01), list[float]()
    retrying = Retrying(source, budget=Allowance(0, 0.01, 5))

    async def fetch(number: int) -> None:
        assert await retrying.fetch(ref(number), trio.current_time() + 600) == DATA
        done.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(fetch, number)
        await trio.sleep(60)
        source.up()
        retrying.hurry()
        await trio.sleep(0.5)
        assert len(done) == 50


async def test_a_new_reader_is_no_retry_and_does_not_wait_for_the_budget(autojump_clock: Clock) -> None:
    source = Played(fault=Unavailable("down"), delay_s=0.01)
    retrying = Retrying(source, budget=Allowance(0, 0.001, 1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(retrying.fetch, ref(), trio.current_time() + 600)
        await trio.sleep(60)
        asked = len(source.asked)
        retrying.hurry(ref())
        await trio.sleep(0.5)
        assert len(source.asked) > asked
        nursery.cancel_scope.cancel()


async def test_what_is_known_to_be_down_is_not_asked_again(autojump_clock: Clock) -> None:
    source = Played(fault=KnownDown("down since noon"))
    with pytest.raises(KnownDown):
        await Retrying(source).fetch(ref(), trio.current_time() + 30)
    assert len(source.asked) == 1


async def test_hedges_are_few_percent_however_slow_everything_becomes(autojump_clock: Clock) -> None:
    source, numbers = Played(), Numbers()
    hedging = Hedged(Measured(source, numbers, unobserved), numbers, Allowance(0.05, 0, 10))
    for number in range(300):
        source.delay_s = 0.1 * 1.015**number if number > 100 else 0.1  # each is slower than what came before
        assert await hedging.fetch(ref(number), trio.current_time() + 600) == DATA
    assert 0 < numbers.hedges_sent <= 10 + 0.05 * 300


async def test_where_all_are_slow_a_second_request_is_not_made(autojump_clock: Clock) -> None:
    source, numbers = Played(delay_s=20), Numbers()
    hedging = Hedged(Measured(source, numbers, unobserved), numbers, Allowance(0.05, 0, 10))
    async with trio.open_nursery() as nursery:
        for number in range(16):
            nursery.start_soon(hedging.fetch, ref(number), trio.current_time() + 30)
    assert len(source.asked) == 16


def test_a_large_chunk_is_no_outlier_among_small_ones() -> None:
    latencies = Latencies()
    for _ in range(ANSWERS_MIN):
        latencies.add(1000, 0.01)
        latencies.add(16_000_000, 1.0)
    assert latencies.quantile(1000, 0.95) == 0.01
    assert latencies.quantile(16_000_000, 0.95) == 1.0
    assert latencies.quantile(2_000_000, 0.95) is None
