"""The ranges of a file that were read: merged, exact while there is room, and never too few."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from vfs import recording
from vfs.recording import Budget, Touched

SIZE = 200
READS = st.lists(st.tuples(st.integers(0, SIZE + 20), st.integers(0, 60)), max_size=40)


def ranges(touched: Touched) -> list[tuple[int, int]]:
    return list(zip(touched.starts, touched.stops, strict=True))


def bytes_of(pairs: list[tuple[int, int]]) -> set[int]:
    return {at for start, stop in pairs for at in range(start, stop)}


@given(READS)
def test_the_ranges_are_the_bytes_that_were_read_and_do_not_touch(reads: list[tuple[int, int]]) -> None:
    budget = Budget(1000)
    touched = Touched(SIZE, budget)
    for offset, size in reads:
        touched.note(offset, size)
    found = ranges(touched)
    assert bytes_of(found) == {at for offset, size in reads for at in range(offset, offset + size) if at < SIZE}
    assert all(before[1] < after[0] for before, after in itertools.pairwise(found))
    assert budget.left == 1000 - len(found)


@given(st.lists(READS, min_size=1, max_size=4))
def test_beyond_the_budget_ranges_become_coarser_and_nothing_is_lost(files: list[list[tuple[int, int]]]) -> None:
    budget = Budget(3)
    touched = [Touched(SIZE, budget) for _ in files]
    for one, reads in zip(touched, files, strict=True):
        for offset, size in reads:
            one.note(offset, size)
    for one, reads in zip(touched, files, strict=True):
        assert bytes_of(ranges(one)) >= {
            at for offset, size in reads for at in range(offset, offset + size) if at < SIZE
        }
    assert sum(len(one.starts) for one in touched) <= 3 + len(files)


def test_one_file_has_so_many_ranges_at_most() -> None:
    touched = Touched(10**9, Budget(10**6))
    for i in range(recording.RANGES_PER_FILE_MAX + 1):
        touched.note(i * 10, 5)
    assert ranges(touched) == [(0, recording.RANGES_PER_FILE_MAX * 10 + 5)]
    touched.note_all()
    assert ranges(touched) == [(0, 10**9)]
