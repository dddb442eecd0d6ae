"""A studio in a folder: its own homes, library, key and cache, and the real ``damfs`` command against them.

The command and the daemon run as processes of their own, as users run them. Whatever was mounted through a
``Studio`` is unmounted by its ``close``, also when the test failed: first politely, then ``umount -l``, and
the daemon is ended by its pid. A test that passed fails all the same when one of its daemons logged an error that
the test did not name in ``Studio.expected``.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

COMMAND_TIMEOUT_S = 120
UMOUNT_TIMEOUT_S = 20
DAMFS = [sys.executable, "-m", "tools.main"]
REPOSITORY = Path(__file__).resolve().parent.parent
BAD_LOG_LINE = re.compile(r"^\S+Z (ERROR|CRITICAL) |Traceback|\ba bug\b|never (awaited|retrieved)|\b\w+Warning: ")
"""What no daemon logs unless it met a fault that a test made."""


def drilled(usual: int, thorough: int) -> int:
    """How often: ``usual`` in ``make test``, ``thorough`` in ``make drill``, which has hours."""
    return thorough if os.environ.get("DRILL") else usual


class CommandFailed(Exception):
    """``damfs`` exited with a status that the test did not expect; carries what it printed."""


@dataclass
class Mount:
    """One mounted library: where it is, the daemon behind it, and the supervisor that would start another one."""

    path: Path
    pid: int
    supervisor_pid: int
    studio: Studio

    def status(self) -> dict[str, Any]:
        status = self.studio.json("status", str(self.path))
        assert isinstance(status, dict)
        return status

    def kill(self) -> None:
        """End the daemon and its supervisor with -9, as a loss of power would, and wait until they are gone."""
        for pid in (self.supervisor_pid, self.pid):
            os.kill(pid, signal.SIGKILL)
        for pid in (self.supervisor_pid, self.pid):
            wait_until(lambda pid=pid: not process_lives(pid), f"process {pid} to die")  # type: ignore[misc]

    def crash(self) -> None:
        """End the daemon with -9, and wait until another one serves the mount."""
        crashed = self.pid
        self.studio.expected.append(rf"ERROR +supervisor: the daemon \(pid {crashed}\) has ended")
        os.kill(crashed, signal.SIGKILL)

        def is_back() -> bool:
            done = self.studio.complete("status", self.path, "--json")
            if done.returncode == 0:
                self.pid = int(json.loads(done.stdout)["pid"])
            return self.pid != crashed

        wait_until(is_back, f"a successor of the daemon {crashed}", 30)


@dataclass
class Studio:
    """The environment of one user on one workstation, all below ``folder``."""

    folder: Path
    url: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    mounts: list[Mount] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    """Regular expressions of the errors that the daemons may log."""

    def __post_init__(self) -> None:
        self.url = self.url or f"file://{self.folder}/library"

    def env(self) -> dict[str, str]:
        """The environment of every command: nothing of the real user's homes is seen or touched."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DAMFS_", "XDG_", "AWS_"))}
        homes = {
            "HOME": str(self.folder / "home"),
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "XDG_STATE_HOME": str(self.folder / "state"),
            "XDG_DATA_HOME": str(self.folder / "data"),
            "XDG_RUNTIME_DIR": str(self.folder / "run"),
            "AWS_EC2_METADATA_DISABLED": "true",
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": "200",
            "DAMFS_LIBRARY": self.url,
        }
        for name in ("HOME", "XDG_RUNTIME_DIR"):
            Path(homes[name]).mkdir(parents=True, exist_ok=True, mode=0o700)
        return kept | homes | self.environment

    def run(self, *arguments: str | Path, code: int = 0, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Run ``damfs`` to its end; returns what it printed on stdout. Raises CommandFailed on another exit status."""
        done = self.complete(*arguments, timeout_s=timeout_s)
        if done.returncode != code:
            raise CommandFailed(
                f"damfs {' '.join(map(str, arguments))}: exit {done.returncode}, expected {code}\n"
                f"{done.stdout}\n{done.stderr}"
            )
        return done.stdout

    def complete(
        self, *arguments: str | Path, timeout_s: float = COMMAND_TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        """Run ``damfs`` to its end, whatever that is."""
        done = subprocess.run(
            [*DAMFS, *map(str, arguments)],
            env=self.env(), cwd=self.folder, capture_output=True, text=True, timeout=timeout_s, check=False,
            stdin=subprocess.DEVNULL)  # fmt: skip
        if done.returncode and arguments[:1] == ("mount",):  # what a command told is in its daemon's log too
            self.expected.append(r"ERROR +daemon: ")
        return done

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """Start ``damfs`` and leave it running; the caller ends it."""
        return subprocess.Popen(
            [*DAMFS, *map(str, arguments)],
            env=self.env(), cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            stdin=subprocess.DEVNULL)  # fmt: skip

    def json(self, *arguments: str | Path) -> Any:
        return json.loads(self.run(*arguments, "--json"))

    def mount(self, *options: str | Path, name: str = "mnt") -> Mount:
        """Mount the library at ``folder``/name and wait until it answers."""
        path = self.folder / name
        path.mkdir(exist_ok=True)
        try:
            self.run("mount", path, *options)
        except BaseException:
            detach(path)
            raise
        status = self.json("status", str(path))
        mount = Mount(path, int(status["pid"]), int(status["supervisor_pid"]), self)
        self.mounts.append(mount)
        return mount

    def unmount(self, mount: Mount) -> None:
        """Unmount as a user would, and wait until the daemon is gone."""
        self.run("umount", mount.path, timeout_s=UMOUNT_TIMEOUT_S)
        for pid in (mount.pid, mount.supervisor_pid):
            wait_until(lambda pid=pid: not process_lives(pid), f"process {pid} to end", UMOUNT_TIMEOUT_S)  # type: ignore[misc]
        self.mounts.remove(mount)

    def close(self) -> None:
        """Leave nothing behind: no mount, no process."""
        for mount in self.mounts:
            try:
                self.complete("umount", mount.path, timeout_s=UMOUNT_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                pass
            finally:
                detach(mount.path)
                end(mount.supervisor_pid)
                end(mount.pid)
        self.mounts.clear()
        for path in mounted_below(self.folder):
            detach(path)

    def log(self) -> str:
        """Everything that the studio's daemons have logged."""
        return "\n".join(path.read_text() for path in sorted((self.folder / "state").rglob("*.log")))

    def check_log(self) -> None:
        """No daemon complained of anything but what is ``expected``."""
        bad = [line for line in self.log().splitlines() if BAD_LOG_LINE.search(line)]
        unexpected = [line for line in bad if not any(re.search(known, line) for known in self.expected)]
        assert not unexpected, "a daemon logged errors:\n" + "\n".join(unexpected)


@contextmanager
def studio(folder: Path, url: str = "", **environment: str) -> Iterator[Studio]:
    """A Studio below ``folder`` that is closed on the way out, and whose daemons' logs are then looked at."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Studio(folder, url, environment)
    try:
        yield made
    finally:
        made.close()
    made.check_log()


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 10.0) -> None:
    """Wait until the condition holds. Raises AssertionError with ``what`` at the deadline."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.02)


def process_lives(pid: int) -> bool:
    """Whether the process runs; one that has ended but was not waited for does not count."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def end(pid: int) -> None:
    """End a process that a test started: ten seconds to go by itself, then -9."""
    try:
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not process_lives(pid), f"{pid} to end")
    except ProcessLookupError:
        return
    except AssertionError:
        os.kill(pid, signal.SIGKILL)


def mounted_below(folder: Path) -> list[Path]:
    """The mountpoints in ``folder``, deepest first, read without touching any of them."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [Path(line.split()[4].encode().decode("unicode_escape")) for line in lines]
    return sorted((point for point in points if point.is_relative_to(folder)), reverse=True)


def detach(path: Path) -> None:
    """Take the mount away whatever state it is in."""
    if path in mounted_below(path.parent):
        subprocess.run(["umount", "-l", path], check=False, timeout=UMOUNT_TIMEOUT_S, capture_output=True)
