"""The kernel's limits for one FUSE connection, raised where this process may.

With the kernel's 12 background requests a dozen reads stalled on a dead source held a cached read up for 58 s
(measured). Whoever mounts may raise the limits of requests in fusectl, up to the system's fuse.max_user_bgreq;
read-ahead needs root. What could not be raised is said in ``status``.

Rules: nothing here touches the mount itself (that would wait for us); all of it may block: run it in a thread.
"""

from __future__ import annotations

import logging
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final

from vfs import mountinfo

log = logging.getLogger(__name__)

MAX_BACKGROUND: Final = 256
READ_AHEAD_KIB: Final = 256
"""With more the kernel reads 80 KiB for a program that looks at a header, and the first 64 KiB are what is cheap to
fetch (docs/decisions/0036)."""

_CONNECTIONS = Path("/sys/fs/fuse/connections")
_MOUNT_TIMEOUT_S = 5


def raise_limits(mountpoint: Path, max_background: int = MAX_BACKGROUND) -> dict[str, int | str]:
    """Raise what can be raised; returns what holds now, and the reason beside what stayed as it was."""
    mount = mountinfo.at(mountpoint)
    if mount is None:
        return {"not_raised": f"{mountpoint} is not in the table of mounts"}
    refused = []
    connection = _CONNECTIONS / mount.device.partition(":")[2]
    if not connection.is_dir():
        _mount_fusectl()
    wanted = [
        ("max_background", connection / "max_background", max_background),
        ("congestion_threshold", connection / "congestion_threshold", max_background * 3 // 4),
        ("read_ahead_kib", Path(f"/sys/class/bdi/{mount.device}/read_ahead_kb"), READ_AHEAD_KIB),
    ]
    limits: dict[str, int | str] = {}
    for name, path, value in wanted:
        try:
            path.write_text(str(value))
        except OSError as error:
            refused.append(f"{name}: {error.strerror} ({path})")
        try:
            limits[name] = int(path.read_text())
        except (OSError, ValueError):
            limits[name] = "unknown"
    if refused:
        limits["not_raised"] = "; ".join(refused)
        log.info("limits of the mount were not raised: %s", limits["not_raised"])
    return limits


class Connection:
    """One FUSE connection, by files of fusectl that were opened while it was the one with its device number.

    The number is another mount's as soon as this one is gone; open files stay those of this connection. Source:
    fs/fuse/control.c, fuse_ctl_file_conn_get. Where there is no fusectl nothing can be aborted.
    """

    def __init__(self, mountpoint: Path) -> None:
        """Of the mount that is there now, if one is."""
        mount = mountinfo.at(mountpoint)
        self._device = None if mount is None else mount.device
        self._abort = self._waiting = -1
        if self._device is not None:
            folder = _CONNECTIONS / self._device.partition(":")[2]
            if not folder.is_dir():
                _mount_fusectl()
            with suppress(OSError):
                self._abort = os.open(folder / "abort", os.O_WRONLY | os.O_CLOEXEC)
                self._waiting = os.open(folder / "waiting", os.O_RDONLY | os.O_CLOEXEC)

    def is_at(self, mountpoint: Path) -> bool:
        """Whether this is what is mounted there now, and no newer mount."""
        if self._device is None or mountinfo.device_at(mountpoint) != self._device:
            return False
        if self._waiting < 0:
            return True
        with Path(f"/proc/self/fd/{self._waiting}").open("rb") as again:  # it cannot be read twice
            return bool(again.read())

    def abort(self) -> None:
        """Have the kernel end all that waits for the daemon, with an error. Fails silently."""
        if self._abort >= 0:
            with suppress(OSError):
                os.write(self._abort, b"1")

    def close(self) -> None:
        """Let go of the files. Idempotent."""
        for descriptor in (self._abort, self._waiting):
            if descriptor >= 0:
                os.close(descriptor)
        self._abort = self._waiting = -1


def abort_connection(mountpoint: Path) -> None:
    """As ``Connection.abort``, of the mount that is there."""
    connection = Connection(mountpoint)
    connection.abort()
    connection.close()


def _mount_fusectl() -> None:
    """The control file system of FUSE is not mounted everywhere (containers); root can mend that."""
    if os.geteuid() != 0 or not _CONNECTIONS.is_dir():
        return
    command = ["mount", "-t", "fusectl", "-o", "nosuid,nodev,noexec", "fusectl", str(_CONNECTIONS)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=_MOUNT_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError) as error:
        log.info("fusectl is not mounted and cannot be: %s", error)
