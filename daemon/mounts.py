"""What is mounted where, and how it is taken away without ever hanging.

The kernel's table (vfs/mountinfo.py) is the only source: asking a mount itself waits for its daemon. What must touch
a mountpoint (is it dead? is it empty?) does so in a child process that can be left behind.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from manifest.errors import Busy, ConfigurationError, DamfsError, NotFound, Unavailable
from vfs import mountpoint as mountpoints
from vfs.mountinfo import Mount, at, table

__all__ = [
    "Mount", "answers", "at", "canonical", "containing", "ours", "prepare", "table", "unmount", "wait_gone",
]  # fmt: skip

PROBE_DEADLINE_S = 5.0
LINKS_MAX = 40
"""As many links as the kernel follows in one path."""
_PROBE = "import os, sys; os.statvfs(sys.argv[1])"
"""STATFS is asked of the daemon each time; a stat would be answered from the kernel's cache, even for a dead one."""


def ours() -> list[Mount]:
    """The damfs mounts, dead ones included."""
    return [mount for mount in table() if mount.is_ours]


def containing(path: Path) -> Mount | None:
    """The damfs mount that ``path`` lies in, if it does. Follows links up to it; touches no mount of ours."""
    known = {mount.mountpoint: mount for mount in table()}
    where = canonical(path)
    found = next((known[above] for above in (where, *where.parents) if above in known), None)
    return found if found is not None and found.is_ours else None


def canonical(path: Path) -> Path:
    """The one spelling of a path: absolute, without links. Nothing at or below a mount of ours is looked at.

    Links in a circle are left as they are.
    """
    absolute = Path(os.path.abspath(path))  # noqa: PTH100  resolve() would stat inside the mount
    known = {mount.mountpoint for mount in table() if mount.is_ours}
    here, wanted, links = Path("/"), list(absolute.parts[1:]), 0
    while wanted and here not in known:
        name = wanted.pop(0)
        step = here.parent if name == ".." else here / name
        if step in known or not os.path.islink(step):  # noqa: PTH114  is_symlink() raises where one may not look
            here = step
            continue
        links += 1
        if links > LINKS_MAX:
            return absolute
        target = step.readlink()
        if target.is_absolute():
            here = Path("/")
        wanted = [*(part for part in target.parts if part != "/"), *wanted]
    return Path(os.path.normpath(here.joinpath(*wanted)))


def prepare(mountpoint: Path) -> None:
    """Make sure that a mount can be made: there, a folder, empty, nothing mounted; a dead damfs mount is detached.

    Blocking, bounded by deadlines. Raises ConfigurationError or Busy, which say what to do.
    """
    found = at(mountpoint)
    if found is not None and found.is_ours and not answers(mountpoint):
        unmount(mountpoint, lazy=True)
        found = at(mountpoint)
    if found is not None:
        what = "damfs" if found.is_ours else found.filesystem
        raise Busy(f"{mountpoint} is already mounted ({what}): unmount it first, or choose another folder")
    try:
        with os.scandir(mountpoint) as entries:
            first = next(entries, None)
    except FileNotFoundError:
        raise ConfigurationError(f"{mountpoint} does not exist: create it with mkdir -p {mountpoint}") from None
    except NotADirectoryError:
        raise ConfigurationError(f"{mountpoint} is not a folder: a mountpoint is an empty folder") from None
    except OSError as error:
        raise ConfigurationError(f"{mountpoint} cannot be used as a mountpoint: {error.strerror}") from error
    if first is not None:
        raise ConfigurationError(f"{mountpoint} is not empty: move what is in it away, or choose an empty folder")


def answers(mountpoint: Path, deadline_s: float = PROBE_DEADLINE_S) -> bool:
    """Whether the file system behind the mountpoint answers in time.

    Asked in a child process, which is left behind when it hangs.
    """
    command = [sys.executable, "-I", "-S", "-c", _PROBE, str(mountpoint)]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        return child.wait(deadline_s) == 0
    except subprocess.TimeoutExpired:
        child.kill()
        threading.Thread(target=child.wait, daemon=True, name="damfs-reap").start()
        return False


def unmount(mountpoint: Path, *, lazy: bool, deadline_s: float = PROBE_DEADLINE_S) -> None:
    """Take the topmost mount at ``mountpoint`` away. Blocking, never longer than ``deadline_s``.

    ``lazy`` detaches it even while it is in use: the name is free at once, open files go on until they are closed.
    Raises Busy (in use), NotFound (nothing is mounted), ConfigurationError (not allowed), Unavailable (no answer).
    """
    if at(mountpoint) is None:
        raise NotFound(f"nothing is mounted at {mountpoint}")
    outcome: list[DamfsError | None] = []
    worker = threading.Thread(
        target=lambda: outcome.append(_try_to_unmount(mountpoint, lazy)), daemon=True, name="damfs-umount"
    )
    worker.start()
    worker.join(deadline_s)
    if not outcome:
        raise Unavailable(f"unmounting {mountpoint} did not come back within {deadline_s:g} s: try umount -l")
    if outcome[0] is not None and at(mountpoint) is not None:
        raise outcome[0]


def wait_gone(mountpoint: Path, deadline_s: float) -> bool:
    """Wait until nothing of ours is mounted there. Blocking."""
    end = time.monotonic() + deadline_s
    while (found := at(mountpoint)) is not None and found.is_ours:
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _try_to_unmount(mountpoint: Path, lazy: bool) -> DamfsError | None:
    try:
        mountpoints.unmount(mountpoint, lazy)
    except DamfsError as error:
        return error
    return None
