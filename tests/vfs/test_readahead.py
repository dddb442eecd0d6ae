"""Streams in a file: what is read ahead of them, and what is let alone."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from vfs.readahead import MIB, STREAMS_MAX, WINDOW_MIN_BYTES, Streams

KIB = 1024
SIZE = 512 * MIB
READ = 256 * KIB
WINDOW_MAX = 64 * MIB


def streams(size: int = SIZE, *, is_random: bool = False, window_max: int = WINDOW_MAX) -> Streams:
    return Streams(size, window_max, is_random=is_random)


def read_on(made: Streams, start: int, count: int, *, waited: bool = False) -> list[tuple[int, int]]:
    """Read so many pieces in order; what was to be asked for."""
    spans = [made.read(start + i * READ, READ, waited=waited) for i in range(count)]
    return [span for span in spans if span is not None]


def test_one_read_is_no_stream_and_the_next_ones_are() -> None:
    made = streams()
    assert read_on(made, 0, 1) == []
    assert read_on(made, READ, 1) == [(2 * READ, 2 * READ + WINDOW_MIN_BYTES)]


def test_what_is_asked_for_has_neither_holes_nor_anything_twice() -> None:
    made = streams()
    spans = read_on(made, 0, 200)
    assert all(before[1] == after[0] for before, after in pairwise(spans))
    assert len(spans) < 60, "in large steps"


def test_the_window_doubles_while_the_reader_waits_and_not_when_it_does_not() -> None:
    made = streams()
    read_on(made, 0, 40)
    assert made.windows == [WINDOW_MIN_BYTES]
    read_on(made, 40 * READ, 1, waited=True)
    assert made.windows == [2 * WINDOW_MIN_BYTES]
    read_on(made, 41 * READ, 4, waited=True)
    assert made.windows == [2 * WINDOW_MIN_BYTES], "these wait for what was asked for too late once"
    read_on(made, 45 * READ, 1000, waited=True)
    assert made.windows == [WINDOW_MAX]


def test_the_window_is_halved_when_others_wait_already() -> None:
    made = streams()
    read_on(made, 0, 200, waited=True)
    before = made.windows[0]
    start = next(span[0] for i in range(200, 2000) if (span := made.read(i * READ, READ, waited=False)) is not None)
    made.refused(start)
    assert made.windows[0] == before // 2


def test_reads_that_the_kernel_has_reordered_are_one_stream() -> None:
    made = streams()
    order = [1, 0, 2, 4, 3, 5, 7, 6, 8, 9]
    spans = [made.read(i * READ, READ, waited=False) for i in order]
    assert any(spans)
    assert len(made.windows) == 1


def test_interleaved_readers_are_streams_of_their_own() -> None:
    made = streams()
    starts = [i * 60 * MIB for i in range(STREAMS_MAX)]
    found = set()
    for i in range(12):
        for start in starts:
            span = made.read(start + i * READ, READ, waited=False)
            if span is not None:
                found.add(span[0] // (60 * MIB))
    assert found == set(range(STREAMS_MAX))


def test_random_reads_are_let_alone() -> None:
    chance = random.Random(1)
    for is_random in (False, True):
        made = streams(is_random=is_random)
        for _ in range(300):
            offset = chance.randrange(SIZE // 4096 - 3) * 4096
            assert made.read(offset, 12 * KIB, waited=True) is None
            assert len(made.windows) <= STREAMS_MAX


def test_a_file_that_is_cut_for_random_reads_is_read_ahead_when_it_is_read_on_for_long() -> None:
    made = streams(is_random=True)
    assert read_on(made, 0, 8) == []
    assert read_on(made, 8 * READ, 4) != []
    holes = streams(is_random=True)
    assert all(holes.read(i * (READ + 4096), READ, waited=False) is None for i in range(100))


@given(
    reads=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40), st.booleans(), st.booleans()), max_size=60),
    size=st.integers(1, 40 * MIB), window_max=st.sampled_from([MIB, 4 * MIB, WINDOW_MAX]), is_random=st.booleans(),
)  # fmt: skip
def test_whatever_is_read_what_is_asked_for_lies_in_the_file_ahead_of_the_read_and_is_bounded(
    reads: list[tuple[int, int, bool, bool]], size: int, window_max: int, is_random: bool
) -> None:
    made = streams(size, is_random=is_random, window_max=window_max)
    for start, pieces, waited, refused in reads:
        offset = start * MIB
        count = min(pieces * 64 * KIB, size - offset)
        if count <= 0:
            continue
        span = made.read(offset, count, waited=waited)
        assert len(made.windows) <= STREAMS_MAX
        assert all(window <= max(window_max, WINDOW_MIN_BYTES) for window in made.windows)
        if span is not None:
            begin, end = span
            assert offset < begin < end <= size
            assert end - begin <= window_max + MIB
            if refused:
                made.refused(begin)
