"""A file that the kernel reads itself stays where it is and right, whatever happens to it and around it."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.lowlevel
import trio.testing

from cache import mend
from manifest.digest import Digest
from manifest.errors import Unavailable
from tests.cache.contents import (
    KIB,
    MIB,
    SHOW,
    FaultySource,
    Sample,
    accounts_agree,
    flip,
    open_sample,
    opened,
    put,
    quiet,
    read_all,
    read_sample,
    sample,
    settle,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cache.handle import CachedObject
    from cache.store import CacheStore
    from manifest.library import Library


def bytes_of(fd: int) -> bytes:
    """What the kernel would read."""
    return os.pread(fd, os.fstat(fd).st_size + 1, 0)


async def lent(cache: CacheStore, made: Sample) -> tuple[CachedObject, int]:
    """A handle that has been given the file of a content, which is read first."""
    handle = await open_sample(cache, made)
    assert await read_all(handle) == made.data
    await until(lambda: handle.backing() is not None)
    fd = handle.backing()
    assert fd is not None
    return handle, fd


def file_of(folder: Path, made: Sample) -> Path:
    """The one file of a content."""
    (path,) = (folder / "objects").rglob(f"{made.content.hex()}.*")
    return path


async def test_a_file_is_lent_once_it_is_whole_and_the_disk_has_it(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = put(file_library, sample(1, 3 * MIB))
    async with opened(folder, [source]) as cache:
        handle = await open_sample(cache, made)
        assert handle.backing() is None
        await handle.read(0, 2 * MIB, trio.current_time() + 5)
        await settle(cache)
        assert handle.backing() is None
        await read_all(handle)
        await until(lambda: handle.backing() is not None)
        fd = handle.backing()
        assert fd is not None
        assert bytes_of(fd) == made.data
        row = cache.shelves[0].index.find(SHOW, made.content)
        assert row is not None
        assert (row.whole, row.present_bytes) == (made.digest, made.size)
        handle.release()


@pytest.mark.usefixtures("expects_log")
async def test_nothing_is_lent_that_the_disk_did_not_take(
    folder: Path, file_library: Library, source: FaultySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = put(file_library, sample(1, 300 * KIB))

    def failing(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", failing)
    async with opened(folder, [source]) as cache:
        handle = await open_sample(cache, made)
        await read_all(handle)
        assert handle.backing() is None
        await settle(cache)
        assert handle.backing() is None
        handle.release()


@pytest.mark.parametrize("size", [0, 1, 1000, 64 * KIB])
async def test_a_small_content_is_never_lent(
    size: int, folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = put(file_library, sample(1, size))
    async with opened(folder, [source]) as cache:
        handle = await open_sample(cache, made)
        await read_all(handle)
        await quiet(cache)
        assert handle.backing() is None
        assert handle.complete == (size == 0)
        handle.release()


async def test_a_file_of_more_than_a_quarter_of_the_cache_is_never_lent(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    fits, large = put(file_library, sample(1, MIB)), put(file_library, sample(2, MIB + 1))
    async with opened(folder, [source], size_bytes=4 * MIB + 3) as cache:
        held, _ = await lent(cache, fits)
        handle = await open_sample(cache, large)
        await read_all(handle)
        await until(lambda: handle.complete)
        await quiet(cache)
        assert handle.backing() is None
        for one in (held, handle):
            one.release()


@pytest.mark.usefixtures("expects_log")
async def test_who_was_told_another_digest_is_lent_nothing_and_the_others_are(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = put(file_library, sample(1, MIB))
    lie = Sample(made.data, made.recipe, Digest.of(b"something else"))
    async with opened(folder, [source]) as cache:
        deceived = await open_sample(cache, lie)
        handle, fd = await lent(cache, made)
        assert deceived.backing() is None
        assert await read_all(deceived) == made.data
        other = await open_sample(cache, made)
        assert other.backing() == fd
        for one in (deceived, handle, other):
            one.release()


async def test_a_content_whose_recipe_is_an_object_is_lent(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = put(file_library, sample(1, 2 * MIB, 16 * KIB), recipe_object=True)
    async with opened(folder, [source]) as cache:
        handle = await open_sample(cache, made, with_recipe=False)
        assert await read_all(handle) == made.data
        await until(lambda: handle.backing() is not None)
        handle.release()
        await quiet(cache)
    source.fault = lambda ref: Unavailable(f"{ref}: offline")
    async with opened(folder, [source]) as cache:
        handle = await open_sample(cache, made, with_recipe=False)
        fd = handle.backing()
        assert fd is not None
        assert bytes_of(fd) == made.data
        handle.release()


@pytest.mark.usefixtures("expects_log")
async def test_what_is_lent_is_not_evicted(folder: Path, file_library: Library, source: FaultySource) -> None:
    made = put(file_library, sample(1, MIB))
    async with opened(folder, [source], size_bytes=5 * MIB) as cache:
        handle, fd = await lent(cache, made)
        inode = os.fstat(fd).st_ino
        for i in range(20):
            other = put(file_library, sample(100 + i, 900 * KIB))
            assert await read_sample(cache, other) == other.data
        cache.shelves[0].capacity.write_failed(OSError(errno.ENOSPC, "as if"), full=True)
        await until(lambda: cache.stats().evicted_bytes > 3 * MIB)
        assert bytes_of(fd) == made.data
        assert file_of(folder, made).stat().st_ino == inode
        again = await open_sample(cache, made)
        assert again.backing() == fd
        for one in (handle, again):
            one.release()
        await quiet(cache)
        await accounts_agree(cache)


async def test_a_further_handle_keeps_the_file_lent(folder: Path, file_library: Library, source: FaultySource) -> None:
    made = put(file_library, sample(1, MIB))
    async with opened(folder, [source]) as cache:
        handle, fd = await lent(cache, made)
        further = handle.hold()
        handle.release()
        assert further._content.lent == 1
        assert bytes_of(fd) == made.data
        further.release()
        assert further._content.lent == 0


def damage_flipped(path: Path, made: Sample) -> None:
    with path.open("r+b") as file:
        file.write(flip(made.data[: 100 * KIB]))


def damage_zeros(path: Path, made: Sample) -> None:
    with path.open("r+b") as file:
        file.write(bytes(made.size))


def damage_cut(path: Path, made: Sample) -> None:
    os.truncate(path, made.size // 2)


def damage_emptied(path: Path, made: Sample) -> None:
    os.truncate(path, 0)


def damage_longer(path: Path, made: Sample) -> None:
    os.truncate(path, made.size + 10)


def damage_removed(path: Path, made: Sample) -> None:
    damage_flipped(path, made)
    path.unlink()


DAMAGE = [damage_flipped, damage_zeros, damage_cut, damage_emptied, damage_longer, damage_removed]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__[7:])
async def test_a_file_that_is_damaged_while_it_is_lent_is_mended_in_place(
    damage: object, folder: Path, file_library: Library, source: FaultySource, expects_log: pytest.LogCaptureFixture
) -> None:
    assert callable(damage)
    made = put(file_library, sample(1, 2 * MIB))
    async with opened(folder, [source]) as cache:
        handle, fd = await lent(cache, made)
        status = os.fstat(fd)
        damage(file_of(folder, made), made)
        cache.shelves[0].flusher.distrust(handle._content, "found by the scrub")
        assert handle.backing() is None
        assert not handle.complete
        assert await read_all(handle) == made.data
        await until(lambda: handle.backing() == fd)
        assert bytes_of(fd) == made.data
        assert os.fstat(fd).st_ino == status.st_ino
        await until(lambda: cache.counters.mended == 1)
        assert cache.counters.doubted == 1
        handle.release()
        await quiet(cache)
        await accounts_agree(cache)
        assert await read_sample(cache, made) == made.data
    said = [r.getMessage() for r in expects_log.records if r.levelname == "ERROR"]
    assert len(said) == 1
    assert "plate/a.exr is wrong (found by the scrub) while programs have it open" in said[0]
    assert "plate/a.exr is mended" in expects_log.text


@pytest.mark.usefixtures("expects_log")
@pytest.mark.parametrize("damage", [damage_cut, damage_longer], ids=lambda damage: damage.__name__[7:])
async def test_another_size_of_a_lent_file_is_seen_at_the_next_loan(
    damage: object, folder: Path, file_library: Library, source: FaultySource
) -> None:
    assert callable(damage)
    made = put(file_library, sample(1, 2 * MIB))
    async with opened(folder, [source]) as cache:
        handle, fd = await lent(cache, made)
        damage(file_of(folder, made), made)
        other = await open_sample(cache, made)
        assert other.backing() is None
        await until(lambda: other.backing() == fd)
        assert bytes_of(fd) == made.data
        for one in (handle, other):
            one.release()


@pytest.mark.usefixtures("expects_log")
async def test_bytes_that_were_not_wrong_stay_right_while_they_are_mended(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = put(file_library, sample(1, 3 * MIB))
    async with opened(folder, [source]) as cache:
        handle, fd = await lent(cache, made)
        cache.shelves[0].flusher.distrust(handle._content, "a false alarm")
        while handle.backing() is None:
            assert bytes_of(fd) == made.data
            await trio.lowlevel.checkpoint()
        handle.release()


async def test_a_lent_file_is_mended_when_the_library_answers_again(
    folder: Path, file_library: Library, source: FaultySource, monkeypatch: pytest.MonkeyPatch,
    expects_log: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(mend, "PAUSE_S", 0.05)
    made = put(file_library, sample(1, 2 * MIB))
    async with opened(folder, [source]) as cache:
        handle, fd = await lent(cache, made)
        damage_zeros(file_of(folder, made), made)
        source.fault = lambda ref: Unavailable(f"{ref}: offline")
        cache.shelves[0].flusher.distrust(handle._content, "found by the scrub")
        await until(lambda: "cannot be mended yet" in expects_log.text)
        await settle(cache)
        row = cache.shelves[0].index.find(SHOW, made.content)
        assert row is not None
        assert (row.present_bytes, row.whole) == (0, b""), "what is not believed is not claimed"
        source.fault = lambda _: None
        await until(lambda: handle.backing() == fd)
        assert bytes_of(fd) == made.data
        handle.release()


@contextmanager
def turning_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A disk that takes everything and says afterwards that it did not."""

    def failing(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failing)
        yield


