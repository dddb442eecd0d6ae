"""The small parts of the process: log lines, readiness, what is remembered, the table of mounts, dumps."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
import trio
import trio.testing

from daemon import dump, journal, mounts
from daemon.ready import Ready, cause_of
from daemon.remembered import Remembered
from daemon.systemd import Notify
from manifest.errors import Busy, ConfigurationError, NotFound, Unavailable
from manifest.identity import Identity
from vfs import mountinfo

IDENTITY = Identity("0123456789abcdef" * 2)


@pytest.fixture
def stream() -> Iterator[StringIO]:
    root = logging.getLogger()
    kept = root.handlers[:], root.level
    made = StringIO()
    yield made
    root.handlers[:], root.level = kept
    logging.captureWarnings(capture=False)


def test_a_message_is_one_line_whatever_a_file_is_called(stream: StringIO) -> None:
    journal.set_up(0, stream)
    logging.getLogger("cache").warning("cannot read %s", "a\nb\x1b[31m")
    (line,) = stream.getvalue().splitlines()
    assert line.endswith(r"WARNING cache: cannot read a\x0ab\x1b[31m")


def test_a_tracebacks_lines_are_lines_of_their_own(stream: StringIO) -> None:
    journal.set_up(0, stream)
    logging.getLogger("x").error("it failed", exc_info=ValueError("why"))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert all(" ERROR   x: " in line for line in lines)
    assert lines[-1].endswith("| ValueError: why")


def test_under_systemd_a_line_begins_with_its_priority(stream: StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    journal.set_up(0, stream)
    logging.getLogger("x").error("bad")
    assert stream.getvalue() == "<3>x: bad\n"


@pytest.mark.parametrize(("verbosity", "shown"), [(-1, ["w"]), (0, ["i", "w"]), (1, ["d", "i", "w"])])
def test_verbosity_chooses_the_level(stream: StringIO, verbosity: int, shown: list[str]) -> None:
    journal.set_up(verbosity, stream)
    log = logging.getLogger("x")
    log.debug("d")
    log.info("i")
    log.warning("w")
    assert [line[-1] for line in stream.getvalue().splitlines()] == shown


def test_the_service_manager_is_told_and_children_are_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(5)
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify = Notify()
        assert "NOTIFY_SOCKET" not in os.environ
        notify.ready("up")
        notify.stopping()
        assert manager.recv(100) == b"READY=1\nSTATUS=up"
        assert manager.recv(100).startswith(b"STOPPING=1")


def test_an_abstract_notify_socket_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"damfs-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(5)
        manager.bind(f"\0{name}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        Notify().status("fine")
        assert manager.recv(100) == b"STATUS=fine"


def test_whoever_waits_for_readiness_is_told_once() -> None:
    reading, writing = os.pipe()
    ready = Ready(writing)
    ready.failed(Busy("taken"))
    ready.up(pid=1)
    with os.fdopen(reading) as pipe:
        assert json.loads(pipe.read()) == {"error": "taken", "exit_code": 3, "kind": "Busy"}


def test_the_error_that_counts_is_found_in_nested_groups() -> None:
    inner = BaseExceptionGroup("", [trio.TrioInternalError("x"), ExceptionGroup("", [Unavailable("gone")])])
    assert str(cause_of(ExceptionGroup("", [ValueError("y")]))) == "y"
    assert str(cause_of(inner)) == "gone"


def test_a_library_is_remembered_by_its_url(tmp_path: Path) -> None:
    memory = Remembered(tmp_path / "replicas", "file:///a")
    assert memory.identity() is None
    memory.remember_identity(IDENTITY)
    assert Remembered(tmp_path / "replicas", "file:///a").identity() == IDENTITY
    assert Remembered(tmp_path / "replicas", "file:///b").identity() is None


def test_shows_are_remembered_sorted(tmp_path: Path) -> None:
    memory = Remembered(tmp_path, "file:///a")
    assert memory.shows(IDENTITY) == []
    memory.remember_shows(IDENTITY, ["zeus", "apollo"])
    assert memory.shows(IDENTITY) == ["apollo", "zeus"]


@pytest.mark.parametrize("damage", [b"", b"{", b'{"_type":"damfs.shows/1","shows":["../x"]}', b"\xff"])
def test_a_damaged_memory_is_no_memory(tmp_path: Path, damage: bytes) -> None:
    memory = Remembered(tmp_path, "file:///a")
    memory.remember_shows(IDENTITY, ["apollo"])
    memory.remember_identity(IDENTITY)
    for path in (tmp_path / IDENTITY.id / "shows.json", next(tmp_path.glob("*.identity"))):
        path.write_bytes(damage)
    assert memory.shows(IDENTITY) == []
    assert memory.identity() is None


def test_a_mountpoint_must_be_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="mkdir"):
        mounts.prepare(tmp_path / "none")
    with pytest.raises(ConfigurationError, match="not a folder"):
        mounts.prepare(tmp_path / "file")
    with pytest.raises(ConfigurationError, match="not empty"):
        mounts.prepare(tmp_path)
    (tmp_path / "empty").mkdir()
    mounts.prepare(tmp_path / "empty")


def test_what_somebody_else_mounted_is_refused() -> None:
    with pytest.raises(Busy, match="already mounted"):
        mounts.prepare(Path("/proc"))


def test_unmounting_what_is_not_mounted_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nothing is mounted"):
        mounts.unmount(tmp_path, lazy=True)


def test_a_path_outside_of_all_mounts_is_in_none(tmp_path: Path) -> None:
    assert mounts.containing(tmp_path) is None
    (tmp_path / "link").symlink_to(tmp_path)
    assert mounts.canonical(tmp_path / "link/x") == tmp_path / "x"


@pytest.fixture
def mounted_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kernel's table with a mount of ours and one that lies in it, as every table with the root at its head."""
    place = tmp_path / "dam"
    lines = [
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw",
        f"2 1 0:40 / {place} rw - fuse.damfs damfs rw,user_id=0,group_id=0",
        f"3 2 0:41 / {place}/apollo/local rw - tmpfs tmpfs rw",
    ]
    (tmp_path / "mountinfo").write_text("".join(f"{line}\n" for line in lines))
    monkeypatch.setattr(mountinfo, "_MOUNTINFO", tmp_path / "mountinfo")
    return place


