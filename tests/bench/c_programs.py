"""The programs in C that measurements need: built when a compiler is there, and the minimal FUSE loop mounted.

Rules: mounting needs root; what is mounted is always taken away, also when a measurement fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.harness import detach, end, mounted_below, wait_until

SOURCES = Path(__file__).parent
BUILD_TIMEOUT_S = 120
SCAN_TIMEOUT_S = 300
MOUNT_TIMEOUT_S = 20


def why_not() -> str | None:
    """What is missing here for these programs; None when nothing is."""
    if shutil.which("cc") is None:
        return "there is no C compiler (cc)"
    if not Path("/usr/include/linux/fuse.h").exists():
        return "there is no linux/fuse.h"
    return None if os.geteuid() == 0 else "mounting without fusermount needs root"


def on_cpu(cpu: int | None) -> list[str]:
    """What stands before a command that is to run on one CPU."""
    return [] if cpu is None else ["taskset", "-c", str(cpu)]


class Loop(NamedTuple):
    """The mounted C loop, and its process."""

    path: Path
    pid: int


@dataclass(frozen=True)
class Programs:
    """Where the built programs are."""

    fuse_loop: Path
    scan_names: Path

    @classmethod
    def build(cls, folder: Path) -> Programs:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("fuse_loop", "scan_names"):
            command: list[str | Path] = ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o"]
            command += [folder / name, SOURCES / f"{name}.c"]
            subprocess.run(command, check=True, timeout=BUILD_TIMEOUT_S)
        return cls(folder / "fuse_loop", folder / "scan_names")

    def scan(self, how: str, folder: Path, count: int, cpu: int | None = None) -> float:
        """Seconds that ``stat`` or ``list`` of the ``count`` names of a folder took, the folder itself being known.

        The client runs on CPU number ``cpu`` alone, or where the scheduler puts it.
        """
        command: list[str | Path] = [*on_cpu(cpu), self.scan_names, how, str(count)]
        done = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, timeout=SCAN_TIMEOUT_S)
        return int(done.stdout) / 1e9

    @contextmanager
    def mounted(self, mountpoint: Path, count: int, cpu: int | None = None) -> Iterator[Loop]:
        """The minimal loop with ``count`` names, fresh, on CPU number ``cpu`` alone or where the scheduler puts it."""
        mountpoint.mkdir(exist_ok=True)
        server = subprocess.Popen([*on_cpu(cpu), self.fuse_loop, mountpoint, str(count)], stdout=subprocess.DEVNULL)
        try:
            wait_until(lambda: mountpoint in mounted_below(mountpoint.parent) or server.poll() is not None,
                       "the loop to be mounted", MOUNT_TIMEOUT_S)  # fmt: skip
            assert server.poll() is None, "fuse_loop ended; see what it printed"
            yield Loop(mountpoint, server.pid)
        finally:
            detach(mountpoint)
            end(server.pid)
            server.wait(MOUNT_TIMEOUT_S)
