"""What is remembered of the time that reads and fetches took: right, and bounded."""

from __future__ import annotations

import time

import pytest

from cache import timings
from cache.timings import ReadTimes, Timings


def read(total_s: float) -> ReadTimes:
    """A read that took so long."""
    times = ReadTimes(0, 10)
    times.total_s = total_s
    return times


def test_the_last_read_and_the_slowest_one_are_remembered() -> None:
    kept, key = Timings(), ("apollo", b"c")
    assert kept.reads_of(key) is None
    for total_s in (0.1, 2.0, 0.5):
        kept.read(key, read(total_s))
    found = kept.reads_of(key)
    assert found is not None
    assert (found.last.total_s, found.slowest.total_s) == (0.5, 2.0)


def test_so_many_contents_and_objects_are_remembered_and_no_more() -> None:
    kept = Timings()
    for n in range(timings.OBJECTS_MAX + 10):
        key = ("apollo", n.to_bytes(4, "big"))
        kept.read(key, read(1.0))
        kept.fetched(key, kept.begin(key), "")
    last = ("apollo", (timings.OBJECTS_MAX + 9).to_bytes(4, "big"))
    known = [n for n in range(timings.OBJECTS_MAX + 10) if kept.reads_of(("apollo", n.to_bytes(4, "big")))]
    assert len(known) == timings.CONTENTS_MAX
    assert kept.fetch_of(("apollo", (9).to_bytes(4, "big"))) is None
    assert kept.fetch_of(last) is not None


def test_the_pace_of_a_source_counts_the_time_once_in_which_several_requests_were_under_way() -> None:
    kept = Timings()
    assert kept.bytes_per_s("central") is None
    for begun, came in ((0.0, 2.0), (1.0, 3.0), (10.0, 11.0)):
        kept.answered(("apollo", b"c"), "central", begun, came, 1000)
    assert kept.bytes_per_s("central") == pytest.approx(3000 / 4)


def test_the_steps_of_a_fetch_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    kept, key = Timings(), ("apollo", b"c")
    times = kept.begin(key)
    for seconds, step in ((1.0, "nearby"), (2.0, "source")):
        now += seconds
        times.enter(step)  # type: ignore[arg-type]  # these are steps
    now += 4.5
    kept.answered(key, "central", 3.0, 7.0, 1000)
    times.enter("store")
    now += 8.0
    assert times.so_far_s == 15.5
    kept.fetched(key, times, "")
    found = kept.fetch_of(key)
    assert found is times
    assert (found.turn_s, found.nearby_s, found.source_s, found.verify_s, found.store_s) == (1, 2, 4, 0.5, 8)
    assert (found.total_s, found.source, found.error) == (15.5, "central", "")


def test_of_two_fetches_of_one_object_each_ends_by_itself() -> None:
    kept, key = Timings(), ("apollo", b"c")
    first, second = kept.begin(key), kept.begin(key)
    kept.fetched(key, second, "")
    kept.fetched(key, first, "of another length")
    assert kept.fetch_of(key) is first


def test_an_error_is_cut_to_a_line() -> None:
    kept = Timings()
    kept.fetched(("apollo", b"c"), kept.begin(("apollo", b"c")), "x" * 10_000)
    found = kept.fetch_of(("apollo", b"c"))
    assert found is not None
    assert len(found.error) == timings.ERROR_CHARACTERS_MAX
