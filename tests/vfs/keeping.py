"""A supervisor's part for a mount of the tests: keeps descriptors for a successor, and starts nothing.

It speaks systemd's protocol, as the runner's ``daemon.systemd.Notify`` does: FDSTORE, FDSTOREREMOVE, BARRIER.
"""

from __future__ import annotations

import itertools
import os
import socket
import threading

_NAMES = itertools.count(1)
_DESCRIPTORS_MAX = 4


class Kept:
    """What a runner has had kept, by name, until ``close``."""

    def __init__(self) -> None:
        self.descriptors: dict[str, int] = {}
        address = f"@damfs-test-{os.getpid()}-{next(_NAMES)}"
        self.environment = {"NOTIFY_SOCKET": address, "FDSTORE": "16"}
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.bind("\0" + address[1:])
        self._thread = threading.Thread(target=self._listen, name="keeper", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Keep nothing any more. Idempotent."""
        if self._thread.is_alive():
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.connect(self._socket.getsockname())
                sender.send(b"END")
            self._thread.join()
            self._socket.close()
        self.drop()

    def drop(self) -> None:
        """Close what is kept: a mount without a daemon ends."""
        with self._lock:
            while self.descriptors:
                os.close(self.descriptors.popitem()[1])

    def _listen(self) -> None:
        while True:
            message, descriptors, _, _ = socket.recv_fds(self._socket, 4096, _DESCRIPTORS_MAX, socket.MSG_CMSG_CLOEXEC)
            if message == b"END":
                return
            said = dict(line.split("=", 1) for line in message.decode().split("\n"))
            with self._lock:
                self._do(said, descriptors)

    def _do(self, said: dict[str, str], descriptors: list[int]) -> None:
        name = said.get("FDNAME", "")
        if "FDSTORE" in said or "FDSTOREREMOVE" in said:
            before = self.descriptors.pop(name, None)
            if before is not None:
                os.close(before)
        if "FDSTORE" in said:
            self.descriptors[name] = descriptors.pop()
        for descriptor in descriptors:  # a barrier's
            os.close(descriptor)
