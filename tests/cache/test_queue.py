"""Which fetch begins next: the order, the shares, promotion; against a model that remembers everything."""

import threading
import time

import trio
import trio.lowlevel
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from cache.bandwidth import BURST_S, Bandwidth, Throttle
from cache.queue import SHARES, Priority, Queue, Turn

DEMAND, READ_AHEAD, PREFETCH, PIN = Priority


def begun(*turns: Turn) -> list[bool]:
    return [turn.begun.is_set() for turn in turns]


def test_fetches_of_one_priority_begin_in_the_order_they_came() -> None:
    queue = Queue(100)
    first, large, small = queue.enter(80, DEMAND), queue.enter(50, DEMAND), queue.enter(10, DEMAND)
    assert begun(first, large, small) == [True, False, False]
    queue.leave(first)
    assert begun(large, small) == [True, True]


def test_more_than_the_whole_counts_as_the_whole() -> None:
    queue = Queue(100)
    assert queue.enter(1000, DEMAND).begun.is_set()
    assert queue.free_bytes == 0


def test_one_that_gives_up_takes_nothing_and_lets_the_next_ones_begin() -> None:
    queue = Queue(100)
    first, large, small = queue.enter(80, DEMAND), queue.enter(50, DEMAND), queue.enter(10, DEMAND)
    queue.leave(large)
    assert begun(first, small) == [True, True]
    assert queue.free_bytes == 10


def test_what_a_reader_waits_for_begins_before_what_came_earlier() -> None:
    queue = Queue(100)
    first = queue.enter(100, DEMAND)
    pin, ahead, demand = queue.enter(60, PIN), queue.enter(60, READ_AHEAD), queue.enter(60, DEMAND)
    queue.leave(first)
    assert begun(pin, ahead, demand) == [False, False, True]
    queue.leave(demand)
    assert begun(pin, ahead) == [False, True]


def test_pins_leave_room_for_everything_else() -> None:
    queue = Queue(1000)
    pins = [queue.enter(10, PIN) for _ in range(20)]
    assert sum(begun(*pins)) == SHARES[PIN].fetches
    prefetches = [queue.enter(10, PREFETCH) for _ in range(20)]
    assert sum(begun(*prefetches)) == SHARES[PREFETCH].fetches - SHARES[PIN].fetches
    assert queue.enter(500, DEMAND).begun.is_set()


def test_one_that_is_larger_than_its_share_begins_when_it_is_alone() -> None:
    queue = Queue(100)
    first, second = queue.enter(60, PIN), queue.enter(60, PIN)
    assert begun(first, second) == [True, False]
    queue.leave(first)
    assert second.begun.is_set()


def test_a_waiting_one_that_is_promoted_begins_as_if_it_had_come_with_that_priority() -> None:
    queue = Queue(1000)
    pins = [queue.enter(10, PIN) for _ in range(9)]
    queue.promote(pins[8], DEMAND)
    assert pins[8].begun.is_set()
    assert not pins[7].begun.is_set()


def test_one_under_way_that_is_promoted_makes_room_for_others_of_its_former_priority() -> None:
    queue = Queue(1000)
    pins = [queue.enter(10, PIN) for _ in range(5)]
    assert not pins[4].begun.is_set()
    queue.promote(pins[0], DEMAND)
    assert pins[4].begun.is_set()


def test_nothing_is_demoted() -> None:
    queue = Queue(1000)
    turn = queue.enter(10, READ_AHEAD)
    queue.promote(turn, PIN)
    assert turn.priority == READ_AHEAD


STEP = st.one_of(
    st.tuples(st.just("enter"), st.integers(1, 150), st.sampled_from(Priority)),
    st.tuples(st.just("leave"), st.integers(0, 50), st.none()),
    st.tuples(st.just("promote"), st.integers(0, 50), st.sampled_from(Priority)),
)


@given(st.lists(STEP, max_size=60))
def test_whatever_happens_the_limits_hold_and_nothing_that_fits_waits(steps: list[tuple[str, int, Priority]]) -> None:
    queue, turns = Queue(100), list[Turn]()
    for what, number, priority in steps:
        if what == "enter":
            turns.append(queue.enter(number, priority))
        elif turns and what == "leave":
            queue.leave(turns.pop(number % len(turns)))
        elif turns:
            queue.promote(turns[number % len(turns)], priority)
        under_way = [turn for turn in turns if turn.begun.is_set()]
        assert queue.free_bytes == 100 - sum(turn.amount for turn in under_way) >= 0
        for limited, share in SHARES.items():
            lower = [turn for turn in under_way if turn.priority >= limited]
            assert len(lower) <= share.fetches or len(lower) == 1
            assert len(lower) <= 1 or sum(turn.amount for turn in lower) <= share.bytes * 100
        assert under_way or not turns, "something waits, and nothing is under way"
    while turns:
        first = next(turn for turn in turns if turn.begun.is_set())
        turns.remove(first)
        queue.leave(first)
    assert queue.free_bytes == 100


