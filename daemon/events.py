"""The supervisor's one loop: descriptors, signals and deadlines, on one thread, with nothing but the standard library.

Invariant: no callback waits for long, so that a signal is heard within moments; each thing that is waited for has a
deadline (``after``).
"""

from __future__ import annotations

import selectors
import signal
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Events:
    """``first`` runs at the beginning of each turn, before what the turn found."""

    def __init__(self, first: Callable[[], None]) -> None:
        self._first = first
        self._selector = selectors.DefaultSelector()
        self._deadlines: dict[str, tuple[float, Callable[[], None]]] = {}

    def on_readable(self, source: Any, action: Callable[[], None]) -> None:
        """Call ``action`` whenever ``source`` (a descriptor, or an object with one) is readable."""
        self._selector.register(source, selectors.EVENT_READ, action)

    def ignore(self, source: Any) -> None:
        """No more of ``source``; nothing when it was not watched, or is None."""
        with suppress(KeyError, ValueError):
            self._selector.unregister(source)

    def on_signals(self, numbers: Iterable[int], action: Callable[[int], None]) -> None:
        """Call ``action`` with each of these signals that arrives, in the loop. Once per process."""
        reading, writing = socket.socketpair()
        for end in (reading, writing):
            end.setblocking(False)
        self._signals = (reading, writing)
        signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, lambda *_: None)

        def arrived() -> None:
            with suppress(BlockingIOError):
                for number in reading.recv(4096):
                    action(number)

        self.on_readable(reading, arrived)

    def after(self, name: str, delay_s: float, action: Callable[[], None]) -> None:
        """Call ``action`` once, ``delay_s`` from now; a deadline of the same name is replaced."""
        self._deadlines[name] = (time.monotonic() + delay_s, action)

    def cancel(self, name: str) -> None:
        """No such deadline any more."""
        self._deadlines.pop(name, None)

    def turn(self) -> None:
        """Wait for something to happen, and deal with it."""
        wait_s = None
        if self._deadlines:
            wait_s = max(0.0, min(moment for moment, _ in self._deadlines.values()) - time.monotonic())
        found = self._selector.select(wait_s)
        self._first()
        for key, _ in found:
            if key.fileobj in self._selector.get_map():  # an earlier one may have ended the watch
                key.data()
        now = time.monotonic()
        for name, (moment, action) in list(self._deadlines.items()):
            if moment <= now and self._deadlines.get(name) == (moment, action):
                del self._deadlines[name]
                action()
