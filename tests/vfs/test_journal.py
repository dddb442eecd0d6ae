"""What a killed daemon leaves in its journal is what was so, after any single step of it."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifest.errors import ConfigurationError
from tests.harness import drilled
from vfs.errno import TooManyHandles
from vfs.inodes import SLOT_MAX
from vfs.kernel import journal as journals
from vfs.kernel.journal import MAGIC, Facts, Journal, Open, read_facts

FACTS = Facts("/mnt/libräry", "0123456789abcdef" * 2, 45, (1 << 39) | 5, 1024)


@pytest.fixture
def journal() -> Iterator[Journal]:
    made = Journal.create(FACTS)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def adopted(journal: Journal) -> Iterator[tuple[Journal, Facts, list[Open]]]:
    """The journal as a successor finds it now."""
    found = Journal.adopt(os.dup(journal.fd))
    try:
        yield found
    finally:
        found[0].close()


def test_a_successor_finds_the_facts_the_open_files_and_what_was_told(journal: Journal) -> None:
    first, second = journal.opened(2**62 + 5, 2**40, 7), journal.opened(99, 12, 0)
    journal.told(3, 0)
    journal.told(SLOT_MAX, 2**22 - 2)
    journal.handed_over(3_000_000)
    journal.handed_over(1_000_000)
    with adopted(journal) as (successor, facts, opened):
        assert facts == FACTS
        assert opened == [Open(first, 2**62 + 5, 2**40, 7), Open(second, 99, 12, 0)]
        assert successor.told_of() == {3: 0, SLOT_MAX: 2**22 - 2}
        assert successor.handovers == (2, 1_000_000, 3_000_000)


def test_a_new_journal_is_empty(journal: Journal) -> None:
    with adopted(journal) as (successor, _, opened):
        assert (opened, successor.told_of(), successor.handovers) == ([], {}, (0, 0, 0))


def test_a_handle_is_struck_out_once(journal: Journal) -> None:
    handle = journal.opened(1, 2, 3)
    assert journal.released(handle)
    assert not journal.released(handle)
    assert not journal.released(0)
    assert not journal.released(handle + (1 << 20)), "a later handle in the same record"
    assert journal.opened(1, 2, 3) != handle


def test_the_most_files_that_can_be_open(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "HANDLES_MAX", 4)
    handles = [journal.opened(n, n, 0) for n in range(4)]
    with pytest.raises(TooManyHandles):
        journal.opened(5, 5, 0)
    with adopted(journal) as (successor, _, opened):
        assert [one.handle for one in opened] == handles
        with pytest.raises(TooManyHandles):
            successor.opened(5, 5, 0)
        assert successor.released(handles[2])
        assert successor.opened(5, 5, 0) not in handles


def test_records_far_apart_are_found(journal: Journal) -> None:
    """The memfd is sparse: pages between them were never written."""
    handles = [journal.opened(n + 1, n + 1, n % 5) for n in range(300)]
    journal._end = 500_000
    handles += [journal.opened(n + 1, n + 1, n % 5) for n in range(300, 310)]
    journal._end = journals.HANDLES_MAX - 1
    handles.append(journal.opened(311, 311, 0))
    with adopted(journal) as (successor, _, opened):
        assert [one.handle for one in opened] == handles
        assert [one.ino for one in opened] == list(range(1, 312))
        given = {successor.opened(n, n, 0) & (journals.HANDLES_MAX - 1) for n in range(1000)}
        assert len(given) == 1000
        assert given.isdisjoint(handle & (journals.HANDLES_MAX - 1) for handle in handles)


class Killed(Exception):
    """The process ended here."""


class MortalWords:
    """The words of a journal, whose writer is killed before it writes one more than ``left``."""

    def __init__(self, words: memoryview, left: int) -> None:
        self._words = words
        self._left = left

    def __setitem__(self, index: int, value: int) -> None:
        if not self._left:
            raise Killed
        self._left -= 1
        self._words[index] = value

    def __getitem__(self, index: Any) -> Any:
        return self._words[index]

    def release(self) -> None:
        self._words.release()


@dataclass
class Known:
    """What is so, by those who asked and were answered."""

    opened: dict[int, Open] = field(default_factory=dict)
    told: dict[int, int] = field(default_factory=dict)
    handovers: tuple[int, int, int] = (0, 0, 0)
    given: set[int] = field(default_factory=set)


Step = tuple[str, int, int, int]
STEP = st.tuples(
    st.sampled_from(["open", "open", "open", "release", "release again", "told", "handed over"]),
    st.integers(1, 2**63 - 1),
    st.integers(0, 2**63 - 1),
    st.integers(0, 5),
)
LIFE = st.tuples(st.lists(STEP, max_size=12), st.integers(0, 40))
"""What one daemon does, and after how many writes it is killed."""


def do(journal: Journal, known: Known, step: Step) -> Callable[[], None]:
    """One step of a daemon; what it is known by when it was done. Raises Killed within it."""
    what, large, other, small = step
    live = sorted(known.opened)
    if what == "open":
        handle = journal.opened(large, other, small)
        return lambda: note_opened(known, Open(handle, large, other, small))
    if what == "release" and live:
        handle = live[large % len(live)]
        assert journal.released(handle)
        return lambda: None
    if what == "release again" and known.given:
        handle = sorted(known.given)[large % len(known.given)]
        if handle not in known.opened:
            assert not journal.released(handle)
        return lambda: None
    if what == "told":
        journal.told(small, other % 2**22)
        return lambda: known.told.update({small: other % 2**22})
    if what == "handed over":
        journal.handed_over(other % 2**40)
        times, _, longest = known.handovers
        now = (times + 1, other % 2**40, max(longest, other % 2**40))
        return lambda: setattr(known, "handovers", now)
    return lambda: None


def note_opened(known: Known, one: Open) -> None:
    assert one.handle not in known.given, "a handle is given twice"
    known.given.add(one.handle)
    known.opened[one.handle] = one


def after(known: Known, step: Step) -> Known:
    """What may be so as well when a daemon was killed within a step."""
    what, large, other, small = step
    may = replace(known, opened=dict(known.opened), told=dict(known.told))
    live = sorted(known.opened)
    if what == "release" and live:
        del may.opened[live[large % len(live)]]
    if what == "told":
        may.told[small] = other % 2**22
    return may


@settings(max_examples=drilled(300, 20_000), deadline=None)
@given(lives=st.lists(LIFE, min_size=1, max_size=5))
@pytest.mark.drill
def test_a_kill_at_any_write_loses_nothing_and_invents_nothing(lives: list[tuple[list[Step], int]]) -> None:
    known = Known()
    journal = Journal.create(FACTS)
    try:
        for steps, writes in lives:
            killed_in = live(journal, known, steps, writes)
            fd = os.dup(journal.fd)
            journal.close()
            journal, facts, found = Journal.adopt(fd)
            assert facts == FACTS
            check(journal, known, found, killed_in)
    finally:
        journal.close()


def live(journal: Journal, known: Known, steps: list[Step], writes: int) -> Step | None:
    """A daemon's life; the step within which it was killed."""
    journal._words = MortalWords(journal._words, writes)  # type: ignore[assignment]
    for step in steps:
        releases = step[0] == "release" and sorted(known.opened)
        try:
            note = do(journal, known, step)
        except Killed:
            return step
        if releases:
            del known.opened[releases[step[1] % len(releases)]]
        note()
    return None