def test_a_path_in_a_mount_is_found_through_links_outside_of_it(mounted_at: Path) -> None:
    folder = mounted_at.parent
    (folder / "short").symlink_to("deep/../dam/apollo")
    (folder / "deep").symlink_to(folder / "a/b")
    (folder / "a/b").mkdir(parents=True)
    (folder / "a/dam").symlink_to(mounted_at)
    for text, spelled in (
        ("dam/apollo/x", "dam/apollo/x"),
        ("short/x", "dam/apollo/x"),
        ("deep/../dam", "dam"),
        ("a/b/.././dam/@1/y", "dam/@1/y"),
    ):
        found = mounts.containing(folder / text)
        assert found is not None, text
        assert found.mountpoint == mounted_at
        assert mounts.canonical(folder / text) == folder / spelled


def test_a_path_in_something_that_is_mounted_in_a_mount_is_not_in_it(mounted_at: Path) -> None:
    assert mounts.containing(mounted_at / "apollo/local/x") is None
    assert mounts.containing(mounted_at / "apollo/locally") is not None


def test_links_in_a_circle_and_links_that_lead_nowhere_are_in_no_mount(mounted_at: Path) -> None:
    folder = mounted_at.parent
    (folder / "one").symlink_to("two")
    (folder / "two").symlink_to("one")
    (folder / "nowhere").symlink_to("not/there")
    for name in ("one", "nowhere"):
        assert mounts.containing(folder / name) is None
    assert mounts.canonical(folder / "one/x") == folder / "one/x"
    assert mounts.canonical(folder / "nowhere/x") == folder / "not/there/x"


async def test_a_dump_shows_what_every_task_waits_for() -> None:
    async def wait_for_the_show() -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for_the_show)
        await trio.testing.wait_all_tasks_blocked()
        text = "\n".join(dump.task_lines())
        nursery.cancel_scope.cancel()
    assert "wait_for_the_show" in text
    assert "await trio.sleep_forever()" in text


def test_the_client_is_light() -> None:
    """Commands import it: it must not pull in the server, trio or the object store."""
    heavy = "('trio', 'hypercorn', 'obstore', 'starlette')"
    code = f"import sys, daemon.client; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
