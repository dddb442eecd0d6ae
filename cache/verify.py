"""Checking on demand: everything that is cached, or some contents of a show, on all shelves at once.

State: the reports of what was asked for last. One such check at a time. See ``scrub.py`` for what a check is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cache.scrub import BAD_MAX, Report
from manifest.errors import Busy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cache.content import Key
    from cache.shelf import Shelf


class Verifier:
    """``shelves`` tells those that are in service. Belongs to the event loop."""

    def __init__(self, shelves: Callable[[], Sequence[Shelf]]) -> None:
        self._shelves = shelves
        self._reports: list[Report] = []

    def begin(self, rate: int = 0, keys: Sequence[Key] | None = None) -> None:
        """Check everything now, or these contents, at most ``rate`` bytes a second and disk (0: no limit).

        Raises Busy when such a check is under way.
        """
        shelves = self._shelves()
        if self.report().running or any(shelf.scrubber.report.running for shelf in shelves):
            raise Busy("the cache is being checked already: `damfs cache scrub --wait` waits for that")
        self._reports = [shelf.scrubber.begin(rate, keys) for shelf in shelves]

    def report(self) -> Report:
        """What was found so far, on all shelves."""
        reports = self._reports
        return Report(
            running=any(one.running for one in reports),
            objects_total=sum(one.objects_total for one in reports),
            objects=sum(one.objects for one in reports),
            size_bytes=sum(one.size_bytes for one in reports),
            unknown=sum(one.unknown for one in reports),
            bad_objects=sum(one.bad_objects for one in reports),
            bad=[bad for one in reports for bad in one.bad][:BAD_MAX],
        )
