"""Who is at the other end of a Unix socket, as the kernel knows it (SO_PEERCRED, unix(7))."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import trio

_UCRED = struct.Struct("iII")


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that connected; ids as they were at connect(2). ``pid`` is 0 in a foreign pid namespace."""

    pid: int
    uid: int
    gid: int

    def __str__(self) -> str:
        return f"pid {self.pid} of uid {self.uid}"


def peer_of(connection: socket.socket | trio.socket.SocketType) -> Peer | None:
    """The peer of a connected Unix socket; None for any other socket. Raises OSError when it is gone."""
    if connection.family != socket.AF_UNIX:
        return None
    return Peer(*_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))
