"""What a crash is to a mount that cannot be handed over, and what is left when the supervisor is gone."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from daemon import channel
from tests.harness import DAMFS, Mount, Studio, end, mounted_below, process_lives, wait_until
from tests.mount.conftest import write_tree
from vfs.binding import kernel_why_not

DATA = b"pixels " * 20_000


@pytest.fixture
def mount(artist: Studio, tmp_path: Path) -> Mount:
    """A mount with pyfuse3, which cannot be handed over."""
    write_tree(tmp_path / "source", {"plate.exr": DATA})
    artist.run("publish", tmp_path / "source", "apollo:v001")
    return artist.mount("--binding", "pyfuse3")


def test_a_crash_is_followed_by_another_daemon_on_the_same_mountpoint(mount: Mount) -> None:
    first = mount.pid
    mount.crash()
    assert (mount.path / "apollo/v001/plate.exr").read_bytes() == DATA
    status = mount.status()
    assert (status["restarts"], status["supervisor_pid"]) == (1, mount.supervisor_pid)
    assert mounted_below(mount.studio.folder) == [mount.path]
    assert not process_lives(first)


def test_what_was_open_when_it_crashed_ends_with_an_error_and_not_with_other_bytes(mount: Mount) -> None:
    descriptor = os.open(mount.path / "apollo/v001/plate.exr", os.O_RDONLY)
    try:
        mount.crash()
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        with pytest.raises(OSError, match=r"not connected|connection abort|Input/output"):
            os.read(descriptor, len(DATA))
    finally:
        with suppress(OSError):
            os.close(descriptor)


def test_without_a_standby_a_crash_takes_longer_and_no_more(artist: Studio, tmp_path: Path) -> None:
    mount = artist.mount("--binding", "pyfuse3")
    artist.environment["DAMFS_DAEMON__STANDBY"] = "false"
    artist.unmount(mount)
    mount = artist.mount("--binding", "pyfuse3")
    time.sleep(3)
    assert children(mount.supervisor_pid) == [mount.pid]
    mount.crash()
    assert os.listdir(mount.path) == ["apollo"]


def test_a_mount_whose_supervisor_is_killed_goes_on_and_can_be_unmounted(mount: Mount) -> None:
    os.kill(mount.supervisor_pid, signal.SIGKILL)
    wait_until(lambda: not process_lives(mount.supervisor_pid), "the supervisor to die")
    assert (mount.path / "apollo/v001/plate.exr").read_bytes() == DATA
    assert mount.status()["supervisor_pid"] is None
    mount.studio.unmount(mount)
    assert mounted_below(mount.studio.folder) == []


def test_a_mount_that_cannot_be_handed_over_is_not_reloaded_and_goes_on(mount: Mount) -> None:
    done = mount.studio.complete("reload", mount.path)
    assert done.returncode == 3
    assert "kernel binding" in done.stderr
    assert mount.status()["pid"] == mount.pid


def test_a_reload_of_what_is_not_mounted_says_so(artist: Studio) -> None:
    (artist.folder / "mnt").mkdir()
    assert artist.complete("reload", artist.folder / "mnt").returncode == 4


def test_after_an_unmount_a_daemon_that_was_stuck_is_not_followed_by_another(mount: Mount) -> None:
    os.kill(mount.pid, signal.SIGSTOP)
    try:
        mount.studio.run("umount", "--lazy", mount.path)
        assert mounted_below(mount.studio.folder) == []
    finally:
        os.kill(mount.pid, signal.SIGCONT)
    wait_until(lambda: not process_lives(mount.supervisor_pid), "the supervisor to end", 30)
    assert not process_lives(mount.pid)
    assert mounted_below(mount.studio.folder) == []


@pytest.mark.parametrize("how", [("damfs", "umount", "--lazy"), ("umount", "-l")])
def test_a_crash_after_a_lazy_unmount_mounts_nothing(mount: Mount, how: tuple[str, ...]) -> None:
    mount.studio.expected.append(r"ERROR +supervisor: .*its mount was detached before")
    descriptor = os.open(mount.path / "apollo/v001/plate.exr", os.O_RDONLY)
    try:
        if how[0] == "damfs":
            mount.studio.run(*how[1:], mount.path)
        else:
            subprocess.run([*how, mount.path], check=True, timeout=20)
        os.kill(mount.pid, signal.SIGKILL)
        wait_until(lambda: not process_lives(mount.supervisor_pid), "the supervisor to end")
    finally:
        with suppress(OSError):
            os.close(descriptor)
    assert mounted_below(mount.studio.folder) == []


def test_a_signal_to_the_supervisor_unmounts(mount: Mount) -> None:
    os.kill(mount.supervisor_pid, signal.SIGTERM)
    wait_until(lambda: not process_lives(mount.supervisor_pid), "the supervisor to end")
    assert not process_lives(mount.pid)
    assert os.listdir(mount.path) == []


def test_a_dead_mountpoint_is_taken_over_by_the_next_mount(mount: Mount) -> None:
    mount.kill()
    with pytest.raises(OSError, match=r"not connected|connection abort"):
        os.listdir(mount.path)
    again = mount.studio.mount("--binding", "pyfuse3")
    assert (again.path / "apollo/v001/plate.exr").read_bytes() == DATA
    assert mounted_below(mount.studio.folder) == [mount.path]


def test_nobody_of_them_holds_anything_in_the_mount(mount: Mount) -> None:
    time.sleep(3)
    for pid in (mount.supervisor_pid, *children(mount.supervisor_pid)):
        process = Path("/proc", str(pid))
        held = [os.readlink(path) for path in (process / "cwd", process / "root", *(process / "fd").iterdir())]
        held += [line.split(" ", 5)[-1].strip() for line in (process / "maps").read_text().splitlines()]
        assert [name for name in held if name.startswith(str(mount.path))] == []


class Manager:
    """systemd's part: keeps what a service stores, and starts it again with that."""

    def __init__(self, folder: Path) -> None:
        self.address = folder / "systemd"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.address))
        self.socket.settimeout(60)
        self.kept: dict[str, int] = {}

    def start(self, artist: Studio, *words: str | Path) -> subprocess.Popen[bytes]:
        """The service, and wait until it says that it is ready."""
        command = [sys.executable, "-c", HAND, json.dumps(self.kept), *DAMFS, *map(str, words)]
        environment = artist.env() | {"NOTIFY_SOCKET": str(self.address)}
        with (artist.folder / "service.log").open("ab") as log:
            service = subprocess.Popen(command, env=environment, pass_fds=list(self.kept.values()),
                                       stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # fmt: skip
        self.listen("READY=1")
        return service

    def listen(self, until: str) -> None:
        said = ""
        while not said.startswith(until):
            data, descriptors, _, _ = socket.recv_fds(self.socket, 4096, 10)
            said = data.decode()
            name = said.partition("FDNAME=")[2].partition("\n")[0]
            if said.startswith("FDSTORE=1"):
                (self.kept[name],) = descriptors
            elif said.startswith("FDSTOREREMOVE=1"):
                os.close(self.kept.pop(name))


HAND = """
import fcntl, json, os, sys
named = json.loads(sys.argv[1])
high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 100) for descriptor in named.values()]
for number, descriptor in enumerate(high, 3):
    os.dup2(descriptor, number)
if named:
    os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(named)), "LISTEN_FDNAMES": ":".join(named)}
os.execv(sys.argv[2], sys.argv[2:])
"""


READER = """
import hashlib, os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
data = os.read(file, 1000)
print(len(data), flush=True)
sys.stdin.readline()
while piece := os.read(file, 65536):
    data += piece
print(hashlib.blake2b(data).hexdigest())
"""
"""Nobody else has a file of the mount open: whoever starts a daemon would wait for it when its copy is closed."""


def hash_of(data: bytes) -> str:
    return hashlib.blake2b(data).hexdigest()


@pytest.mark.skipif(kernel_why_not() is not None, reason=f"no kernel binding: {kernel_why_not()}")
def test_under_systemd_a_mount_outlives_all_its_processes(artist: Studio, tmp_path: Path) -> None:
    write_tree(tmp_path / "source", {"plate.exr": DATA})
    artist.run("publish", tmp_path / "source", "apollo:v001")
    path = artist.folder / "mnt"
    path.mkdir()
    manager = Manager(tmp_path)
    first = manager.start(artist, "mount", path, "--foreground")
    status = artist.json("status", str(path))
    assert status["supervisor_pid"] == first.pid
    assert manager.kept.keys() == {"fuse", "journal", "cache-lock"}
    command = [sys.executable, "-c", READER, str(path / "apollo/v001/plate.exr")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"1000\n"
        os.kill(first.pid, signal.SIGKILL)
        os.kill(status["pid"], signal.SIGKILL)
        first.wait(10)
        second = manager.start(artist, "mount", path, "--foreground")
        assert reader.communicate(b"go on\n", 30)[0] == f"{hash_of(DATA)}\n".encode()
    assert artist.json("status", str(path))["handover"]["count"] == 1
    second.terminate()
    assert second.wait(30) == 0
    manager.socket.setblocking(False)
    with suppress(BlockingIOError):
        manager.listen("nothing")
    assert manager.kept == {}
    assert mounted_below(artist.folder) == []
    manager.socket.close()


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_standby_has_everything_imported_before_it_is_told_to_go(artist: Studio, tmp_path: Path) -> None:
    write_tree(tmp_path / "source", {"plate.exr": DATA})
    artist.run("publish", tmp_path / "source", "apollo:v001")
    path = artist.folder / "mnt"
    path.mkdir()
    log = tmp_path / "imports"
    ours, theirs = channel.pair()
    trust = artist.json("config", "show")["settings"]["library.trust"]["value"]
    settings = {"library": {"url": artist.url, "trust": trust}, "cache": {"folder": str(artist.folder / "c")}}
    command = [sys.executable, "-X", "importtime", "-P", "-m", "daemon", "--mountpoint", str(path)]
    command += ["--settings-json", json.dumps(settings), "--standby-fd", str(theirs.fileno())]
    with log.open("wb") as output, theirs:
        zygote = subprocess.Popen(command, env=artist.env(), pass_fds=[theirs.fileno()], stdout=output, stderr=output)
    control, its = channel.pair()
    pid = 0
    try:
        with its:
            channel.say(ours, "fork", descriptors=[its.fileno()])
        control.settimeout(60)
        here = channel.hear(control)
        assert here is not None
        pid = here.pid
        here.close()
        before = len(log.read_text())
        channel.say(control, "go", 1, 1)
        wait_until(lambda: mounted_below(artist.folder), "the mount")
        assert (path / "apollo/v001/plate.exr").read_bytes() == DATA
        artist.run("status", path)
        late = [line.split("|")[-1].strip() for line in log.read_text()[before:].splitlines() if "import time:" in line]
        assert late == []
    finally:
        ours.close()
        control.close()
        zygote.wait(30)
        if pid:
            end(pid)
