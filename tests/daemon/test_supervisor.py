"""The supervisor, with real processes in the daemon's part (tests/daemon/actor.py); and systemd's part played by us."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from daemon import mounts
from daemon.crashes import CRASHES_MAX
from daemon.inbox import Inbox
from tests.harness import REPOSITORY, detach, end, process_lives, wait_until
from vfs.limits import abort_connection

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts by itself")
LIVES = "store:fuse=a ready wait"


class Stage:
    """One supervisor and the cast of its daemons."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log_file = folder / "log"
        self.environment: dict[str, str] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self.inherited: dict[str, int] = {}
        self.ready_fd: int | None = None
        self.standby = False

    def open(self, *parts: str) -> None:
        options = ["--mountpoint", self.folder / "mnt", "--notify-folder", self.folder, "-v"]
        options += [] if self.standby else ["--no-standby"]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **self.environment}
        if self.ready_fd is not None:
            options += ["--ready-fd", self.ready_fd]
        command = [sys.executable, "-P", "-m", "daemon.supervisor", *map(str, options), "--"]
        command += [sys.executable, "-P", "-m", "tests.daemon.actor", str(self.folder), *parts]
        if self.inherited:
            command = [sys.executable, "-c", HAND, json.dumps(self.inherited), *command]
        passed = [*self.inherited.values(), *([] if self.ready_fd is None else [self.ready_fd])]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=passed,
                start_new_session=True)  # fmt: skip

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def wait(self, timeout_s: float = 20) -> int:
        assert self.process is not None
        return self.process.wait(timeout_s)

    def end(self) -> int:
        """As an orderly stop; the exit status."""
        assert self.process is not None
        self.process.terminate()
        return self.wait()

    def cast(self, count: int) -> list[dict[str, Any]]:
        """What the first ``count`` daemons have told of themselves, once there are as many."""

        def told() -> list[dict[str, Any]]:
            path = self.folder / "cast"
            text = path.read_text() if path.exists() else ""
            return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

        wait_until(lambda: len(told()) >= count, f"{count} daemons to begin", 15)
        return told()

    def processes(self) -> dict[str, int]:
        """The supervisor's children, by what ``ps`` calls them."""
        found = {}
        for pid in children(self.pid):
            with suppress(OSError):
                found[Path(f"/proc/{pid}/comm").read_text().strip()] = pid
        return found

    def says(self, text: str, timeout_s: float = 15) -> None:
        wait_until(lambda: text in self.log, f"{text!r} in the log", timeout_s)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for one in self.cast(0):
            end(one["pid"])
        abort_connection(self.folder / "mnt")
        detach(self.folder / "mnt")


HAND = """
import json, os, sys
named = json.loads(sys.argv[1])
for number, descriptor in enumerate(named.values(), 3):
    if number != descriptor:
        os.dup2(descriptor, number)
    os.set_inheritable(number, True)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(named)), "LISTEN_FDNAMES": ":".join(named)}
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Starts a program as systemd does: with descriptors from 3 on."""


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    (tmp_path / "mnt").mkdir()
    made = Stage(tmp_path)
    try:
        yield made
    finally:
        made.close()
    assert "Traceback" not in made.log, made.log
    assert not list(tmp_path.glob("notify.*")), "its socket is left"


with_and_without_standby = pytest.mark.parametrize("standby", [True, False])


@with_and_without_standby
def test_an_orderly_stop_ends_all_with_status_0(stage: Stage, standby: bool) -> None:
    stage.standby = standby
    stage.open(LIVES)
    (daemon,) = stage.cast(1)
    assert daemon["supervisor_pid"] == stage.pid
    assert stage.end() == 0
    assert not process_lives(daemon["pid"])
    assert len(stage.cast(1)) == 1


def test_after_a_crash_a_successor_has_the_same_descriptors(stage: Stage) -> None:
    stage.open(
        "store:fuse=abc store:journal=one store:cache-lock= ready crash", "append:journal=+two ready crash", LIVES
    )
    first, second, third = stage.cast(3)
    assert first["left"] == {}
    assert second["left"] == {"fuse": "abc", "journal": "one", "cache-lock": ""}
    assert third["left"] == {"fuse": "abc", "journal": "one+two", "cache-lock": ""}
    assert third["numbers"] == [3, 4, 5]
    assert [one["restarts"] for one in (first, second, third)] == [0, 1, 2]
    assert first["died_ns"] is None
    assert second["at_ns"] > second["died_ns"] > first["at_ns"]


