"""A source that changes while it is read is an error, never a torn version: with leases, and where there are none."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from manifest.errors import SourceChanged
from tools.publish.source import SourceReader

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "plate.dpx"
    path.write_bytes(b"x" * 100_000)
    return path


@pytest.fixture
def no_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without leases, as NFS is."""
    real = fcntl.fcntl

    def refuse(descriptor: int, command: int, argument: int = 0) -> int:
        if command == fcntl.F_SETLEASE:
            raise OSError(errno.EINVAL, "no leases here")
        return real(descriptor, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", refuse)


def read(reader: SourceReader) -> bytes:
    buffer = bytearray(reader.fingerprint.size)
    reader.fill(memoryview(buffer), 0)
    reader.finish()
    return bytes(buffer)


def test_a_quiet_file_is_read_under_a_lease(file: Path) -> None:
    with SourceReader(str(file)) as reader:
        assert reader.leased
        assert read(reader) == b"x" * 100_000


def test_a_file_that_is_open_for_writing_is_refused_after_a_short_wait(file: Path) -> None:
    with file.open("r+b"), pytest.raises(SourceChanged, match="open for writing in another program"):
        SourceReader(str(file))


def test_a_writer_that_ends_in_time_is_waited_for(file: Path) -> None:
    writer = file.open("r+b")
    threading.Timer(0.2, writer.close).start()
    with SourceReader(str(file)) as reader:
        assert reader.leased


def test_a_file_that_is_mapped_writable_is_refused(file: Path) -> None:
    descriptor = os.open(file, os.O_RDWR)
    with mmap.mmap(descriptor, 4096):
        os.close(descriptor)
        with pytest.raises(SourceChanged, match="open for writing"):
            SourceReader(str(file))


def test_somebody_who_opens_it_for_writing_meanwhile_breaks_the_read_and_not_the_process(file: Path) -> None:
    with SourceReader(str(file)) as reader:
        with pytest.raises(BlockingIOError):
            os.open(file, os.O_WRONLY | os.O_NONBLOCK)  # this breaks the lease, and waits for nobody
        with pytest.raises(SourceChanged, match="opened it for writing"):
            reader.fill(memoryview(bytearray(10)), 0)
        with pytest.raises(SourceChanged):
            reader.finish()


def test_a_writer_gets_in_once_the_read_has_ended(file: Path) -> None:
    reader = SourceReader(str(file))
    opened: list[float] = []

    def write() -> None:
        with file.open("r+b"):
            opened.append(time.monotonic())

    thread = threading.Thread(target=write)
    thread.start()
    time.sleep(0.1)
    assert not opened
    reader.close()
    thread.join(10)
    assert opened


@pytest.mark.usefixtures("no_leases")
def test_without_leases_a_quiet_file_is_read(file: Path) -> None:
    with SourceReader(str(file)) as reader:
        assert not reader.leased
        assert read(reader) == b"x" * 100_000


@pytest.mark.usefixtures("no_leases")
@pytest.mark.parametrize("how", ["bytes", "longer", "shorter", "mode"])
def test_without_leases_a_change_meanwhile_is_an_error(file: Path, how: str) -> None:
    with SourceReader(str(file)) as reader:
        if how == "bytes":
            with file.open("r+b") as other:
                other.write(b"y")
        elif how == "mode":
            file.chmod(0o600)
        else:
            os.truncate(file, 200_000 if how == "longer" else 50_000)
        with pytest.raises(SourceChanged, match="changed while it was read"):
            read(reader)


@pytest.mark.usefixtures("no_leases")
def test_without_leases_a_file_changed_just_now_is_waited_for_until_its_times_can_tell(file: Path) -> None:
    os.utime(file)
    with SourceReader(str(file)) as reader:
        assert reader.durable


def test_a_file_that_has_gone_or_become_something_else_is_a_change(tmp_path: Path) -> None:
    with pytest.raises(SourceChanged, match="has gone"):
        SourceReader(str(tmp_path / "nosuch"))
    (tmp_path / "link").symlink_to("nosuch")
    with pytest.raises(SourceChanged, match="has become a link"):
        SourceReader(str(tmp_path / "link"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceChanged, match="no regular file"):
        SourceReader(str(tmp_path / "pipe"))


def test_set_id_bits_are_dropped(file: Path) -> None:
    file.chmod(0o6755)
    with SourceReader(str(file)) as reader:
        assert reader.fingerprint.mode == 0o755
