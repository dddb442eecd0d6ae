"""A show's log: entries by number, changesets and recipes by digest."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest
import zstandard

from manifest import layout
from manifest.digest import Digest
from manifest.entry import ENVELOPE_BYTES_MAX
from manifest.errors import Conflict, DigestMismatch, FormatError, NotFound, Unavailable
from manifest.library import Library
from manifest.log import Log
from manifest.recipe import Recipe

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def log(library: Library) -> Log:
    return Log(library, "apollo")


def fill(log: Log, *numbers: int) -> None:
    for seq in numbers:
        log.create(seq, b"entry %d" % seq)


def test_keys_sort_as_numbers_do() -> None:
    assert layout.log_key("apollo", 7) == "shows/apollo/log/00000000000000000007"
    assert layout.log_key("apollo", 9) < layout.log_key("apollo", 10)
    assert layout.seq_of(layout.log_key("apollo", 123)) == 123


@pytest.mark.parametrize(
    "key",
    [
        "shows/a/log/1",
        "shows/a/log/0000000000000000000x",
        "shows/a/log/0000000000000000000\u0661",
        "shows/a/log/99999999999999999999",
        "shows/a/log/00000000000000000001/x",
        "shows/a/chunks/00000000000000000001",
    ],
)
def test_a_key_that_is_no_entrys_has_no_number(key: str) -> None:
    with pytest.raises(FormatError, match="is no key of a log entry"):
        layout.seq_of(key)


def test_a_log_of_no_show_is_refused(file_library: Library) -> None:
    with pytest.raises(FormatError, match="is no show name"):
        Log(file_library, "../apollo")


def test_an_entry_is_created_once_and_read_back(log: Log) -> None:
    assert log.read(1) is None
    log.create(1, b"one")
    assert log.read(1) == b"one"
    with pytest.raises(Conflict):
        log.create(1, b"another")
    assert log.read(1) == b"one"
    assert log.read(2) is None


def test_the_largest_entry_is_read_whole_and_of_a_larger_one_the_same_bytes_by_everybody(log: Log) -> None:
    log.create(1, b"x" * ENVELOPE_BYTES_MAX)
    assert log.read(1) == b"x" * ENVELOPE_BYTES_MAX
    log.library.put(layout.log_key("apollo", 2), b"y" * 5_000_000)
    assert log.read(2) == b"y" * (ENVELOPE_BYTES_MAX + 1)
    log.library.put(layout.log_key("apollo", 3), b"")
    assert log.read(3) == b""


def test_an_empty_log_has_no_newest_entry(log: Log) -> None:
    assert log.newest_listed() == 0
    assert list(log.tail()) == []


def test_the_newest_entry_is_found_behind_a_gap_and_beside_foreign_files(log: Log) -> None:
    fill(log, 1, 2, 5)
    log.library.put("shows/apollo/log/README", b"")
    log.library.put("shows/apollo/log/zzz", b"")
    assert log.newest_listed() == 5
    assert log.newest_listed(2) == 5
    assert log.newest_listed(5) == 5
    assert log.newest_listed(9) == 9


def test_a_tail_is_in_order_and_begins_behind_a_number(log: Log) -> None:
    fill(log, *range(1, 101))
    assert list(log.tail()) == [(seq, b"entry %d" % seq) for seq in range(1, 101)]
    assert [seq for seq, _ in log.tail(97)] == [98, 99, 100]
    assert list(log.tail(100)) == []


def test_a_tail_ends_at_a_number_that_is_missing(log: Log) -> None:
    fill(log, 1, 2, 3, 5, 6)
    assert [seq for seq, _ in log.tail()] == [1, 2, 3]
    assert [seq for seq, _ in log.tail(3)] == []
    assert [seq for seq, _ in log.tail(4)] == [5, 6]


def test_a_tail_reads_in_parallel_and_no_further_ahead_than_that(
    file_library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(file_library, "apollo")
    fill(log, *range(1, 41))
    read = log.read
    lock = threading.Lock()
    running, most, begun = 0, 0, 0

    def slow(seq: int, *, timeout_s: float) -> bytes | None:
        nonlocal running, most, begun
        with lock:
            running, begun = running + 1, begun + 1
            most = max(most, running)
        time.sleep(0.05)
        with lock:
            running -= 1
        return read(seq, timeout_s=timeout_s)

    monkeypatch.setattr(log, "read", slow)
    tail = log.tail(parallel=8)
    assert next(tail)[0] == 1
    time.sleep(0.3)
    assert most == 8
    assert begun == 9
    tail.close()
    time.sleep(0.1)
    assert begun == 9


def test_a_tail_of_a_library_that_is_gone_is_unavailable_not_empty(file_library: Library, tmp_path: Path) -> None:
    log = Log(file_library, "apollo")
    fill(log, 1, 2, 3)
    folder = tmp_path / "library"
    folder.rename(tmp_path / "elsewhere")
    folder.mkdir()
    with pytest.raises(Unavailable):
        list(log.tail())
    with pytest.raises(Unavailable):
        log.newest_listed()
    with pytest.raises(Unavailable):
        log.read(1)


def test_a_library_that_goes_away_during_a_tail_is_unavailable(file_library: Library, tmp_path: Path) -> None:
    log = Log(file_library, "apollo")
    fill(log, *range(1, 21))
    tail = log.tail(parallel=2)
    assert next(tail) == (1, b"entry 1")
    (tmp_path / "library").rename(tmp_path / "elsewhere")
    with pytest.raises(Unavailable):
        list(tail)


def test_an_entry_is_created_behind_what_was_put_before(file_library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    sync, create = file_library.sync, file_library.create

    def noted_sync() -> None:
        calls.append("sync")
        sync()

    def noted_create(key: str, data: bytes, *, timeout_s: float) -> None:
        calls.append("create")
        create(key, data, timeout_s=timeout_s)

    monkeypatch.setattr(file_library, "sync", noted_sync)
    monkeypatch.setattr(file_library, "create", noted_create)
    Log(file_library, "apollo").create(1, b"x")
    assert calls == ["sync", "create"]


# Changesets and recipes.

PLAIN = b'{"_type":"damfs.change/1"}\n'
COMPRESSED = zstandard.compress(PLAIN)


def test_a_changeset_is_named_by_its_plain_bytes(log: Log) -> None:
    digest = Digest.of(PLAIN)
    log.library.put(layout.change_key("apollo", digest), COMPRESSED)
    assert log.changeset(digest) == COMPRESSED


@pytest.mark.parametrize(
    "stored",
    [None, b"", b"no zstd at all", COMPRESSED[:-3], zstandard.compress(PLAIN + b"{}\n"), COMPRESSED + b"x", PLAIN],
    ids=["missing", "empty", "nonsense", "cut", "other", "longer", "plain"],
)
def test_a_changeset_that_is_not_the_named_one_is_unavailable(log: Log, stored: bytes | None) -> None:
    digest = Digest.of(PLAIN)
    if stored is not None:
        log.library.put(layout.change_key("apollo", digest), stored)
    with pytest.raises(Unavailable, match=r"is missing from|is damaged"):
        log.changeset(digest)


def test_a_recipe_is_named_by_its_object(log: Log) -> None:
    recipe = Recipe.of((Digest.of(b"%d" % number), 1000) for number in range(100))
    with pytest.raises(NotFound):
        log.recipe(recipe.content)
    key = layout.recipe_key("apollo", recipe.content)
    log.library.put(key, recipe.to_object())
    assert log.recipe(recipe.content) == recipe
    log.library.put(key, recipe.to_object()[:-36])
    with pytest.raises(DigestMismatch, match="the stored bytes have the digest"):
        log.recipe(recipe.content)
    false = Digest.of(b"no recipe")
    log.library.put(layout.recipe_key("apollo", false), b"no recipe")
    with pytest.raises(FormatError, match="not a recipe"):
        log.recipe(false)
