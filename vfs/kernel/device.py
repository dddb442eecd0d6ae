"""/dev/fuse: opened, mounted, written to, and asked to lend the kernel a file.

State: none beside the descriptor. Rules: the descriptor is non-blocking for reads; replies never block; what may block
in the kernel (notices) is written elsewhere (notices.py). Nobody here opens anything inside the mount.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from manifest.errors import ConfigurationError
from vfs.kernel import wire

FUSE_DEVICE: Final = "/dev/fuse"
FILESYSTEM_TYPE: Final = "fuse.damfs"
MS_RDONLY, MS_NOSUID, MS_NODEV = 1, 2, 4
_NOBODY: Final = {errno.ENOENT, errno.ENODEV, errno.ENOTCONN, errno.ECONNABORTED}
"""A reply to a request that was withdrawn, or to a mount that is gone."""


class Device:
    """One connection to the kernel."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd
        os.set_blocking(fd, False)
        os.set_inheritable(fd, False)

    @classmethod
    def open(cls) -> Device:
        """A new connection, not mounted yet. Raises ConfigurationError."""
        try:
            return cls(os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            raise ConfigurationError(f"{FUSE_DEVICE} cannot be opened: {error.strerror}") from error

    def mount(self, mountpoint: Path, *, allow_other: bool) -> None:
        """Mount this connection, read-only. Needs CAP_SYS_ADMIN. Raises ConfigurationError."""
        options = f"fd={self.fd},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()},default_permissions"
        if allow_other:
            options += ",allow_other"
        libc = ctypes.CDLL(None, use_errno=True)
        flags = ctypes.c_ulong(MS_RDONLY | MS_NOSUID | MS_NODEV)
        if libc.mount(b"damfs", os.fsencode(mountpoint), FILESYSTEM_TYPE.encode(), flags, options.encode()) != 0:
            raise ConfigurationError(f"cannot mount on {mountpoint}: {os.strerror(ctypes.get_errno())}")

    def write(self, message: bytes | Sequence[bytes | bytearray | memoryview]) -> bool:
        """Send a reply, in one piece or several. False when nobody waits for it any more; raises OSError."""
        try:
            if isinstance(message, bytes):
                os.write(self.fd, message)
            else:
                os.writev(self.fd, message)
        except OSError as error:
            if error.errno in _NOBODY:
                return False
            raise
        return True

    def resend(self) -> bool:
        """Ask for every request again that was read and not answered. False when the kernel cannot."""
        try:
            os.write(self.fd, wire.notice(wire.RESEND))
        except OSError as error:
            if error.errno == errno.EINVAL:
                return False
            raise
        return True

    def lend(self, fd: int) -> int:
        """Register an open file as one that the kernel may read itself; its backing id. Raises OSError."""
        request = bytearray(wire.BACKING_MAP.pack(fd, 0, 0))  # immutable bytes would come back instead of the id
        backing_id: int = fcntl.ioctl(self.fd, wire.BACKING_OPEN, request)
        return backing_id

    def take_back(self, backing_id: int) -> None:
        """End ``lend``; files that are open stay so. Raises OSError (ENOENT: it was not registered)."""
        fcntl.ioctl(self.fd, wire.BACKING_CLOSE, array.array("I", [backing_id]).tobytes())

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
