"""HTTP/1.1 on sockets, as much of it as a proxy needs that passes bodies on without looking at them."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import threading
import time
from contextlib import suppress

HEAD_BYTES_MAX = 64 * 1024
PIECE_BYTES = 256 * 1024
PIPE_BYTES = 1024 * 1024
_F_SETPIPE_SZ = 1031
_RST = struct.pack("ii", 1, 0)


class Ended(Exception):
    """The other side has ended the connection."""


class Head:
    """The first lines of a request or an answer, as they came."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.first, _, rest = raw.partition(b"\r\n")
        pairs = (line.partition(b":") for line in rest.split(b"\r\n") if line)
        self.fields = {name.strip().lower(): value.strip() for name, _, value in pairs}

    @property
    def length(self) -> int | None:
        """The bytes of the body; None where its end is told otherwise."""
        return int(self.fields[b"content-length"]) if b"content-length" in self.fields else None

    @property
    def is_chunked(self) -> bool:
        return b"chunked" in self.fields.get(b"transfer-encoding", b"").lower()

    @property
    def ends_connection(self) -> bool:
        said = self.fields.get(b"connection", b"").lower()
        return said == b"close" or (b"HTTP/1.0" in self.first and said != b"keep-alive")

    @property
    def status(self) -> int:
        """Of an answer."""
        return int(self.first.split()[1])

    def without(self, *names: bytes) -> Head:
        """The same head, but for these fields."""
        lines = self.raw.strip().split(b"\r\n")
        kept = [line for line in lines if line.partition(b":")[0].strip().lower() not in names]
        return Head(b"\r\n".join(kept) + b"\r\n\r\n")

    def with_length(self, length: int) -> bytes:
        """The same head with this Content-Length."""
        kept = self.without(b"content-length", b"transfer-encoding").raw.removesuffix(b"\r\n")
        return kept + b"Content-Length: %d\r\n\r\n" % length


class Connection:
    """A socket, and what was read from it beyond a head."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = sock
        self._rest = b""

    def head(self) -> Head:
        """The next head. Raises Ended."""
        while (end := self._rest.find(b"\r\n\r\n")) < 0:
            more = self.socket.recv(HEAD_BYTES_MAX)
            if not more or len(self._rest) > HEAD_BYTES_MAX:
                raise Ended
            self._rest += more
        raw, self._rest = self._rest[: end + 4], self._rest[end + 4 :]
        return Head(raw)

    def take(self, size_max: int) -> bytes:
        """Up to so many bytes of a body, at least one. Raises Ended."""
        if self._rest:
            data, self._rest = self._rest[:size_max], self._rest[size_max:]
        else:
            data = self.socket.recv(size_max)
        if not data:
            raise Ended
        return data

    @property
    def has_rest(self) -> bool:
        return bool(self._rest)

    def whole_body(self, head: Head) -> bytes:
        """A body whose length the head does not tell."""
        if head.is_chunked:
            return self._dechunked()
        parts = []
        with suppress(Ended):
            while True:
                parts.append(self.take(PIECE_BYTES))
        return b"".join(parts)

    def _dechunked(self) -> bytes:
        parts = []
        while size := int(self._line().partition(b";")[0], 16):
            parts.append(self._exactly(size))
            self._line()
        while self._line():  # trailers
            pass
        return b"".join(parts)

    def _line(self) -> bytes:
        while b"\r\n" not in self._rest:
            self._rest += self._more()
        line, _, self._rest = self._rest.partition(b"\r\n")
        return line

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += self.take(size - len(data))
        return data

    def _more(self) -> bytes:
        data = self.socket.recv(PIECE_BYTES)
        if not data:
            raise Ended
        return data

    def is_alive(self) -> bool:
        """Whether the other side has not ended it, as far as is known now."""
        try:
            return bool(self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def reset(self) -> None:
        """End it with RST."""
        with suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
        self.socket.close()

    def shut(self) -> None:
        """Wake whoever waits for it, and end it."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)


class Held:
    """A body that is here already."""

    def __init__(self, body: bytes) -> None:
        self._rest = memoryview(body)

    def take(self, size_max: int) -> bytes:
        """See ``Connection.take``."""
        data, self._rest = self._rest[:size_max], self._rest[size_max:]
        return bytes(data)


class Pipe:
    """Moves bytes from socket to socket in the kernel."""

    def __init__(self) -> None:
        self._out, self._in = os.pipe()
        fcntl.fcntl(self._in, _F_SETPIPE_SZ, PIPE_BYTES)

    def move(self, source: socket.socket, sink: socket.socket, size_max: int) -> int:
        """Up to so many bytes, at least one. Raises Ended, OSError."""
        count = moved = os.splice(source.fileno(), self._in, min(size_max, PIPE_BYTES))
        if not count:
            raise Ended
        while moved:
            moved -= os.splice(self._out, sink.fileno(), moved)
        return count

    def close(self) -> None:
        os.close(self._in)
        os.close(self._out)


class Rate:
    """A limit in bytes a second that any number of threads share; BURST_S of it may come at once."""

    BURST_S = 0.01

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self._lock = threading.Lock()
        self._free_at = 0.0

    @property
    def piece_bytes(self) -> int:
        """How much to move between two waits, so that it flows."""
        return max(256, min(PIECE_BYTES, int(self.bytes_per_s * self.BURST_S / 2)))

    def wait_s(self, size: int) -> float:
        """Count so many bytes; how long to wait until they may have been sent."""
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now - self.BURST_S) + size / self.bytes_per_s
            return self._free_at - now