def check(journal: Journal, known: Known, found: list[Open], killed_in: Step | None) -> None:
    """What a successor finds is what was so, or what the step would have made of it; then that is what is so."""
    opened = {one.handle: one for one in found}
    assert len(opened) == len(found)
    may = known if killed_in is None else after(known, killed_in)
    extra = {handle: one for handle, one in opened.items() if handle not in known.opened}
    if killed_in is not None and killed_in[0] == "open":  # its last write may have been done; nobody was told of it
        assert len(extra) <= 1
        assert all(one[1:] == killed_in[1:] for one in extra.values())
        assert not extra.keys() & known.given, "a handle is given twice"
        known.given |= extra.keys()
        assert {handle: opened[handle] for handle in known.opened} == known.opened
    else:
        assert opened in (known.opened, may.opened)
    told = journal.told_of()
    assert told in (known.told, may.told)
    times, _, longest = known.handovers
    if killed_in is not None and killed_in[0] == "handed over":
        assert journal.handovers.times in (times, times + 1)
        assert journal.handovers.longest_pause_ns >= longest
    else:
        assert journal.handovers == known.handovers
    known.opened, known.told, known.handovers = opened, told, journal.handovers


def memfd(data: bytes) -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    os.pwrite(fd, data, 0)
    return fd


def head(*, magic: bytes = MAGIC, version: int = journals.FORMAT, facts: bytes, size: int | None = None) -> bytes:
    return journals._HEADER.pack(magic, version, len(facts) if size is None else size) + facts


def refusal(fd: int) -> str:
    try:
        with pytest.raises(ConfigurationError) as caught:
            Journal.adopt(fd)
        return str(caught.value)
    finally:
        os.close(fd)


GOOD = b'{"flags": 5, "library_id": "0", "max_background": 1, "minor": 45, "mountpoint": "/m"}'


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "is none"),
        (b"damfs", "is none"),
        (b"\0" * 70_000, "is none"),
        (head(magic=b"damfs.slots".ljust(16, b"\0"), facts=GOOD), "is none"),
        (head(version=2, facts=GOOD), "has format 2, this damfs knows 1: unmount, and mount again"),
        (head(facts=b""), "is damaged"),
        (head(facts=GOOD, size=len(GOOD) - 1), "is damaged"),
        (head(facts=GOOD, size=2**32 - 1), "is damaged"),
        (head(facts=b"[1, 2]"), "is damaged"),
        (head(facts=b"\xff\xfe"), "is damaged"),
        (head(facts=b'{"mountpoint": "/m"}'), "is damaged"),
        (head(facts=GOOD[:-1] + b', "more": 1}'), "is damaged"),
        (head(facts=GOOD), r"is damaged \(it has 109 bytes"),
    ],
)
def test_what_is_no_journal_of_ours_is_refused(data: bytes, word: str) -> None:
    fd = memfd(data)
    assert re.search(word, refusal(fd))


def test_a_socket_is_no_journal() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert "is none" in refusal(os.dup(ours.fileno()))


def test_the_facts_are_read_without_taking_anything_over(journal: Journal) -> None:
    handle = journal.opened(1, 2, 3)
    assert asdict(read_facts(journal.fd)) == asdict(FACTS)
    assert journal.released(handle)
