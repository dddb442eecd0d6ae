"""Pinned contents in the index: what is protected, from when on and until when."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cache.index import Index, ObjectRow
from cache.pinned import Pinned
from cache.policies.lru import Lru
from manifest.digest import Digest

SHOW = "apollo"


def content(number: int) -> Digest:
    return Digest.of(b"%d" % number)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    made = Index(tmp_path / "index.db")
    yield made
    made.close()


def store(index: Index, number: int) -> None:
    row = ObjectRow(0, SHOW, content(number), 100, 1, b"", f"aa/{number}", 100, 4096, b"\1")
    index.commit([row], used=number)


def victims(index: Index) -> set[bytes]:
    policy = Lru(index)
    policy.begin()
    return {candidate.content for candidate in policy.victims(100, 1 << 60)}


def test_what_is_pinned_is_no_victim_whether_it_came_before_or_after(index: Index) -> None:
    pinned = Pinned(index)
    store(index, 1)
    pinned.add(7, 1, SHOW, [(content(1), 100), (content(2), 100)])
    pinned.finish(7, 1)
    for number in (2, 3):
        store(index, number)
    assert victims(index) == {content(3)}
    store(index, 1)  # stored anew under another file name
    assert victims(index) == {content(3)}


def test_what_is_pinned_after_it_was_named_as_a_victim_stays(index: Index) -> None:
    for number in (1, 2):
        store(index, number)
    policy = Lru(index)
    policy.begin()
    named = {candidate.content: candidate.id for candidate in policy.victims(100, 1 << 40)}
    Pinned(index).add(7, 1, SHOW, [(content(1), 100)])
    freed, count, stay = index.evict(list(named.values()), [])
    assert (freed, count, stay) == (4096, 1, {named[content(1)]})
    assert index.find(SHOW, content(1)) is not None
    assert index.find(SHOW, content(2)) is None


def test_a_content_is_free_when_its_last_pin_goes(index: Index) -> None:
    pinned = Pinned(index)
    store(index, 1)
    for pin in (7, 8):
        pinned.add(pin, 1, SHOW, [(content(1), 100)])
    pinned.drop(7)
    assert victims(index) == set()
    pinned.drop(8)
    assert victims(index) == {content(1)}


def test_a_round_lets_go_of_what_it_did_not_name_and_of_nothing_before_its_end(index: Index) -> None:
    pinned = Pinned(index)
    for number in (1, 2):
        store(index, number)
    pinned.add(7, 1, SHOW, [(content(1), 100)])
    pinned.finish(7, 1)
    assert pinned.last_round(7) == 1
    pinned.add(7, 2, SHOW, [(content(2), 100)])
    assert victims(index) == set()
    pinned.finish(7, 2)
    assert victims(index) == {content(1)}


def test_a_round_that_is_taken_back_leaves_what_was_there(index: Index) -> None:
    pinned = Pinned(index)
    for number in (1, 2):
        store(index, number)
    pinned.add(7, 1, SHOW, [(content(1), 100)])
    pinned.finish(7, 1)
    pinned.add(7, 2, SHOW, [(content(1), 100), (content(2), 100)])
    pinned.take_back(7, 2)
    assert victims(index) == {content(2)}
    assert pinned.total_bytes() == 100


def test_bytes_that_two_pins_keep_count_once(index: Index) -> None:
    pinned = Pinned(index)
    pinned.add(7, 1, SHOW, [(content(n), 100) for n in range(1200)])
    pinned.add(8, 1, SHOW, [(content(0), 100), (content(5000), 11)])
    pinned.add(8, 1, "zulu", [(content(0), 100)])
    assert pinned.total_bytes() == 120_000 + 11 + 100


def test_pins_that_are_no_more_are_let_go_of_in_a_new_process(tmp_path: Path) -> None:
    index = Index(tmp_path / "index.db")
    for number in (1, 2):
        store(index, number)
        Pinned(index).add(number, 1, SHOW, [(content(number), 100)])
    index.close()
    again = Index(tmp_path / "index.db")
    assert victims(again) == set()
    Pinned(again).keep_only([2])
    assert victims(again) == {content(1)}
    Pinned(again).keep_only([])
    assert victims(again) == {content(1), content(2)}
    again.close()
