"""A mount outlives its daemon: applications notice a crash and an upgrade as a pause, and as nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Mount, Studio, drilled, process_lives, wait_until
from tests.mount import player
from tests.mount.conftest import random_bytes, write_tree
from vfs.binding import kernel_why_not

PLAYERS = 8
PLAYER_END_S = 120.0
PAUSE_S_MAX = 30.0
"""What no application waits longer for, on any machine: the aim is 1 s, and is reported."""

pytestmark = pytest.mark.skipif(kernel_why_not() is not None, reason=f"no kernel binding: {kernel_why_not()}")


def make_tree(folder: Path, *, megabytes: int) -> Path:
    """Frames of 1 to 3 MB, textures of some 100 KB and small scripts, in several folders."""
    files: dict[str, bytes] = {}
    left = megabytes * 1_000_000
    number = 0
    while left > 0:
        size = (1_000_000, 3_000_000, 300_000, 20_000, 70_000)[number % 5] + number
        files[f"seq{number % 4:02d}/frame.{number:04d}.exr"] = random_bytes(size, number)
        left -= size
        number += 1
    return write_tree(folder, files)


@contextmanager
def playing(mounted: Path, reference: Path, count: int = PLAYERS) -> Iterator[list[dict[str, Any]]]:
    """Clients that use the mount meanwhile; what they report is in the list afterwards."""
    reports: list[dict[str, Any]] = []
    processes = [
        subprocess.Popen([sys.executable, player.__file__, mounted, reference, str(seed)],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/")
        for seed in range(count)
    ]  # fmt: skip
    try:
        yield reports
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in processes:
            process.stdin = None
            said, _ = process.communicate(timeout=PLAYER_END_S)
            assert process.returncode == 0
            reports.append(json.loads(said))
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate(timeout=PLAYER_END_S)


def pid_of(mount: Mount) -> int | None:
    done = mount.studio.complete("status", mount.path, "--json")
    return int(json.loads(done.stdout)["pid"]) if done.returncode == 0 else None


def processes_of(mount: Mount) -> dict[str, int]:
    """The pids of the supervisor's children, by what ``ps`` calls them."""
    found = {}
    with suppress(OSError):
        for pid in Path(f"/proc/{mount.supervisor_pid}/task/{mount.supervisor_pid}/children").read_text().split():
            with suppress(OSError):
                found[Path("/proc", pid, "comm").read_text().strip()] = int(pid)
    return found


def kill_daemon(mount: Mount) -> bool:
    """End the daemon, whether it serves already or not; whether there was one."""
    pid = processes_of(mount).get("damfs-daemon")
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return pid is not None


def served_by(mount: Mount, *, other_than: int) -> int:
    """The pid of the daemon that serves the mount after another one."""
    found: list[int] = []

    def is_served() -> bool:
        pid = pid_of(mount)
        if pid is not None and pid != other_than:
            found.append(pid)
        return bool(found)

    wait_until(is_served, f"a successor of {other_than}", PAUSE_S_MAX)
    return found[0]


@pytest.mark.drill
def test_eight_players_notice_nothing_of_a_daemon_that_is_killed_again_and_again(
    artist: Studio, tmp_path: Path, record_property: Any
) -> None:
    tree = make_tree(tmp_path / "source", megabytes=150)
    artist.run("publish", tree, "apollo:v001")
    mount = artist.mount("--cache-size", "100MB")
    artist.expected.append("supervisor: ")
    kills = drilled(12, 500)
    dice = random.Random(kills)
    pid = mount.pid
    with playing(mount.path / "apollo/v001", tree) as reports:
        for _ in range(kills):
            time.sleep(dice.uniform(0.1, 2.0))
            os.kill(pid, signal.SIGKILL)
            pid = served_by(mount, other_than=pid)
    mount.pid = pid
    status = mount.status()
    faults = [fault for report in reports for fault in report["faults"]]
    assert faults == []
    assert all(sum(report["done"].values()) > 10 for report in reports)
    assert status["handover"]["count"] == kills
    longest = max(reports, key=lambda report: report["longest_s"])
    record_property("longest_pause_s", status["handover"]["longest_pause_s"])
    record_property("longest_call_s", longest["longest_s"])
    print(f"{kills} kills, the longest pause {status['handover']['longest_pause_s']:.3f} s, "
          f"the longest of an application's tasks {longest['longest_s']:.3f} s ({longest['longest']})")  # fmt: skip
    assert status["handover"]["longest_pause_s"] < PAUSE_S_MAX


