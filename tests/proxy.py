"""A TCP proxy that can fail as networks do: pass everything on, say nothing, or refuse.

It stands between damfs and a real S3 server, so the faults are those of the wire and not of a mock.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

BUFFER_BYTES = 64 * 1024


class Mode(Enum):
    """What happens to connections, new and old."""

    PASS = "pass"
    STALL = "stall"  # connections are accepted, bytes are taken, nothing comes back
    REFUSE = "refuse"  # connections are reset at once


class Proxy:
    """Listens on a free loopback port and passes bytes to ``target``; ``mode`` may change at any time."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.connections = 0
        self._mode = Mode.PASS
        self._changed = threading.Condition()
        self._open: set[socket.socket] = set()
        self._closing = False
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def mode(self) -> Mode:
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        with self._changed:
            self._mode = mode
            self._changed.notify_all()
            if mode is not Mode.STALL:
                # What was held up is lost, as after a cable was pulled; what was passing is cut off.
                self._reset_all()

    def close(self) -> None:
        """End every connection and the listener."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._reset_all()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # a thread in accept() does not notice a close
        self._listener.close()

    def _reset_all(self) -> None:
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            if self._mode is Mode.REFUSE:
                return
            try:
                server = socket.create_connection(self.target, timeout=10)
            except OSError:
                return
            with server:
                server.settimeout(None)
                self._open |= {client, server}
                back = threading.Thread(target=self._pump, args=(server, client), daemon=True)
                back.start()
                self._pump(client, server)
                back.join()
                self._open -= {client, server}

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(BUFFER_BYTES):
                with self._changed:
                    while self._mode is Mode.STALL and not self._closing:
                        self._changed.wait()
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def proxy(target: tuple[str, int]) -> Iterator[Proxy]:
    """A Proxy that is closed on the way out."""
    made = Proxy(target)
    try:
        yield made
    finally:
        made.close()
