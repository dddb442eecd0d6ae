"""Unix sockets: how a long name is spelled, which there are, and what comes along with a message.

Imports nothing heavy: commands use it.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

ADDRESS_BYTES_MAX = 107
"""What ``sun_path`` holds besides its final NUL (unix(7))."""
_CREDENTIALS = struct.Struct("3i")
ANCILLARY_BYTES_MAX = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(32 * 4)
"""Room for the sender and 32 descriptors."""


class address_of:  # noqa: N801  used as a function
    """A spelling of a socket's path that fits into ``sun_path``: through a descriptor of its folder when it is long."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folder = -1

    def __enter__(self) -> str:
        if len(os.fsencode(self._path)) <= ADDRESS_BYTES_MAX:
            return str(self._path)
        self._folder = os.open(self._path.parent, os.O_PATH | os.O_CLOEXEC)
        short = f"/proc/self/fd/{self._folder}/{self._path.name}"
        if len(os.fsencode(short)) > ADDRESS_BYTES_MAX:
            os.close(self._folder)
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(self._path))
        return short

    def __exit__(self, *_: object) -> None:
        if self._folder >= 0:
            with suppress(OSError):
                os.close(self._folder)


def sockets_in(folder: Path, surface: str) -> Iterator[Path]:
    """The sockets of one surface in a run folder, sorted; nothing when the folder is missing."""
    with suppress(OSError):
        yield from sorted(folder.glob(f"*.{surface}.sock"))


def read_ancillary(ancillary: Iterable[tuple[int, int, bytes]]) -> tuple[int, list[int]]:
    """Who sent a message (0: it was not told), and the descriptors that came along. Source: unix(7)."""
    pid, descriptors = 0, array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            pid = _CREDENTIALS.unpack(content[: _CREDENTIALS.size])[0]
        elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    return pid, descriptors.tolist()