@pytest.mark.drill
def test_an_upgrade_during_a_copy_of_a_large_file_is_not_noticed(artist: Studio, tmp_path: Path) -> None:
    block = random_bytes(8_000_000)
    count = drilled(50, 640)
    source = tmp_path / "source" / "big.mov"
    source.parent.mkdir()
    expected = hashlib.blake2b()
    with source.open("wb") as file:
        for number in range(count):
            piece = number.to_bytes(8, "little") + block[8:]
            file.write(piece)
            expected.update(piece)
    artist.run("publish", source, "apollo:v001", timeout_s=600)
    mount = artist.mount()
    copy = subprocess.Popen([sys.executable, "-c", COPY, mount.path / "apollo/v001/big.mov"], stdout=subprocess.PIPE)
    pid = mount.pid
    reloads = 0
    while copy.poll() is None and reloads < 5:
        time.sleep(0.3)
        artist.run("reload", mount.path)
        reloads += 1
        after = pid_of(mount)
        assert after not in (None, pid)
        assert not process_lives(pid)
        pid = after
    said, _ = copy.communicate(timeout=60)
    assert copy.returncode == 0
    assert said.decode().strip() == expected.hexdigest()
    assert reloads >= 2
    assert mount.status()["handover"]["count"] == reloads
    mount.pid = pid


COPY = """
import hashlib, sys, time
digest = hashlib.blake2b()
with open(sys.argv[1], "rb", buffering=0) as file:
    while data := file.read(1 << 20):
        digest.update(data)
        time.sleep(0.01)
print(digest.hexdigest())
"""


def test_what_was_published_while_nobody_served_is_seen(artist: Studio, tmp_path: Path) -> None:
    """The kernel has cached that a name is not there, and where a tag points to."""
    write_tree(tmp_path / "1", {"plate.exr": b"one"})
    artist.run("publish", tmp_path / "1", "apollo:plate/v001", "--tag", "latest")
    mount = artist.mount()
    latest, second = mount.path / "apollo/plate/latest", mount.path / "apollo/plate/v002/plate.exr"
    assert (latest / "plate.exr").read_bytes() == b"one"
    assert not second.exists()
    os.kill(mount.supervisor_pid, signal.SIGSTOP)
    os.kill(mount.pid, signal.SIGKILL)
    write_tree(tmp_path / "2", {"plate.exr": b"two"})
    artist.run("publish", tmp_path / "2", "apollo:plate/v002", "--tag", "latest")
    os.kill(mount.supervisor_pid, signal.SIGCONT)
    artist.expected.append("supervisor: ")
    mount.pid = served_by(mount, other_than=mount.pid)
    artist.run("sync", "apollo", "--at-least", "2")
    assert second.read_bytes() == b"two"
    assert (latest / "plate.exr").read_bytes() == b"two"


def test_a_successor_fetches_what_is_not_cached(user: Studio, tmp_path: Path) -> None:
    """It is forked from a process that has imported everything, and used nothing of it."""
    files = {f"plate.{number}.exr": random_bytes(300_000, number) for number in range(4)}
    user.run("publish", write_tree(tmp_path / "source", files), "apollo:v001")
    mount = user.mount()
    for name, data in files.items():
        assert (mount.path / "apollo/v001" / name).read_bytes() == data
        mount.crash()
    assert mount.status()["restarts"] == len(files)


def test_what_successors_are_forked_from_has_one_thread_and_nothing_open(artist: Studio) -> None:
    mount = artist.mount()
    wait_until(lambda: "damfs-standby" in processes_of(mount), "the next successor")
    zygote, waiting = (processes_of(mount)[name] for name in ("damfs-zygote", "damfs-standby"))
    assert len(os.listdir(f"/proc/{zygote}/task")) == 1
    for pid in (zygote, waiting):
        assert len(os.listdir(f"/proc/{pid}/fd")) == 4, "the standard ones, and its socket"
    mount.crash()
    assert mount.pid == waiting
    assert processes_of(mount)["damfs-zygote"] == zygote


def test_two_daemons_never_serve_one_mount(artist: Studio, tmp_path: Path) -> None:
    """Whoever answers holds /dev/fuse; a standby holds it too and reads nothing: no request is answered twice."""
    write_tree(tmp_path / "1", {"plate.exr": b"one"})
    artist.run("publish", tmp_path / "1", "apollo:v001")
    mount = artist.mount()
    seen = [mount.pid]
    for _ in range(3):
        artist.expected.append("supervisor: ")
        os.kill(seen[-1], signal.SIGKILL)
        seen.append(served_by(mount, other_than=seen[-1]))
        assert not process_lives(seen[-2])
        assert (mount.path / "apollo/v001/plate.exr").read_bytes() == b"one"
    mount.pid = seen[-1]
    assert len(set(seen)) == 4


def test_a_daemon_that_crashes_again_and_again_is_given_up_and_leaves_no_dead_mount(
    artist: Studio, tmp_path: Path
) -> None:
    write_tree(tmp_path / "1", {"plate.exr": b"one"})
    artist.run("publish", tmp_path / "1", "apollo:v001")
    mount = artist.mount()
    artist.expected.append("supervisor: ")

    def is_given_up() -> bool:
        kill_daemon(mount)
        return not process_lives(mount.supervisor_pid)

    wait_until(is_given_up, "the supervisor to give up", 60)
    assert not process_lives(mount.supervisor_pid)
    assert os.listdir(mount.path) == []
    again = artist.mount()
    assert (again.path / "apollo/v001/plate.exr").read_bytes() == b"one"
