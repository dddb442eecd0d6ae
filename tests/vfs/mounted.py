"""The test's side of a mount: starts the runner, commands it, and takes everything down again."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from manifest.library import Library
from manifest.names import Revision
from tests.vfs.keeping import Kept
from tests.vfs.publisher import Change, Publisher
from vfs.limits import abort_connection

REPOSITORY = Path(__file__).resolve().parent.parent.parent
ANSWER_S = 30.0
END_S = 10.0
UNMOUNT = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
DEADLINE_S = 50.0
"""The longest that anything may be mounted in a test."""


class Mounted:
    """A mount with its runner process and the publishers of its shows. ``path`` is the mountpoint.

    ``keep``: the runner may be killed and have a successor. Nobody else then ends the mount but ``close``.
    """

    def __init__(
        self, folder: Path, *, prefix: Sequence[str] = (), flags: Sequence[str] = (), keep: bool = False
    ) -> None:
        self.folder = folder
        self.path = folder / "mnt"
        self.state = folder / "state"
        self._library_folder = folder / "library"
        for made in (self.path, self.state, self._library_folder):
            made.mkdir(parents=True, exist_ok=True)
        (self._library_folder / "damfs.json").touch()
        self.library = Library.open(self._library_folder.as_uri())
        self.log = folder / "runner.log"
        self._shows: dict[str, Publisher] = {}
        self._prefix, self.flags = prefix, list(flags)
        self._process: subprocess.Popen[bytes] | None = None
        self._killed: list[subprocess.Popen[bytes]] = []
        self.kept = Kept() if keep else None
        self.died_ns = 0

    def start(self, *, wait: bool = True) -> None:
        """Start the runner, as the successor of one that was killed if there was one; returns once it answers."""
        command = [*self._prefix, sys.executable, "-m", "tests.vfs.runner", str(self.path), self.library.url]
        kept = self.kept.descriptors if self._killed and self.kept else {}
        handed = [f"{name}={descriptor}" for name, descriptor in kept.items()]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, str(self.state), *self.flags, *handed, f"died={self.died_ns}"],
                cwd=REPOSITORY,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | (self.kept.environment if self.kept else {}),
                pass_fds=list(kept.values()),
            )
        if wait:
            self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Until the runner that was started answers."""
        assert self._answer()["ready"] == self.pid

    def kill(self) -> None:
        """Kill the runner with -9, and do not wait until it is gone; what it had kept is there for a successor."""
        process = self._process
        assert process is not None
        self.died_ns = time.monotonic_ns()
        process.kill()
        self._close_pipes(process)
        self._killed.append(process)
        self._process = None

    def succeed(self, *, kill: bool = True) -> None:
        """Kill the runner, or have it leave the mount in an orderly way, and start its successor."""
        if kill:
            self.kill()
        else:
            self.command(do="release")
            assert self.stop() == 0
            assert self._process is not None
            self.died_ns = time.monotonic_ns()
            self._killed.append(self._process)
            self._process = None
        self.start()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def show(self, name: str = "apollo") -> Publisher:
        """The publisher of a show, which comes into being with this."""
        if name not in self._shows:
            self._shows[name] = Publisher(self.library, self.state, name)
        return self._shows[name]

    def publish(self, changes: Mapping[str, Change], show: str = "apollo", *, settle: bool = True) -> Revision:
        """Publish, and show it in the mount."""
        revision = self.show(show).publish(changes)
        self.advance(show, settle=settle)
        return revision

    def advance(self, show: str = "apollo", *, settle: bool = True) -> dict[str, Any]:
        """Show what was published."""
        return self.command(do="advance", show=show, settle=settle)

    def command(self, **command: Any) -> dict[str, Any]:
        """Have the runner do something; returns its answer."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        deadline = time.monotonic() + ANSWER_S
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"the runner does not answer:\n{self.log.read_text()}"
            piece = os.read(self._process.stdout.fileno(), 65536)
            assert piece, f"the runner is gone:\n{self.log.read_text()}"
            line += piece
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> int:
        """End the runner by the end of its input, as politely as can be. Returns its exit status."""
        assert self._process is not None
        self._close_pipes(self._process)
        return self._process.wait(END_S)

    def _close_pipes(self, process: subprocess.Popen[bytes]) -> None:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def abort(self) -> None:
        """The deadline of everything: without the runner every call in the mount ends with an error."""
        if self._process is not None:
            self._process.kill()
        if self.kept is not None:
            abort_connection(self.path)
            self.kept.drop()

    def close(self) -> None:
        """Leave nothing behind: no mount, no process, no open replica."""
        process = self._process
        if self.kept is not None and (process is None or process.poll() is not None):
            self.kept.drop()
        try:
            if process is not None and process.poll() is None:
                self._close_pipes(process)
                try:
                    process.wait(END_S)
                except subprocess.TimeoutExpired:
                    subprocess.run([*UNMOUNT, self.path], check=False, capture_output=True, timeout=END_S)
                    process.kill()
                    process.wait(END_S)
        finally:
            if is_mounted(self.path):
                subprocess.run([*UNMOUNT, self.path], check=False, capture_output=True, timeout=END_S)
            if process is not None:
                self._close_pipes(process)
            if self.kept is not None:
                self.kept.close()
            for killed in self._killed:
                killed.wait(END_S)
            for publisher in self._shows.values():
                publisher.close()


def is_mounted(path: Path) -> bool:
    """Whether something is mounted exactly there; never touches it."""
    return any(line.split(" ")[4] == str(path) for line in Path("/proc/self/mountinfo").read_text().splitlines())


def mount_line(path: Path) -> str:
    """What the kernel's table says of the mount exactly there."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return next(line for line in lines if line.split(" ")[4] == str(path))


@contextmanager
def mounted(folder: Path, *, deadline_s: float = DEADLINE_S, **options: Any) -> Iterator[Mounted]:
    """A started mount that is always taken down."""
    mount = Mounted(folder, **options)
    watchdog = threading.Timer(deadline_s, mount.abort)
    watchdog.start()
    try:
        mount.start()
        yield mount
    finally:
        watchdog.cancel()
        mount.close()
