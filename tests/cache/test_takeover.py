"""A successor has the cache at once, whatever state its predecessor was killed in."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from cache.claim import ClaimChecker
from cache.lock import FolderLock
from manifest.errors import Busy
from tests.cache.contents import (
    KIB,
    SHOW,
    FaultySource,
    accounts_agree,
    missing,
    open_sample,
    opened,
    put,
    read_all,
    read_sample,
    sample,
    until,
)
from tests.cache.predecessor import made

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from manifest.library import Library

READY_S = 60


@contextmanager
def predecessor(folder: Path, library: Library, mode: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A process that has done what ``mode`` says, and its lock, which is the caller's; it is dead at the end."""
    ours, its = socket.socketpair()
    ours.settimeout(READY_S)
    with ours:
        with its:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.cache.predecessor", str(folder), library.url, str(its.fileno()), mode],
                pass_fds=[its.fileno()],
            )
        try:
            said, (lock,), _, _ = socket.recv_fds(ours, 1, 1)
            assert said == b"!"
            yield process, lock
        finally:
            process.kill()
            process.wait(timeout=30)


@contextmanager
def lock_of(folder: Path) -> Iterator[int]:
    """A predecessor's lock, as a supervisor has it; the caller's."""
    folder.mkdir(mode=0o700, exist_ok=True)
    taken = FolderLock.take(folder, "/mnt/before")
    kept = os.dup(taken.fd)
    taken.release()
    try:
        yield os.dup(kept)
    finally:
        os.close(kept)


async def test_a_lock_that_was_kept_lets_its_owner_in_and_nobody_else(folder: Path, source: FaultySource) -> None:
    with lock_of(folder) as lock:
        with pytest.raises(Busy, match="mounted at /mnt/before"):
            FolderLock.take(folder, "/mnt/other")
        async with opened(folder, [source], lock=lock) as cache:
            assert cache.lock_fds == [lock]
            assert (folder / "lock").read_text() == f"{os.getpid()}\n/mnt/test\n"
            assert not os.get_inheritable(lock)
            with pytest.raises(Busy, match=f"pid {os.getpid()}, mounted at /mnt/test"):
                FolderLock.take(folder, "/mnt/other")
        with pytest.raises(Busy):  # the supervisor still has it
            FolderLock.take(folder, "/mnt/other")
    FolderLock.take(folder, "/mnt/other").release()


async def test_a_lock_of_another_folder_is_given_up_and_this_one_is_locked(
    folder: Path, tmp_path: Path, source: FaultySource
) -> None:
    with lock_of(tmp_path / "before") as lock:
        identity = os.fstat(lock)
        async with opened(folder, [source], lock=lock) as cache:
            assert not os.path.samestat(os.fstat(cache.shelves[0].lock.fd), identity)
            with pytest.raises(Busy):
                FolderLock.take(folder, "/mnt/other")
    FolderLock.take(tmp_path / "before", "/mnt/other").release()


async def test_a_descriptor_of_a_lock_file_that_was_replaced_is_not_believed(
    folder: Path, source: FaultySource
) -> None:
    with lock_of(folder) as lock:
        (folder / "lock").unlink()
        async with opened(folder, [source], lock=lock) as cache:
            assert os.path.samestat(os.fstat(cache.shelves[0].lock.fd), os.stat(folder / "lock"))


async def test_a_descriptor_whose_lock_is_lost_does_not_let_two_in(
    folder: Path, source: FaultySource, expects_log: pytest.LogCaptureFixture
) -> None:
    await trio.Path(folder).mkdir(mode=0o700)
    holder = FolderLock.take(folder, "/mnt/other")
    stranger = os.open(folder / "lock", os.O_RDWR)
    with pytest.raises(ExceptionGroup) as caught:
        async with opened(folder, [source], lock=stranger):
            pass
    assert isinstance(caught.value.exceptions[0], Busy)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(stranger)
    holder.release()
    assert "of no use" in expects_log.text


@pytest.mark.alone
@pytest.mark.timeout(180)
async def test_a_predecessor_that_lingers_in_its_transactions_is_not_waited_for(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    large, small = put(file_library, sample(5, 200 * KIB)), put(file_library, sample(6, 1000))
    async with opened(folder, [source]) as cache:
        for one in (large, small):
            await read_sample(cache, one)
    source.fault = missing
    with predecessor(folder, file_library, "writing") as (process, lock):
        process.send_signal(signal.SIGSTOP)
        begun = time.monotonic()
        async with opened(folder, [source], lock=lock) as cache:
            started = time.monotonic() - begun
            for one in (large, small):
                assert await read_sample(cache, one) == one.data
            handle = await open_sample(cache, large)
            assert handle.backing() is not None
            read = time.monotonic() - begun
            process.kill()
            process.wait(timeout=30)
            handle.release()
            source.fault = lambda _: None
            other = put(file_library, sample(7, 200 * KIB))
            assert await read_sample(cache, other) == other.data
            await accounts_agree(cache)
    print(f"started in {started * 1e3:.0f} ms")
    assert started < 3, "a generous limit: it takes 10 ms, and would wait for 5 or 60 seconds for a lock"
    assert read < 4, "it waits for a lock"


@pytest.mark.timeout(180)
async def test_a_kill_when_a_file_is_complete_loses_no_more_than_that(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    one = put(file_library, made())
    with predecessor(folder, file_library, "complete") as (process, lock):
        process.kill()
        async with opened(folder, [source], lock=lock) as cache:
            handle = await open_sample(cache, one)
            assert await read_all(handle) == one.data
            await until(lambda: handle.backing() is not None)
            handle.release()
            await accounts_agree(cache)
            assert cache.stats().verification_failures == 0


@pytest.mark.timeout(180)
async def test_what_was_lent_when_its_lender_was_killed_is_found_again_and_not_hashed(
    folder: Path, file_library: Library, source: FaultySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = put(file_library, made())
    with predecessor(folder, file_library, "lent") as (process, lock):
        inodes = [path.stat().st_ino for path in (folder / "objects").rglob("*.*")]
        process.kill()
        monkeypatch.setattr(ClaimChecker, "_update", None)
        async with opened(folder, [source], lock=lock) as cache:
            assert cache.percent(SHOW, one.content) == 100
            handle = await open_sample(cache, one)
            fd = handle.backing()
            assert fd is not None
            assert [os.fstat(fd).st_ino] == inodes
            assert os.pread(fd, one.size + 1, 0) == one.data
            handle.release()
