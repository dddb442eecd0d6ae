"""Writing through: what a publish puts into the library goes to the site's appliance as well, if it can.

State: how often in a row it failed. Thread-safe. Rules: the central store has the object before; that the appliance
cannot be written is no error of the publish. After FAILURES_MAX failures in a row it is left alone for the rest of this
publish, and one warning says so: a dead appliance must not hold it up.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from manifest.errors import DamfsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from manifest.library import Library

TIMEOUT_S = 10.0
FAILURES_MAX = 3


@dataclass(slots=True)
class MirrorCounts:
    """What became of it: objects that were sent, that were there, that are not there now."""

    sent: int = 0
    present: int = 0
    missing: int = 0


class Mirror:
    """The site's appliance, as far as it keeps up."""

    def __init__(self, appliance: Library, warn: Callable[[str], None]) -> None:
        self.counts = MirrorCounts()
        self._appliance = appliance
        self._warn = warn
        self._failures = 0
        self._lock = threading.Lock()

    def put(self, key: str, data: bytes | memoryview, *, failed: Callable[[], None]) -> None:
        """Put an object that the library has, unless it is there with this size. Raises nothing.

        ``failed`` is called when the transport may go on reading ``data``.
        """
        with self._lock:
            if self._failures >= FAILURES_MAX:
                self.counts.missing += 1
                return
        try:
            is_there = self._appliance.size(key, timeout_s=TIMEOUT_S) == len(data)
            if not is_there:
                self._appliance.put(key, data, timeout_s=TIMEOUT_S)
        except DamfsError as error:
            failed()
            self._failed(error)
            return
        with self._lock:
            self._failures = 0
            self.counts.present += is_there
            self.counts.sent += not is_there

    def _failed(self, error: DamfsError) -> None:
        with self._lock:
            self.counts.missing += 1
            self._failures += 1
            gives_up = self._failures == FAILURES_MAX
        if gives_up:
            self._warn(f"the site's appliance is not written any more during this publish: {error}")
