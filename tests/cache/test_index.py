"""The index: it never promises too much, and what is damaged is dropped."""

from __future__ import annotations

import dataclasses
import os
import pickle
import random
import sqlite3
import stat
import sys
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import pytest
import trio

from cache.ballast import BALLAST_BYTES
from cache.index import Index, ObjectRow
from cache.schema import FORMAT
from cache.shm import SHM_BYTES
from cache.small import SmallStore
from manifest.digest import Digest
from manifest.errors import Busy, ConfigurationError
from tests.cache.contents import (
    KIB,
    MIB,
    SHOW,
    FaultySource,
    accounts_agree,
    opened,
    put,
    read_sample,
    sample,
    settle,
    until,
)
from tests.cache.disk import loop_disk

if TYPE_CHECKING:
    from pathlib import Path

    from manifest.library import Library


@pytest.mark.parametrize("damage", ["garbage", "another database", "no table", "torn pages"])
async def test_an_unusable_index_has_the_cache_dropped_and_rebuilt(
    damage: str, folder: Path, file_library: Library, source: FaultySource, expects_log: pytest.LogCaptureFixture
) -> None:
    made = [put(file_library, sample(i, MIB)) for i in range(3)] + [put(file_library, sample(9, 100))]
    async with opened(folder, [source]) as cache:
        for one in made:
            await read_sample(cache, one)
    path = folder / "index.db"
    if damage == "garbage":
        path.write_bytes(os.urandom(50_000))
    elif damage == "torn pages":
        data = bytearray(path.read_bytes())
        for page in range(1, len(data) // 4096):
            data[page * 4096 : page * 4096 + 4096] = random.Random(page).randbytes(4096)
        path.write_bytes(data)
    else:
        with sqlite3.connect(path) as database:
            if damage == "no table":
                database.execute("DROP TABLE objects")
            else:
                database.execute("PRAGMA application_id = 1")
        database.close()
    async with opened(folder, [source]) as cache:
        for one in made:
            assert await read_sample(cache, one) == one.data
        await settle(cache)
        await until(lambda: not list(folder.glob("trash.*")))
        assert cache.stats().objects == 4
    assert "dropped and filled again" in expects_log.text
    async with opened(folder, [source]) as cache:
        asked = len(source.asked)
        for one in made:
            assert await read_sample(cache, one) == one.data
        assert len(source.asked) == asked


async def test_an_index_that_turns_out_damaged_while_it_runs_is_dropped_at_the_next_start(
    folder: Path, file_library: Library, source: FaultySource, expects_log: pytest.LogCaptureFixture
) -> None:
    made = put(file_library, sample(1, MIB))
    async with opened(folder, [source]) as cache:
        await read_sample(cache, made)
        await settle(cache)
        error = sqlite3.DatabaseError("database disk image is malformed")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        cache.shelves[0].index.failed(error)
        cache.shelves[0].index.failed(error)
        assert await read_sample(cache, made) == made.data
    assert len([r for r in expects_log.records if "malformed" in r.getMessage()]) == 1
    async with opened(folder, [source]) as cache:
        assert cache.stats().objects == 0
        assert await read_sample(cache, made) == made.data
    async with opened(folder, [source]) as cache:
        assert cache.stats().objects == 1


async def test_an_index_of_a_newer_damfs_is_refused_and_left_alone(folder: Path, source: FaultySource) -> None:
    async with opened(folder, [source]):
        pass
    with sqlite3.connect(folder / "index.db") as database:
        database.execute(f"PRAGMA user_version = {FORMAT + 1}")
    database.close()
    before = (folder / "index.db").read_bytes()
    with pytest.raises(ConfigurationError, match="newer damfs"):
        await _open_and_close(folder, source)
    assert (folder / "index.db").read_bytes() == before


async def _open_and_close(folder: Path, source: FaultySource) -> None:
    """Unwrap the nursery's group, as the daemon does."""
    try:
        async with opened(folder, [source]):
            pass
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


@pytest.mark.usefixtures("expects_log")
@pytest.mark.parametrize("column", ["present", "file", "size", "chunks", "present_bytes", "content", "tenant", "whole"])
async def test_a_row_that_was_changed_on_disk_is_not_believed(
    column: str, folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = put(file_library, sample(1, 2 * MIB))
    async with opened(folder, [source]) as cache:
        await read_sample(cache, made)
    index = Index(folder / "index.db")
    with sqlite3.connect(folder / "index.db") as database:
        value: object = {"present": b"\xff", "file": "00/x", "content": bytes(32), "tenant": "gemini"}.get(column, 1)
        database.execute(f"UPDATE objects SET {column} = ?", (value,))
    database.close()
    tenant = "gemini" if column == "tenant" else SHOW
    content = bytes(32) if column == "content" else made.content
    assert index.find(tenant, content) is None
    index.close()


@pytest.mark.usefixtures("expects_log")
async def test_a_row_that_is_not_believed_costs_a_fetch(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = put(file_library, sample(1, 2 * MIB))
    async with opened(folder, [source]) as cache:
        await read_sample(cache, made)
    (path,) = [p for p in (folder / "objects").rglob("*") if p.is_file()]
    path.write_bytes(bytes(made.size))
    with sqlite3.connect(folder / "index.db") as database:
        database.execute("UPDATE objects SET present = x'0000', whole = x'00'")
    database.close()
    async with opened(folder, [source]) as cache:
        assert await read_sample(cache, made) == made.data
        await settle(cache)
        await accounts_agree(cache)


async def test_the_folder_is_private_and_held_by_one_process_that_is_named(folder: Path, source: FaultySource) -> None:
    await trio.Path(folder).mkdir(mode=0o755)
    async with opened(folder, [source]):
        assert stat.S_IMODE((await trio.Path(folder).stat()).st_mode) == 0o700
        program = (
            "import sys; from pathlib import Path; from cache.lock import FolderLock\n"
            "from manifest.errors import Busy\n"
            "try: FolderLock.take(Path(sys.argv[1]), '/mnt/second')\n"
            "except Busy as error: print(error)"
        )
        done = await trio.run_process([sys.executable, "-c", program, str(folder)], capture_stdout=True)
        assert f"held by pid {os.getpid()}, mounted at /mnt/test" in done.stdout.decode()
        with pytest.raises(Busy, match="mounted at /mnt/test"):
            await _open_and_close(folder, source)
    await _open_and_close(folder, source)


async def test_a_folder_that_cannot_be_used_is_a_configuration_error(tmp_path: Path, source: FaultySource) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="cannot use the cache folder"):
        await _open_and_close(tmp_path / "file" / "cache", source)


def _touch_file(path: str) -> None:
    """What a hostile pickle would do."""
    open(path, "w").close()


class _Hostile:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return _touch_file, (self.path,)


@pytest.mark.parametrize("mode", [0, 2, 3, 4, 99])
def test_a_small_value_of_any_other_mode_is_a_miss_and_never_unpickled(mode: int, tmp_path: Path) -> None:
    store = SmallStore(tmp_path / "small")
    assert store.put(b"key", b"value")
    assert store.get(b"key") == b"value"
    proof = tmp_path / "executed"
    secret = tmp_path / "secret"
    secret.write_bytes(b"not for reading")
    with sqlite3.connect(tmp_path / "small" / "cache.db") as database:
        database.execute(
            "UPDATE Cache SET mode = ?, value = ?, filename = ?",
            (mode, pickle.dumps(_Hostile(str(proof))), "../secret"),
        )
        database.execute(
            "INSERT INTO Cache(key, raw, store_time, mode, value) VALUES (?, 0, 0, 1, x'00')",
            (pickle.dumps(_Hostile(str(proof))),),
        )
    database.close()
    assert store.get(b"key") is None
    assert set(store.keys()) == {b"key", b""}
    assert store.delete(b"key")
    assert secret.exists()
    assert not proof.exists()
    store.close()


@pytest.mark.alone
def test_a_small_value_is_not_waited_for_long(tmp_path: Path) -> None:
    store = SmallStore(tmp_path / "small")
    store.put(b"key", b"value")
    blocker = sqlite3.connect(tmp_path / "small" / "cache.db", isolation_level=None)
    blocker.execute("BEGIN EXCLUSIVE")
    begun = time.monotonic()
    assert not store.put(b"other", b"value")
    assert store.get(b"key") == b"value"
    assert time.monotonic() - begun < 2
    blocker.close()
    store.close()


def _row(i: int) -> ObjectRow:
    content = Digest.of(str(i).encode())
    name = f"{content.hex()[:2]}/{content.hex()}.0011223344556677"
    return ObjectRow(0, SHOW, content, 10 * MIB, 40, b"", name, 10 * MIB, 10 * MIB, b"\xff" * 5)


@pytest.mark.alone
@pytest.mark.timeout(120)
async def test_a_start_with_a_hundred_thousand_objects_walks_nothing(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = put(file_library, sample(1, 100 * KIB))
    async with opened(folder, [source]):
        pass  # the folder has an owner now
    index = Index(folder / "index.db")
    index.commit([_row(i) for i in range(100_000)], 1)
    index.close()
    begun = time.monotonic()
    async with opened(folder, [source], size_bytes=1 << 50) as cache:
        started = time.monotonic() - begun
        assert await read_sample(cache, made) == made.data
        assert cache.stats().objects == 100_000
        assert cache.percent(SHOW, Digest(_row(5).content)) == 100
    print(f"started in {started * 1e3:.0f} ms")
    assert started < 5, "a generous limit: it takes 50 ms on an idle machine"


def test_what_is_deleted_is_counted(tmp_path: Path) -> None:
    index = Index(tmp_path / "index.db")
    ids = [index.commit([_row(i)], i)[0].id for i in range(10)]
    assert index.delete([*ids[:4], 1000]) == (40 * MIB, 4)
    assert index.totals() == (60 * MIB, 6)
    index.close()


def test_an_index_of_format_1_keeps_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "index.db"
    index = Index(path)
    index.commit([_row(i) for i in range(3)], 5)
    index.close()
    with sqlite3.connect(path) as database:
        for trigger in ("pinned_comes", "pinned_goes", "object_comes"):
            database.execute(f"DROP TRIGGER {trigger}")
        database.execute("DROP TABLE pinned")
        for name in ("grp", "pins", "queue", "visited", "before"):
            database.execute(f"ALTER TABLE objects DROP COLUMN {name}")
        database.execute("DROP TABLE chunks")
        database.execute("DROP TRIGGER chunks_go")
        database.execute("PRAGMA user_version = 1")
    database.close()
    index = Index(path)
    assert index.find(SHOW, _row(2).content) is not None
    index.commit([dataclasses.replace(_row(3), grp=-7)], 6)
    assert [(c.used, c.group, c.visited) for c in index.candidates("1", (), "id", 9)] == [(5, 0, 0)] * 3 + [(6, -7, 0)]
    index.close()
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (FORMAT,)
    database.close()


def test_only_a_use_of_its_own_counts_as_a_further_one(tmp_path: Path) -> None:
    index = Index(tmp_path / "index.db")
    index.commit([_row(0)], 10_000)
    key = _row(0).key
    seen = []
    for used in (9_000, 10_500, 13_000, 14_000, 20_000, 30_000, 40_000, 1_000):
        index.touch({key: used})
        (found,) = index.candidates("1", (), "id", 9)
        seen.append((found.used, found.visited))
    assert seen == [
        (9_000, 0), (10_500, 0), (13_000, 1), (14_000, 1), (20_000, 2), (30_000, 3), (40_000, 3), (1_000, 3),
    ]  # fmt: skip
    index.close()


def test_a_row_of_the_same_content_replaces_and_says_what_it_replaced(tmp_path: Path) -> None:
    index = Index(tmp_path / "index.db")
    (first,) = index.commit([_row(1)], 1)
    (second,) = index.commit([_row(1)], 2)
    assert first.replaced is None
    assert second.replaced == 10 * MIB
    assert second.id > first.id
    assert index.totals() == (10 * MIB, 1)
    index.close()


@pytest.mark.parametrize("name", ["index.db-shm", "small/cache.db-shm"])
async def test_the_shared_memory_of_a_database_has_its_blocks_before_the_disk_is_full(
    name: str, folder: Path, source: FaultySource
) -> None:
    """A store to a hole in it, on a full disk, ends the process."""
    async with opened(folder, [source]):
        fd = os.open(folder / name, os.O_RDONLY)  # not closed before the databases are: its locks would go
        status = os.fstat(fd)
    os.close(fd)
    assert status.st_size >= SHM_BYTES
    assert status.st_blocks * 512 >= SHM_BYTES


def test_rows_can_go_on_a_disk_that_is_full_to_the_last_block() -> None:
    """What deletes them is written first, and there is no room for that but the ballast."""
    with loop_disk(24) as disk:
        index = Index(disk.path / "index.db")
        ids = [written.id for written in index.commit([_row(i) for i in range(200)], 1)]
        with closing(sqlite3.connect(disk.path / "index.db")) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (disk.path / "hog").touch()
        with (disk.path / "hog").open("r+b", buffering=0) as hog:
            for step in (1024 * 1024, 4096):
                with suppress(OSError):
                    while True:
                        hog.write(bytes(step))
        with pytest.raises(sqlite3.OperationalError, match="full"):
            index.commit([_row(500)], 2)
        assert index.delete(ids[:64])[1] == 64
        assert index.delete(ids[64:128])[1] == 64
        (disk.path / "hog").unlink()
        assert index.delete(ids[128:])[1] == 72
        assert (disk.path / "index.db.ballast").stat().st_blocks * 512 == BALLAST_BYTES
        index.close()


@pytest.mark.parametrize("name", ["of another", "no text"])
async def test_a_damaged_row_that_is_replaced_takes_no_file_of_another_content_with_it(
    name: str, folder: Path, file_library: Library, source: FaultySource, expects_log: pytest.LogCaptureFixture
) -> None:
    one, other = (put(file_library, sample(i, MIB)) for i in range(2))
    async with opened(folder, [source]) as cache:
        await read_sample(cache, one)
        await read_sample(cache, other)
    with closing(sqlite3.connect(folder / "index.db")) as database, database:
        value = "'./' || (SELECT file FROM objects WHERE content = ?2)"
        if name == "no text":
            value = "CAST(coalesce(x'ff2f', ?2) AS TEXT)"
        database.execute(f"UPDATE objects SET file = {value} WHERE content = ?1", (one.content, other.content))
    async with opened(folder, [source]) as cache:
        assert await read_sample(cache, one) == one.data
        await settle(cache)
        asked = len(source.asked)
        for made in (one, other):
            assert await read_sample(cache, made) == made.data
        assert len(source.asked) == asked
        await accounts_agree(cache)
