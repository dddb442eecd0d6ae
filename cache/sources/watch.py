"""Cut off a request at its deadline, wherever its thread waits.

A socket's time-out is for one ``recv``: an answer that drips byte by byte never meets it. So a watcher shuts the
connection down when the deadline comes, and the thread that reads it (the headers, the TLS handshake, the body) hears
an end or an error at once.

State: the attempts under way. One thread, that lives while there is something to watch and IDLE_S longer. Thread-safe.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from manifest.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

IDLE_S = 10.0


class Wire:
    """A second descriptor of a connection: it can be shut down whoever else has closed or wrapped it."""

    __slots__ = ("_socket",)

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected.dup()

    def cut(self) -> None:
        """Whoever waits for it waits no longer."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def __del__(self) -> None:
        self._socket.close()


class Attempt:
    """One request under way. ``deadline`` in s of time.monotonic; ``expired`` once it was cut off."""

    __slots__ = ("_lock", "_wire", "deadline", "expired")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.expired = False
        self._wire: Wire | None = None
        self._lock = threading.Lock()

    def uses(self, wire: Wire) -> None:
        """The request goes over this connection from now on."""
        with self._lock:
            self._wire = wire
            expired = self.expired
        if expired:
            wire.cut()

    def expire(self) -> None:
        """Cut it off."""
        with self._lock:
            self.expired, wire = True, self._wire
        if wire is not None:
            wire.cut()

    def ends(self) -> None:
        """The connection is somebody else's from now on."""
        with self._lock:
            self._wire = None

    def remaining_s(self) -> float:
        """What is left of it; not negative."""
        return max(0.0, self.deadline - time.monotonic())


class Watch:
    """See the module's text."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._live: set[Attempt] = set()
        self._wakes_at = 0.0
        self._runs = False

    @contextmanager
    def over(self, deadline: float) -> Iterator[Attempt]:
        """An attempt that is cut off at ``deadline`` (s of time.monotonic) unless the block is left before.

        Raises Unavailable when the machine has no thread to watch over it.
        """
        attempt = Attempt(deadline)
        with self._changed:
            if not self._runs:
                try:
                    threading.Thread(target=self._run, name="damfs-deadlines", daemon=True).start()
                except RuntimeError as error:
                    raise Unavailable(f"nobody watches over a request's deadline: {error}") from error
                self._runs = True
            self._live.add(attempt)
            if deadline < self._wakes_at:
                self._changed.notify()
        try:
            yield attempt
        finally:
            attempt.ends()
            with self._changed:
                self._live.discard(attempt)

    def _run(self) -> None:
        idle_until = time.monotonic() + IDLE_S
        with self._changed:
            while True:
                now = time.monotonic()
                due = [attempt for attempt in self._live if attempt.deadline <= now]
                for attempt in due:
                    self._live.discard(attempt)
                    attempt.expire()
                if self._live:
                    idle_until = now + IDLE_S
                elif now >= idle_until:
                    self._runs = False
                    return
                self._wakes_at = min((attempt.deadline for attempt in self._live), default=idle_until)
                self._changed.wait(max(0.0, self._wakes_at - now))
