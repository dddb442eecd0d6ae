"""What a mountpoint needs of the machine, and how it is set free: the same for all bindings.

Rule: nothing here touches what is mounted, which would wait for us; all of it may block: run it in a thread.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from manifest.errors import Busy, ConfigurationError

FUSE_DEVICE = Path("/dev/fuse")
UNMOUNT_TIMEOUT_S = 10.0
MNT_DETACH = 2
CAP_SYS_ADMIN = 21


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How to mount. ``allow_other``: other users than the one who mounts may look in."""

    allow_other: bool = False


def why_not(*, allow_other: bool) -> str | None:
    """What is missing for a mount, and the remedy; None when nothing known is. libfuse tells it to stderr alone."""
    try:
        os.close(os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return (
            f"{FUSE_DEVICE} is missing: load the module with modprobe fuse (a container needs --device {FUSE_DEVICE})"
        )
    except OSError as error:
        return (
            f"{FUSE_DEVICE} cannot be opened by uid {os.geteuid()} ({error.strerror}): chmod 666 {FUSE_DEVICE}, or let "
            f"the container have it with --device {FUSE_DEVICE}"
        )
    if os.geteuid() == 0:
        lacks = "root may not mount here without CAP_SYS_ADMIN: a container needs --cap-add SYS_ADMIN"
        return None if effective_capabilities() >> CAP_SYS_ADMIN & 1 else lacks
    if shutil.which("fusermount3") is None:
        return "fusermount3 is missing, which mounts for users: install the package fuse3"
    return "allow_other needs user_allow_other in /etc/fuse.conf" if allow_other else None


def effective_capabilities() -> int:
    """Of this process, one bit each. Source: proc(5), /proc/pid/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")), 0)


def unmount(mountpoint: Path, lazy: bool) -> None:
    """Take the topmost mount there away; nothing mounted is no error. ``lazy``: even while it is in use.

    Raises Busy, ConfigurationError.
    """
    if os.geteuid() == 0:
        _unmount_as_root(mountpoint, lazy)
    else:
        _unmount_as_user(mountpoint, lazy)


def _unmount_as_root(mountpoint: Path, lazy: bool) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(mountpoint), MNT_DETACH if lazy else 0) == 0:
        return
    number = ctypes.get_errno()
    if number == errno.EBUSY:
        raise _in_use(mountpoint)
    if number not in (errno.EINVAL, errno.ENOENT):  # not mounted any more
        raise ConfigurationError(f"cannot unmount {mountpoint}: {os.strerror(number)}")


def _unmount_as_user(mountpoint: Path, lazy: bool) -> None:
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", str(mountpoint)]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=UNMOUNT_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigurationError(f"cannot unmount {mountpoint}: {error}") from error
    if done.returncode == 0:
        return
    if "busy" in done.stderr:
        raise _in_use(mountpoint)
    raise ConfigurationError(f"cannot unmount {mountpoint}: {done.stderr.strip()}")


def _in_use(mountpoint: Path) -> Busy:
    return Busy(f"{mountpoint} is in use: close what is open there (fuser -vm {mountpoint}), or unmount with --lazy")
