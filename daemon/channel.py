"""What a supervisor and the processes that stand by say to each other: packets of words, perhaps with descriptors.

A standby is two processes. The *zygote* (daemon/zygote.py) is a daemon process that has imported everything and forks
one *successor* after the other; each waits until it is to be the daemon.

| from, to | words | descriptors |
|---|---|---|
| supervisor, zygote | ``fork`` | one end of a pair of sockets, for the successor |
| successor, supervisor | ``here`` | its lifeline (daemon/lifeline.py), if it has one |
| supervisor, successor | ``go`` DIED_NS RESTARTS NAME… | what is stored under these names; READY: see daemon/ready.py |

Who said ``here`` is told by the kernel (SO_PASSCRED). Whoever's socket ends is not needed any more, and ends.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, NamedTuple

from daemon.sockets import ANCILLARY_BYTES_MAX, read_ancillary

if TYPE_CHECKING:
    from collections.abc import Sequence

PACKET_BYTES_MAX = 4096
READY = "READY"
"""No name under which anything is stored."""


class Packet(NamedTuple):
    """What was said, and by which process; the descriptors are the receiver's."""

    pid: int
    words: tuple[str, ...]
    descriptors: list[int]

    def close(self) -> None:
        """Close the descriptors that came along."""
        for descriptor in self.descriptors:
            os.close(descriptor)


def pair() -> tuple[socket.socket, socket.socket]:
    """The supervisor's end, which never waits, and the other one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    ours.setblocking(False)
    return ours, theirs


def say(end: socket.socket, *words: object, descriptors: Sequence[int] = ()) -> None:
    """Send a packet. Raises OSError when nobody reads any more."""
    socket.send_fds(end, [" ".join(map(str, words)).encode()], list(descriptors), socket.MSG_NOSIGNAL)


def hear(end: socket.socket) -> Packet | None:
    """The next packet; None at the end of the socket. Raises OSError."""
    try:
        data, ancillary, _, _ = end.recvmsg(PACKET_BYTES_MAX, ANCILLARY_BYTES_MAX, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:  # closed with something unread
        return None
    pid, descriptors = read_ancillary(ancillary)
    return Packet(pid, tuple(data.decode(errors="replace").split()), descriptors) if data else None
