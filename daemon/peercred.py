"""Who is at the other end of a Unix socket, as the kernel knows it (SO_PEERCRED, unix(7))."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import trio

_UCRED = struct.Struct("iII")
_SO_PEERGROUPS = 59
"""asm-generic/socket.h, Linux 4.13; Python's socket module does not name it."""
_GROUPS_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that connected; ids as they were at connect(2). ``pid`` is 0 in a foreign pid namespace.

    ``groups`` are its supplementary ones, None where the kernel does not tell.
    """

    pid: int
    uid: int
    gid: int
    groups: tuple[int, ...] | None = ()

    def __str__(self) -> str:
        return f"pid {self.pid} of uid {self.uid}"


def peer_of(connection: socket.socket | trio.socket.SocketType) -> Peer | None:
    """The peer of a connected Unix socket; None for any other socket. Raises OSError when it is gone."""
    if connection.family != socket.AF_UNIX:
        return None
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Peer(pid, uid, gid, _groups_of(connection))


def _groups_of(connection: socket.socket | trio.socket.SocketType) -> tuple[int, ...] | None:
    """Up to 256 of them, which is what Python's getsockopt can take; of somebody with more it is not known."""
    try:
        found = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES)
    except OSError:
        return None
    return struct.unpack(f"{len(found) // 4}I", found)
