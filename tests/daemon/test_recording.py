"""Whose opens a recording is of, and how it ends."""

from __future__ import annotations

import os
import subprocess
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trio

from daemon import recorded, recording
from daemon.recording import Recordings
from manifest.errors import Busy, NotFound, UsageError
from manifest.replica import Kind, Row
from tests.cache.contents import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

VIEW: Any = SimpleNamespace(show="apollo", reader=SimpleNamespace(path_of=lambda row, _revision: f"plate/{row.name}"))


def row(number: int, size: int = 100) -> Row:
    return Row(number, 0, f"{number}.exr", 0, 3, None, Kind.FILE, 0, size, 0, bytes(32), bytes(32), None)


@asynccontextmanager
async def running() -> AsyncIterator[Recordings]:
    async with trio.open_nursery() as nursery:
        made = Recordings()
        await nursery.start(made.run)
        yield made
        nursery.cancel_scope.cancel()


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sh", "-c", "cat; true"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        yield process
        process.kill()


async def test_the_descendants_of_who_asks_are_recorded_and_nobody_else(child: subprocess.Popen[bytes]) -> None:
    async with running() as found:
        assert found.opened(child.pid, VIEW, row(1)) is None, "nobody records"
        number = found.start(os.getpid())
        for pid in (1, os.getpid(), os.getppid(), 0, 2**22 + 1):
            assert found.opened(pid, VIEW, row(1)) is None
        for one in (row(2), row(1), row(2)):
            touched = found.opened(child.pid, VIEW, one)
            assert touched is not None
            touched.note(10, 20)
        assert found.opened(child.pid, VIEW, row(4)) is not None, "it is opened, and not read"
        assert found.opened(child.pid, VIEW, row(5, 0)) is None
        with pytest.raises(NotFound):
            await found.stop(number, child.pid)
        trace = recorded.parse(await found.stop(number, os.getpid()))
        assert [(file.path, file.revision, file.ranges) for file in trace.files] == [
            ("plate/2.exr", 3, ((10, 30),)), ("plate/1.exr", 3, ((10, 30),))
        ]  # fmt: skip
        assert found.opened(child.pid, VIEW, row(1)) is None
        with pytest.raises(NotFound, match="the daemon was replaced"):
            await found.stop(number, os.getpid())


async def test_a_recording_ends_with_who_asked_for_it(
    child: subprocess.Popen[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    async with running() as found:
        number = found.start(child.pid)
        child.kill()
        await until(lambda: not found._under_way)
        with pytest.raises(NotFound):
            await found.stop(number, child.pid)
        assert "is gone" in caplog.text
        caplog.clear()


async def test_what_a_recording_has_no_room_for_is_left_out_and_said(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "FILES_MAX", 2)
    monkeypatch.setattr(recording, "RECORDINGS_MAX", 1)
    async with running() as found:
        number = found.start(os.getpid())
        with pytest.raises(Busy):
            found.start(os.getpid())
        opened = [found.opened(child.pid, VIEW, row(i)) for i in range(1, 4)]
        assert opened[2] is None
        for touched in opened[:2]:
            assert touched is not None
            touched.note_all()
        trace = recorded.parse(await found.stop(number, os.getpid()))
        assert (len(trace.files), trace.cut) == (2, True)
        for pid in (0, 2**22 + 1):
            with pytest.raises(UsageError):
                found.start(pid)