MB = 1_000_000


async def begun_at(queue: Queue, turn: Turn, times: dict[str, float], name: str) -> None:
    await turn.begun.wait()
    times[name] = trio.current_time()


async def test_with_a_bandwidth_a_reader_waits_for_what_was_begun_last_and_not_for_all_that_waits(
    autojump_clock: trio.testing.MockClock,
) -> None:
    queue, begin, times = Queue(1000 * MB, Bandwidth(10 * MB)), trio.current_time(), dict[str, float]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queue.run)
        for number in range(20):
            nursery.start_soon(begun_at, queue, queue.enter(10 * MB, PREFETCH), times, f"prefetch {number}")
        await trio.sleep(1.9)
        nursery.start_soon(begun_at, queue, queue.enter(10 * MB, DEMAND), times, "demand")
        await trio.sleep(2)
        assert times["demand"] - begin < 1.9 + 1
        nursery.cancel_scope.cancel()


async def test_what_waits_for_the_bandwidth_begins_at_once_when_a_reader_wants_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    queue, times = Queue(1000 * MB, Bandwidth(10 * MB)), dict[str, float]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queue.run)
        turns = [queue.enter(10 * MB, PIN) for _ in range(50)]
        nursery.start_soon(begun_at, queue, turns[40], times, "wanted")
        await trio.sleep(2)
        wanted = trio.current_time()
        queue.promote(turns[40], DEMAND)
        await trio.sleep(2)
        assert times["wanted"] - wanted <= 1
        assert sum(begun(*turns)) <= 6
        nursery.cancel_scope.cancel()


async def test_the_bandwidth_can_be_changed_and_lifted_while_fetches_wait(
    autojump_clock: trio.testing.MockClock,
) -> None:
    queue = Queue(1000 * MB, Bandwidth(10_000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queue.run)
        turns = [queue.enter(10 * MB, DEMAND) for _ in range(10)]
        await trio.sleep(60)
        assert sum(begun(*turns)) == 1
        queue.set_rate(10 * MB)
        await trio.sleep(3.1)
        assert 3 <= sum(begun(*turns)) <= 6
        queue.set_rate(None)
        await trio.lowlevel.checkpoint()
        assert all(begun(*turns))
        nursery.cancel_scope.cancel()


async def test_what_did_not_come_over_the_network_is_not_owed(autojump_clock: trio.testing.MockClock) -> None:
    queue = Queue(1000 * MB, Bandwidth(10 * MB))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queue.run)
        first, second = queue.enter(100 * MB, DEMAND), queue.enter(MB, DEMAND)
        assert begun(first, second) == [True, False]
        queue.took(first, 0)
        assert second.begun.is_set()
        nursery.cancel_scope.cancel()


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 30 * MB)), min_size=1, max_size=60))
def test_over_any_time_no_more_begins_than_the_rate_allows_and_one_more(steps: list[tuple[float, int]]) -> None:
    bandwidth, now, paid = Bandwidth(10 * MB), 0.0, list[tuple[float, int]]()
    for pause_s, amount in steps:
        now += pause_s
        wait_s = bandwidth.wait_s(now)
        assert wait_s <= 3.1  # what is owed is at most what was begun last
        now += wait_s + 1e-9
        bandwidth.pay(amount, now)
        paid.append((now, amount))
    for first in range(len(paid)):
        for last in range(first, len(paid)):
            elapsed_s = paid[last][0] - paid[first][0]
            before_last = sum(amount for _, amount in paid[first:last])
            assert before_last <= 10 * MB * (elapsed_s + BURST_S) + 1


def test_threads_that_send_share_the_bandwidth() -> None:
    throttle, stopped, sent = Throttle(MB), threading.Event(), list[int]()

    def send() -> None:
        while throttle.pay(100_000, stopped):
            sent.append(100_000)

    threads = [threading.Thread(target=send) for _ in range(4)]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    stopped.set()
    for thread in threads:
        thread.join()
    assert 0 < sum(sent) <= MB * (time.monotonic() - begin + BURST_S) + 100_000


def test_who_has_waited_as_long_as_the_bandwidth_said_need_not_wait_for_what_rounding_left() -> None:
    for rate in (3, 7, 20_000, 333_333_333):
        bandwidth, now = Bandwidth(rate), 12_345.678
        for amount in range(1, 5000, 7):
            bandwidth.pay(rate + amount, now)
            now += bandwidth.wait_s(now)
            assert bandwidth.wait_s(now) == 0