@needs_root
def test_a_killed_daemon_that_is_stuck_in_the_kernel_is_succeeded_at_once(stage: Stage) -> None:
    stage.open("stuck", "ready pause:1 exit:3")
    first, second = stage.cast(2)
    assert stuck_threads(first["pid"])
    assert second["left"].keys() == {"fuse"}
    assert second["at_ns"] - second["died_ns"] < 2e9
    assert stage.wait() == 3
    wait_until(lambda: not Path("/proc", str(first["pid"])).exists(), "the end of the connection to set it free")
    assert mounts.at(stage.folder / "mnt") is None


def test_a_daemon_that_cannot_be_handed_over_is_gone_before_the_next_one_begins(stage: Stage) -> None:
    stage.open("store:cache-lock=a ready crash", LIVES)
    first, second = stage.cast(2)
    assert not process_lives(first["pid"])
    assert second["left"] == {}


def test_a_standby_is_told_to_go_and_when_its_predecessor_died(stage: Stage) -> None:
    stage.standby = True
    stage.open("store:fuse=a ready pause:1 crash", LIVES)
    first, second = stage.cast(2)
    assert first["standby"]
    assert first["died_ns"] is None
    assert second["standby"]
    assert second["left"] == {"fuse": "a"}
    assert second["restarts"] == 1
    assert 0 < second["at_ns"] - second["died_ns"] < 0.5e9
    assert second["pid"] != first["pid"]


