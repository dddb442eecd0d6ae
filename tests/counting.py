"""A proxy that counts: which requests a store was asked, and how many bytes it answered with."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections import Counter
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tests.proxy import BUFFER_BYTES, Mode, Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from manifest.library import Library

_HEAD = re.compile(rb"([A-Z]+) (\S+) HTTP/1\.[01]\r\n.*?\r\n\r\n", re.DOTALL)


class CountingProxy(Proxy):
    """A Proxy for requests without bodies. ``requests`` are (method, path, query) in their order."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.requests: list[tuple[str, str, str]] = []
        self.answered_bytes = 0
        self._counting = threading.Lock()
        super().__init__(target)

    def forget(self) -> None:
        """Begin to count anew."""
        with self._counting:
            self.requests, self.answered_bytes = [], 0

    def paths(self, part: str = "") -> Counter[str]:
        """How often each path that holds ``part`` was asked for; a listing's with its prefix."""
        with self._counting:
            asked = list(self.requests)
        named = (
            path + (f"?{query.partition('&X-Amz')[0]}" if query.startswith("list") else "") for _, path, query in asked
        )
        return Counter(path for path in named if part in path)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        is_answer = source.getpeername()[:2] == socket.getaddrinfo(*self.target)[0][4][:2]
        held = b""
        with contextlib.suppress(OSError):
            while data := source.recv(BUFFER_BYTES):
                if is_answer:
                    with self._counting:
                        self.answered_bytes += len(data)
                else:
                    held = self._count(held + data)
                with self._changed:
                    while self._mode is Mode.STALL and not self._closing:
                        self._changed.wait()
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _count(self, data: bytes) -> bytes:
        while match := _HEAD.match(data):
            path, _, query = match[2].decode().partition("?")
            with self._counting:
                self.requests.append((match[1].decode(), path, query))
            data = data[match.end() :]
        return data


def address_of(library: Library) -> tuple[str, int]:
    """Where the store of a library listens."""
    parts = urlsplit(str(library.endpoint))
    return str(parts.hostname), int(parts.port or 80)


@contextlib.contextmanager
def counting(library: Library) -> Iterator[CountingProxy]:
    """A proxy before the store of a library, closed on the way out."""
    made = CountingProxy(address_of(library))
    try:
        yield made
    finally:
        made.close()
