"""Where a supervisor hears from its daemons: the socket that they know as ``$NOTIFY_SOCKET``.

A message is one datagram of ``KEY=value`` lines, perhaps with descriptors; who sent it is told by the kernel
(SO_PASSCRED), not by the message. Source: sd_notify(3), unix(7).

Rules: the socket lies in a folder that only its user can write, and is open to that user alone. A datagram that breaks
a rule is dropped with a line in the log; no datagram ends the supervisor. Descriptors that nobody takes are closed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.sockets import ANCILLARY_BYTES_MAX, address_of, read_ancillary

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger("supervisor")

MESSAGE_BYTES_MAX = 4096
DESCRIPTORS_MAX = 1
"""How many descriptors come with one message."""
TURN_MAX = 256
"""How many messages are read before something else gets its turn."""
_SOCKET = re.compile(r"notify\.([0-9]+)\.sock")


@dataclass(slots=True)
class Message:
    """What process ``pid`` said. ``descriptor`` is closed with the message, unless it is taken."""

    pid: int
    fields: dict[str, str]
    descriptor: int | None = None

    def take(self) -> int | None:
        """The descriptor that came along, which is the caller's from now on."""
        taken, self.descriptor = self.descriptor, None
        return taken

    def close(self) -> None:
        """Close what was not taken."""
        if (left := self.take()) is not None:
            os.close(left)


class Inbox:
    """A bound socket, ``notify.<pid>.sock`` in ``folder``. Of supervisors that were killed the sockets are removed."""

    def __init__(self, folder: Path) -> None:
        _remove_left_overs(folder)
        self.path = folder / f"notify.{os.getpid()}.sock"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        with address_of(self.path) as address:
            before = os.umask(0o177)
            try:
                self._socket.bind(address)
            finally:
                os.umask(before)

    def fileno(self) -> int:
        """For a selector."""
        return self._socket.fileno()

    def messages(self) -> Iterator[Message]:
        """What has arrived, each to be closed. Never waits."""
        for _ in range(TURN_MAX):
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(
                    MESSAGE_BYTES_MAX, ANCILLARY_BYTES_MAX, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except OSError as error:
                log.warning("the notify socket: %s", error)
                return
            message = _read(data, ancillary, flags)
            if message is not None:
                yield message

    def close(self) -> None:
        """Hear nobody any more."""
        self._socket.close()
        with contextlib.suppress(OSError):
            self.path.unlink()


def supervisor_of(folder: Path, mountpoint: Path) -> int | None:
    """The pid of the supervisor of a mountpoint (canonical), among those whose sockets lie in ``folder``."""
    for path in folder.glob("notify.*.sock"):
        found = _SOCKET.fullmatch(path.name)
        with contextlib.suppress(OSError):
            words = Path("/proc", found[1] if found else "0", "cmdline").read_bytes().split(b"\0")
            if b"daemon.supervisor" in words and os.fsencode(mountpoint) in words:
                return int(path.name.split(".")[1])
    return None


def _read(data: bytes, ancillary: list[tuple[int, int, bytes]], flags: int) -> Message | None:
    """The message in one datagram; None, and its descriptors closed, when it breaks a rule."""
    pid, descriptors = read_ancillary(ancillary)
    fields: dict[str, str] = {}
    fault = ""
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        fault = f"it is longer than {MESSAGE_BYTES_MAX} bytes, or its descriptors could not be received"
    elif len(descriptors) > DESCRIPTORS_MAX:
        fault = f"{len(descriptors)} descriptors came with it, expected at most {DESCRIPTORS_MAX}"
    else:
        try:
            fields = dict(_pair(line) for line in data.decode().splitlines())
        except ValueError as error:
            fault = f"expected lines of KEY=value in UTF-8: {error}"
    if fault:
        for descriptor in descriptors:
            os.close(descriptor)
        log.warning("a message of pid %d was dropped: %s", pid, fault)
        return None
    return Message(pid, fields, descriptors[0] if descriptors else None)


def _pair(line: str) -> tuple[str, str]:
    key, has_value, value = line.partition("=")
    if not key or not has_value:
        raise ValueError(f"found {line[:40]!r}")
    return key, value


def _remove_left_overs(folder: Path) -> None:
    for path in folder.glob("notify.*.sock"):
        found = _SOCKET.fullmatch(path.name)
        if found and (int(found[1]) == os.getpid() or not Path("/proc", found[1]).exists()):
            with contextlib.suppress(OSError):
                path.unlink()
