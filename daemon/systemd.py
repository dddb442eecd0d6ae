"""What a daemon says to whoever supervises it: systemd's protocol, by hand (one datagram a message, no library).

Our own supervisor (daemon/supervisor.py) plays systemd's part, and speaks to the real one through this module as well.
Source: sd_notify(3), sd_pid_notify_with_fds(3). Ours alone: ``X_STANDBY``, ``X_LIFELINE``, and the pipe that goes with
``RELOADING``.

Rules: without ``$NOTIFY_SOCKET`` nothing is sent, and nothing fails. What is told for information (ready, status,
stopping, standby) is logged when it does not arrive; what somebody relies on (store, forget, barrier, reload) raises
Unavailable.
"""

from __future__ import annotations

import logging
import os
import re
import select
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.sockets import address_of
from manifest.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger(__name__)

SEND_S = 5.0
"""How long a message that somebody relies on waits for room in the receiver's queue."""
REPLY_BYTES_MAX = 4096
_NAME = re.compile(r"[a-z0-9-]{1,64}")


class Notify:
    """The service manager that started us, if one did. Takes its variables out of the environment.

    ``supervised``: it keeps descriptors (``store``) and gives them to a successor should this process end.
    """

    def __init__(self) -> None:
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        room = os.environ.pop("FDSTORE", "")
        self.supervised = bool(self._address) and room.isdecimal() and int(room) > 0

    def ready(self, status: str) -> None:
        """The mount answers."""
        self._tell(f"READY=1\nSTATUS={_line(status)}")

    def stopping(self) -> None:
        """The mount is about to go: no successor is wanted."""
        self._tell("STOPPING=1\nSTATUS=unmounting")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        self._tell(f"STATUS={_line(text)}")

    def standby(self, why_not: str = "") -> None:
        """Could this process take over now? With a reason it could not."""
        self._tell(f"X_STANDBY=0\nSTATUS={_line(why_not)}" if why_not else "X_STANDBY=1")

    def lifeline(self, descriptor: int) -> None:
        """A pipe that ends when this process does (daemon/lifeline.py). Raises Unavailable."""
        self._send("X_LIFELINE=1", [descriptor])

    def store(self, name: str, descriptor: int) -> None:
        """Keep a descriptor for a successor; it replaces one of the same name. Raises Unavailable.

        Kept is a duplicate: closing ours changes nothing. It may still be on its way: see ``barrier``.
        """
        _check(name)
        # FDPOLL=0: systemd would else drop a descriptor that reports an error, as /dev/fuse does before the mount.
        self._send(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", [descriptor])

    def forget(self, name: str) -> None:
        """Close what is kept under the name, if anything is. Raises Unavailable."""
        _check(name)
        self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def barrier(self, timeout_s: float) -> None:
        """Wait until everything that was said before is done. Blocking. Raises Unavailable at the time-out."""
        if not self._address:
            return
        if self._ask("BARRIER=1", timeout_s) is None:
            raise Unavailable(f"the supervisor at {self._address} did not do what it was told within {timeout_s:g} s")

    def reload(self, timeout_s: float) -> str:
        """Ask for a successor: "" when this process is about to be replaced (SIGUSR2), else why it is not. Blocking.

        Raises Unavailable when the supervisor is gone, or does not decide within ``timeout_s``.
        """
        reply = self._ask("RELOADING=1", timeout_s)
        if not reply:
            raise Unavailable(f"the supervisor at {self._address} did not answer within {timeout_s:g} s: see the log")
        word, _, why = reply.decode(errors="replace").strip().partition(" ")
        return "" if word == "ok" else why or "the supervisor gave no reason"

    def _ask(self, state: str, timeout_s: float) -> bytes | None:
        """Send one end of a pipe along; what comes back before its end, None at the time-out."""
        reading, writing = os.pipe()
        deadline = time.monotonic() + timeout_s
        with os.fdopen(reading, "rb", buffering=0) as answer:
            try:
                self._send(state, [writing])
            finally:
                os.close(writing)
            waiter = select.poll()
            waiter.register(answer, select.POLLIN)
            said = b""
            while len(said) < REPLY_BYTES_MAX:
                if not waiter.poll(max(0.0, deadline - time.monotonic()) * 1000):
                    return None
                piece = answer.read(REPLY_BYTES_MAX)
                if not piece:
                    break
                said += piece
            return said

    def _tell(self, state: str) -> None:
        try:
            self._send(state, wait_s=0.0)
        except Unavailable as error:
            log.warning("%s", error)

    def _send(self, state: str, descriptors: Sequence[int] = (), *, wait_s: float = SEND_S) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(wait_s)
                if self._address.startswith("@"):
                    sender.connect("\0" + self._address[1:])
                else:
                    with address_of(Path(self._address)) as address:
                        sender.connect(address)
                socket.send_fds(sender, [state.encode()], list(descriptors))
        except OSError as error:
            what = state.partition("\n")[0]
            raise Unavailable(f"the service manager at {self._address} was not told {what!r}: {error}") from error


def _line(text: str) -> str:
    return " ".join(text.split())


def _check(name: str) -> None:
    assert _NAME.fullmatch(name), f"{name!r} is no name of a stored descriptor"
