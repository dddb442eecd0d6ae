"""Which fetch begins next: the order, the shares, promotion; against a model that remembers everything."""

from hypothesis import given
from hypothesis import strategies as st

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
