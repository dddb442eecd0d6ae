"""A proxy that counts: which requests a store was asked, and how many bytes it answered with."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tests.proxy import Proxy

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

    from manifest.library import Library
    from tests.proxy import Fault, Request


class CountingProxy(Proxy):
    """A Proxy. ``requests`` are (method, path, query) in their order, ``answered_bytes`` those of the bodies."""

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

    def decide(self, request: Request) -> tuple[Fault, random.Random]:
        path, _, query = request.path.partition("?")
        with self._counting:
            self.requests.append((request.method, path, query))
        return super().decide(request)

    def sent(self, request: Request, count: int) -> None:
        with self._counting:
            self.answered_bytes += count
        super().sent(request, count)


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
