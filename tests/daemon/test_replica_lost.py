"""A replica that is deleted, damaged or replaced under a running daemon is built anew, and the mount goes on."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from daemon import paths
from manifest import layout
from manifest.schema import PAGE_BYTES
from tests.daemon.conftest import House, Running, within

SEEN_S = 12
FILES = {f"seq{n // 50:03d}/f.{n:04d}": b"x%d" % n for n in range(500)}


def replica(house: House) -> Path:
    return paths.replica_folder(house.folder / "cache") / house.identity.id / "apollo.db"


def mounted(house: House) -> Running:
    house.publish(FILES)
    running = house.mount()
    assert (house.mountpoint / "apollo/seq000/f.0001").read_bytes() == b"x1"
    return running


def goes_on(house: House, running: Running, opened: int) -> None:
    """What is published is seen without a new mount; what the kernel knew is the same; what is open is read on."""
    known = (house.mountpoint / "apollo/seq000").stat()
    revision = house.publish({"new/file": b"new"})
    assert running.client.sync("apollo", revision, timeout_s=SEEN_S) == revision
    assert (house.mountpoint / "apollo/new/file").read_bytes() == b"new"
    assert (house.mountpoint / "apollo/seq000").stat() == known
    for n in (1, 2, 499):
        assert (house.mountpoint / f"apollo/seq{n // 50:03d}/f.{n:04d}").read_bytes() == b"x%d" % n
    assert len(os.listdir(house.mountpoint / "apollo/seq003")) == 50
    assert os.pread(opened, 10, 0) == b"x3"
    status = running.client.status()["shows"]["apollo"]
    assert (status["revision"], status["stalled"], status["error"]) == (revision, None, None)
    assert status["failed_attempts"] >= 1
    assert replica(house).exists()
    with closing(sqlite3.connect(replica(house))) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT max(seq) FROM revisions").fetchone() == (revision,)
    links = [os.readlink(f"/proc/{running.process.pid}/fd/{n}") for n in os.listdir(f"/proc/{running.process.pid}/fd")]
    left = [Path(link).name for link in links if "apollo.db" in link and "(deleted)" in link]
    assert " ".join(left) == ""


def replicas_deleted(house: House) -> None:
    shutil.rmtree(replica(house).parent.parent)


def file_deleted(house: House) -> None:
    for path in replica(house).parent.glob("apollo.db*"):
        path.unlink()


def overwritten(house: House) -> None:
    overwrite(replica(house), 0)


def overwritten_behind_its_first_page(house: House) -> None:
    overwrite(replica(house), PAGE_BYTES)


def overwritten_in_the_write_ahead_log(house: House) -> None:
    overwrite(replica(house).with_name("apollo.db-wal"), 4096)


def overwrite(path: Path, start: int) -> None:
    """With what is no database, in place. What is in the write-ahead log was taken into the database before."""
    if path.suffix == ".db":
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    with path.open("r+b") as file:
        file.seek(start)
        file.write(Random(1).randbytes(path.stat().st_size - start))


def replaced(house: House) -> None:
    other = replica(house).with_name("other")
    other.write_bytes(b"no database")
    other.rename(replica(house))


LOSSES = [
    replicas_deleted,
    file_deleted,
    overwritten,
    overwritten_behind_its_first_page,
    overwritten_in_the_write_ahead_log,
    replaced,
]


@pytest.mark.parametrize("lose", LOSSES)
def test_a_lost_replica_is_built_anew_under_a_running_mount(house: House, lose: Callable[[House], None]) -> None:
    running = mounted(house)
    opened = os.open(house.mountpoint / "apollo/seq000/f.0003", os.O_RDONLY)
    try:
        assert os.pread(opened, 10, 0) == b"x3"
        lose(house)
        goes_on(house, running, opened)
    finally:
        os.close(opened)
    running.client.stop()
    assert running.wait() == 0
    house.take_away()
    house.mount()
    assert (house.mountpoint / "apollo/seq000/f.0001").read_bytes() == b"x1"


def test_what_was_there_is_served_while_a_deleted_replica_cannot_be_built(house: House) -> None:
    running = mounted(house)
    house.take_away()
    replicas_deleted(house)
    within(10, lambda: running.client.status()["offline"])
    assert sorted(os.listdir(house.mountpoint / "apollo")) == [f"seq{n:03d}" for n in range(10)]
    assert len(os.listdir(house.mountpoint / "apollo/seq007")) == 50
    assert (house.mountpoint / "apollo/seq000/f.0001").read_bytes() == b"x1"
    assert running.client.status()["shows"]["apollo"]["revision"] == 1
    house.bring_back()
    house.publish({"late": b"late"})
    within(10, (house.mountpoint / "apollo/late").exists)


def test_a_replica_built_from_another_log_is_not_served(house: House) -> None:
    running = mounted(house)
    house.shows.pop("apollo").close()
    shutil.rmtree(house.folder / "replicas")
    (house.library_folder / layout.log_key("apollo", 1)).unlink()
    house.publish({"another/history": b"other"})
    replicas_deleted(house)
    within(10, lambda: running.client.status()["shows"]["apollo"]["stalled"])
    status = running.client.status()["shows"]["apollo"]
    assert (status["revision"], status["stalled"]["kind"]) == (1, "rewritten")
    assert "log entry 1" in status["error"]
    assert sorted(os.listdir(house.mountpoint / "apollo")) == [f"seq{n:03d}" for n in range(10)]
    assert running.log.count("the log was rewritten or cut") == 1