def test_kills_that_follow_each_other_quickly_find_a_successor_each_time(stage: Stage) -> None:
    stage.standby = True
    stage.open("store:fuse=a ready wait")
    for count in range(1, 13):
        daemon = stage.cast(count)[-1]
        stage.says(f"pid {daemon['pid']} serves") if count > 1 else time.sleep(0.1)
        assert parent_of(daemon["pid"]) == stage.pid
        time.sleep(0.1)
        os.kill(daemon["pid"], signal.SIGKILL)
    cast = stage.cast(13)
    assert [one["restarts"] for one in cast] == list(range(13))
    assert all(one["standby"] and one["left"].keys() == {"fuse"} for one in cast[1:])
    assert len({one["dice"] for one in cast}) == len(cast), "each has random numbers of its own"
    pauses = sorted(one["at_ns"] - one["died_ns"] for one in cast[1:])
    assert pauses[len(pauses) // 2] < 0.3e9
    assert "no standby waits" not in stage.log


def test_how_a_forked_daemon_ended_is_known(stage: Stage) -> None:
    stage.standby = True
    stage.open("store:fuse=a ready exit:9", "ready crash", "ready exit:3")
    assert stage.wait() == 3
    assert "(exit status 9)" in stage.log
    assert "(killed by SIGKILL (signal 9))" in stage.log


def test_a_zygote_has_one_thread_and_nothing_open(stage: Stage) -> None:
    stage.standby = True
    stage.open("store:fuse=a store:journal=b ready crash", "ready wait")
    stage.cast(2)
    wait_until(lambda: "damfs-standby" in stage.processes(), "the next successor")
    zygote = stage.processes()["damfs-zygote"]
    assert len(os.listdir(f"/proc/{zygote}/task")) == 1
    assert open_descriptors(zygote) == 4, "the standard ones, and its socket"
    waiting = stage.processes()["damfs-standby"]
    wait_until(lambda: open_descriptors(waiting) == 4, "it to hand over its lifeline and keep nothing else")
    assert "damfs-zygote" not in Path(f"/proc/{waiting}/stat").read_text()


def test_without_a_standby_a_successor_is_started_from_nothing(stage: Stage) -> None:
    stage.standby = True
    stage.open("store:fuse=a ready wait", LIVES)
    (first,) = stage.cast(1)
    wait_until(lambda: "damfs-standby" in stage.processes(), "the standby")
    os.kill(stage.processes()["damfs-zygote"], signal.SIGKILL)
    stage.says("no standby waits")
    wait_until(lambda: "damfs-standby" not in stage.processes(), "what it has forked to end")
    os.kill(first["pid"], signal.SIGKILL)
    second = stage.cast(2)[1]
    assert not second["standby"]
    assert second["left"] == {"fuse": "a"}
    wait_until(lambda: "damfs-standby" in stage.processes(), "another standby")


def test_a_standby_that_somebody_has_stopped_goes_on(stage: Stage) -> None:
    stage.standby = True
    stage.open("store:fuse=a ready wait")
    for count in (1, 2):
        daemon = stage.cast(count)[-1]
        wait_until(lambda: "damfs-standby" in stage.processes(), "the standby")
        time.sleep(0.3)
        for name in ("damfs-standby", "damfs-zygote"):
            os.kill(stage.processes()[name], signal.SIGSTOP)
        os.kill(daemon["pid"], signal.SIGKILL)
    assert all(one["standby"] for one in stage.cast(3))


def test_what_an_ended_daemon_leaves_behind_is_buried(stage: Stage) -> None:
    stage.standby = True
    stage.open("store:fuse=a orphan ready crash", LIVES)
    stage.cast(2)
    orphan = int((stage.folder / "orphan").read_text())
    wait_until(lambda: parent_of(orphan) == stage.pid, "the supervisor to adopt it")
    os.kill(orphan, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{orphan}").exists(), "the supervisor to reap it")


def test_a_standby_ends_with_its_supervisor(stage: Stage) -> None:
    stage.standby = True
    stage.open(LIVES)
    stage.cast(1)
    wait_until(lambda: len(stage.processes()) == 3, "the standby")
    everyone = children(stage.pid)
    assert stage.end() == 0
    wait_until(lambda: not any(map(process_lives, everyone)), "all to end")


def test_a_supervisor_that_is_killed_leaves_the_daemon_alone_and_takes_the_standby_along(stage: Stage) -> None:
    stage.standby = True
    stage.open(LIVES)
    (daemon,) = stage.cast(1)
    wait_until(lambda: "damfs-standby" in stage.processes(), "the standby")
    others = set(children(stage.pid)) - {daemon["pid"]}
    os.kill(stage.pid, signal.SIGKILL)
    stage.wait()
    wait_until(lambda: not any(map(process_lives, others)), "the standby to end")
    assert process_lives(daemon["pid"])
    os.kill(daemon["pid"], signal.SIGTERM)
    wait_until(lambda: not process_lives(daemon["pid"]), "the daemon to end")
    Inbox(stage.folder).close()
    assert not list(stage.folder.glob("notify.*")), "the next supervisor removes the socket"


def test_after_repeated_crashes_the_mount_is_given_up(stage: Stage) -> None:
    stage.open("store:fuse=a ready crash")
    assert stage.wait() == 128 + signal.SIGKILL
    assert len(stage.cast(CRASHES_MAX)) == CRASHES_MAX
    assert "is given up" in stage.log


def test_a_successor_that_crashes_before_it_is_ready_counts_too(stage: Stage) -> None:
    stage.open("store:fuse=a ready crash", "crash")
    assert stage.wait() == 128 + signal.SIGKILL
    cast = stage.cast(CRASHES_MAX)
    assert len({one["died_ns"] for one in cast[1:]}) == 1, "the pause is counted from the first death"


def test_a_daemon_that_is_killed_every_now_and_then_is_succeeded_for_ever(stage: Stage) -> None:
    stage.standby = True
    stage.open("store:fuse=a ready pause:0.4 crash")
    stage.cast(2 * CRASHES_MAX + 1)
    assert "given up" not in stage.log


@with_and_without_standby
def test_a_daemon_that_crashes_as_soon_as_it_is_ready_is_given_up_at_once(stage: Stage, standby: bool) -> None:
    stage.standby = standby
    stage.open("store:fuse=a ready pause:2 crash", "ready crash")
    assert stage.wait() == 128 + signal.SIGKILL
    cast = stage.cast(CRASHES_MAX + 1)
    assert len(cast) == CRASHES_MAX + 1, "the first one served; then these did not"
    assert "is given up" in stage.log


def test_a_successor_that_cannot_take_over_ends_it_with_its_status(stage: Stage) -> None:
    stage.open("store:fuse=a ready crash", "exit:3")
    assert stage.wait() == 3
    assert len(stage.cast(2)) == 2


@with_and_without_standby
@pytest.mark.parametrize(("part", "status"), [("exit:4", 4), ("exit:1", 1), ("crash", 137), ("stopping exit:0", 0)])
def test_a_first_start_that_fails_is_not_repeated(stage: Stage, part: str, status: int, standby: bool) -> None:
    stage.standby = standby
    stage.open(part)
    assert stage.wait() == status
    assert len(stage.cast(1)) == 1


@with_and_without_standby
def test_the_one_who_mounts_sees_the_end_of_the_pipe_when_a_first_daemon_dies(stage: Stage, standby: bool) -> None:
    stage.standby = standby
    reading, stage.ready_fd = os.pipe()
    stage.open("pause:0.2 crash")
    os.close(stage.ready_fd)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b""
    assert stage.cast(1)[0]["ready_fd"] is not None
    assert stage.wait() == 137


@pytest.mark.parametrize(("fault", "said"), [("broken", "exit status 3"), ("unfit", "it has two threads")])
def test_without_a_zygote_a_first_daemon_starts_from_nothing(stage: Stage, fault: str, said: str) -> None:
    stage.standby = True
    (stage.folder / fault).write_text(said)
    stage.open(LIVES)
    assert not stage.cast(1)[0]["standby"]
    assert said in stage.log


def test_a_signal_before_there_is_a_daemon_is_the_end(stage: Stage) -> None:
    stage.standby = True
    (stage.folder / "slow").touch()
    stage.open(LIVES)
    wait_until(lambda: children(stage.pid), "the zygote")
    assert stage.end() == 128 + signal.SIGTERM
    assert stage.cast(0) == []


def test_a_daemon_that_says_that_it_stops_is_not_succeeded_however_it_ends(stage: Stage) -> None:
    stage.open("store:fuse=a ready stopping crash")
    assert stage.wait() == 137
    assert len(stage.cast(1)) == 1


def test_a_bug_that_ends_the_daemon_is_a_crash(stage: Stage) -> None:
    stage.open("store:fuse=a store:cache-lock=b ready exit:1", LIVES)
    assert stage.cast(2)[1]["left"] == {"fuse": "a", "cache-lock": "b"}


def test_a_daemon_that_has_unmounted_leaves_nothing_to_the_next(stage: Stage) -> None:
    stage.open("store:fuse=a store:cache-lock=b ready forget:fuse exit:1", LIVES)
    assert stage.cast(2)[1]["left"] == {}


def test_a_crash_during_a_stop_is_not_succeeded(stage: Stage) -> None:
    stage.open("store:fuse=a deaf ready wait")
    (daemon,) = stage.cast(1)
    stage.says("READY") if False else wait_until(lambda: children(stage.pid), "the daemon")
    time.sleep(0.3)
    os.kill(stage.pid, signal.SIGTERM)
    time.sleep(0.3)
    os.kill(daemon["pid"], signal.SIGKILL)
    assert stage.wait() == 137
    assert len(stage.cast(1)) == 1


def test_hostile_messages_change_nothing(stage: Stage) -> None:
    stage.open("store:fuse=a garbage impostor ready crash", LIVES)
    assert stage.cast(2)[1]["left"] == {"fuse": "a"}
    assert "was dropped" in stage.log
    second = stage.cast(2)[1]["pid"]
    stage.says(f"pid {second} serves")
    before = open_descriptors(stage.pid)
    os.kill(second, signal.SIGKILL)
    stage.cast(3)
    wait_until(lambda: open_descriptors(stage.pid) == before, "no descriptor to be left open")


def test_at_most_so_many_descriptors_are_kept(stage: Stage) -> None:
    stage.open("store:fuse=a many:40 ready crash", LIVES)
    assert len(stage.cast(2)[1]["left"]) == 16
    assert "which is the most" in stage.log


def test_a_descriptor_is_replaced_and_forgotten_by_name(stage: Stage) -> None:
    stage.open("store:fuse=a store:journal=1 store:journal=2 store:x=1 forget:x forget:y ready crash", LIVES)
    assert stage.cast(2)[1]["left"] == {"fuse": "a", "journal": "2"}


@with_and_without_standby
def test_a_reload_hands_over_to_a_fresh_process(stage: Stage, standby: bool) -> None:
    stage.standby = standby
    stage.open("store:fuse=a ready reload wait", LIVES)
    first, second = stage.cast(2)
    assert second["left"] == {"fuse": "a"}
    assert second["standby"]
    assert (stage.folder / "reload").read_text() == "ok"
    assert not process_lives(first["pid"])
    assert "ERROR" not in stage.log


def test_a_reload_is_refused_when_the_new_daemon_cannot_take_over(stage: Stage) -> None:
    (stage.folder / "unfit").write_text("the journal is of format 9")
    stage.open("store:fuse=a ready reload wait", LIVES)
    wait_until((stage.folder / "reload").exists, "the answer")
    time.sleep(0.1)
    assert re.fullmatch(
        r"the new daemon cannot take over: the journal is of format 9", (stage.folder / "reload").read_text()
    )
    (daemon,) = stage.cast(1)
    assert process_lives(daemon["pid"])


def test_a_refused_reload_leaves_the_standby_that_there_was(stage: Stage) -> None:
    stage.standby = True
    stage.open("store:fuse=a ready reload wait", LIVES)
    (first,) = stage.cast(1)
    (stage.folder / "unfit").write_text("the journal is of format 9")  # after the first zygote was asked
    wait_until((stage.folder / "reload").exists, "the answer")
    assert "format 9" in (stage.folder / "reload").read_text()
    os.kill(first["pid"], signal.SIGKILL)
    assert stage.cast(2)[1]["standby"]


def test_a_mount_that_stored_nothing_is_not_reloaded(stage: Stage) -> None:
    stage.open("ready reload wait")
    wait_until((stage.folder / "reload").exists, "the answer")
    time.sleep(0.1)
    assert "cannot be handed over" in (stage.folder / "reload").read_text()


def test_a_crash_while_a_reload_waits_for_its_standby_is_a_crash(stage: Stage) -> None:
    stage.open("store:fuse=a ready reload wait", LIVES)
    (first,) = stage.cast(1)
    wait_until(lambda: "is to be replaced" in stage.log, "the reload to begin")
    os.kill(first["pid"], signal.SIGKILL)
    assert stage.cast(2)[1]["left"] == {"fuse": "a"}


class Manager:
    """systemd's part: hears, keeps descriptors, starts a supervisor again with them."""

    def __init__(self, folder: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.path = folder / "systemd"
        self.socket.bind(str(self.path))
        self.socket.settimeout(10)
        self.kept: dict[str, int] = {}
        self.heard: list[str] = []

    def hear_until(self, text: str) -> None:
        while not any(text in one for one in self.heard):
            data, descriptors, _, _ = socket.recv_fds(self.socket, 4096, 10)
            fields = dict(line.split("=", 1) for line in data.decode().splitlines())
            if "FDSTORE" in fields:
                assert fields["FDPOLL"] == "0"
                self.kept[fields["FDNAME"]] = descriptors[0]
            elif "FDSTOREREMOVE" in fields:
                os.close(self.kept.pop(fields["FDNAME"]))
            self.heard.append(data.decode())

    def close(self) -> None:
        self.socket.close()
        for descriptor in self.kept.values():
            os.close(descriptor)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_under_systemd_the_mount_outlives_even_its_supervisor(stage: Stage, manager: Manager) -> None:
    stage.environment["NOTIFY_SOCKET"] = str(manager.path)
    stage.open("store:fuse=abc store:journal=j ready wait")
    manager.hear_until("READY=1\nSTATUS=on stage")
    assert set(manager.kept) == {"fuse", "journal"}
    (first,) = stage.cast(1)
    os.kill(stage.pid, signal.SIGKILL)
    stage.wait()
    os.kill(first["pid"], signal.SIGKILL)  # as KillMode=mixed does
    manager.heard.clear()
    stage.inherited = manager.kept
    stage.open("exit:9", "ready wait")
    _, second = stage.cast(2)
    assert second["left"] == {"fuse": "abc", "journal": "j"}
    manager.hear_until("READY=1")
    assert stage.end() == 0
    manager.hear_until("FDSTOREREMOVE=1\nFDNAME=journal")
    assert any("STOPPING=1" in one for one in manager.heard)
    assert manager.kept == {}


def test_a_supervisor_is_small_and_starts_quickly(stage: Stage) -> None:
    stage.open(LIVES)
    stage.cast(1)
    resident = int(re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{stage.pid}/status").read_text())[0])
    assert resident < 32_000
    heavy = "{'trio', 'pydantic', 'obstore', 'pyfuse3', 'sqlite3', 'blake3'}"
    code = f"import sys, daemon.supervisor; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def stuck_threads(pid: int) -> list[str]:
    """The threads of a process that wait uninterruptibly."""
    stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return [stat for stat in stats if stat.rpartition(")")[2].split()[0] == "D"]


def open_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))