async def test_a_disk_that_goes_on_failing_is_not_written_to_for_ever(
    folder: Path, file_library: Library, source: FaultySource, monkeypatch: pytest.MonkeyPatch,
    expects_log: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    made = put(file_library, sample(1, 2 * MIB))
    async with opened(folder, [source]) as cache:
        handle, fd = await lent(cache, made)
        with turning_disk(monkeypatch):
            cache.shelves[0].flusher.distrust(handle._content, "found by the scrub")
            await until(lambda: "replace the cache disk" in expects_log.text)
            assert cache.counters.mended == mend.MENDS_MAX
            assert handle.backing() is None
            assert await read_all(handle) == made.data, "through the daemon it is right"
            assert bytes_of(fd) == made.data
        handle.release()


@pytest.mark.usefixtures("expects_log")
async def test_a_file_that_was_being_mended_when_it_was_released_is_an_ordinary_one(
    folder: Path, file_library: Library, source: FaultySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mend, "PAUSE_S", 0.01)
    made = put(file_library, sample(1, 2 * MIB))
    async with opened(folder, [source]) as cache:
        handle, _ = await lent(cache, made)
        damage_zeros(file_of(folder, made), made)
        source.fault = lambda ref: Unavailable(f"{ref}: offline")
        cache.shelves[0].flusher.distrust(handle._content, "found by the scrub")
        await trio.sleep(0.05)
        handle.release()
        await until(lambda: cache.stats().open_objects == 0)
        source.fault = lambda _: None
        assert await read_sample(cache, made) == made.data
        await quiet(cache)
        await accounts_agree(cache)
    async with opened(folder, [source]) as cache:
        handle, fd = await lent(cache, made)
        assert bytes_of(fd) == made.data
        handle.release()


async def test_a_file_that_is_not_lent_and_not_believed_is_never_opened_again(
    folder: Path, file_library: Library, source: FaultySource, expects_log: pytest.LogCaptureFixture
) -> None:
    made = put(file_library, sample(1, 2 * MIB))
    async with opened(folder, [source]) as cache:
        handle = await open_sample(cache, made)
        await read_all(handle)
        await quiet(cache)
        path = file_of(folder, made)
        damage_zeros(path, made)
        async with cache.shelves[0].flusher._one_at_a_time:  # its row is still there
            cache.shelves[0].flusher.distrust(handle._content, "found by the scrub")
            handle.release()
            assert cache.open_now(SHOW, made.content, made.size, made.digest, made.recipe) is None
            handle = await open_sample(cache, made)
            assert await read_all(handle) == made.data
        await quiet(cache)
        assert not path.exists()
        await until(lambda: handle.backing() is not None)
        handle.release()
        await accounts_agree(cache)
    assert "is dropped and fetched again" in expects_log.text


@pytest.mark.usefixtures("expects_log")
async def test_what_a_predecessor_lent_and_was_mending_is_mended_by_the_successor(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = put(file_library, sample(1, 2 * MIB))
    async with opened(folder, [source]) as cache:
        handle, fd = await lent(cache, made)
        kernels = os.dup(fd)
        damage_zeros(file_of(folder, made), made)
        source.fault = lambda ref: Unavailable(f"{ref}: offline")
        cache.shelves[0].flusher.distrust(handle._content, "found by the scrub")
        await settle(cache)
    source.fault = lambda _: None
    try:
        async with opened(folder, [source]) as cache:
            handle = await open_sample(cache, made)
            handle.was_lent()
            await until(lambda: handle.backing() is not None)
            assert bytes_of(kernels) == made.data
            handle.release()
    finally:
        os.close(kernels)
