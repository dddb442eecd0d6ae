"""What the file system asks of whoever keeps the replicas, and how a call says that its answer must be waited for.

The methods of ``Filesystem`` that answer metadata are plain functions: a binding calls them inline, without a
task. Where no answer can be given yet they raise ``Wait``; the binding then calls ``await filesystem.wait_for(wait)``
in a task and asks again. There are two such moments: the first use of a show, and ``<show>@N`` above the head.
"""

from __future__ import annotations

from typing import Protocol

from manifest.names import Revision


class Wait(Exception):
    """Not an error: the show must be loaded first, or (``revision``) brought up to a revision."""

    def __init__(self, show: str, revision: Revision | None = None) -> None:
        super().__init__(show, revision)
        self.show = show
        self.revision = revision


class ShowLoader(Protocol):
    """Keeps the replicas of the shows; implemented in ``daemon/sync.py``."""

    async def load(self, show: str) -> bool:
        """Bring the show's replica up for the first time and attach it to the ``Filesystem``; False: no such show.

        Waits at most its own deadline; raises Unavailable behind it. Cancellation leaves the load going.
        """
        ...

    async def reach(self, show: str, revision: Revision, timeout_s: float) -> None:
        """Sync an attached show until it has this revision, or ``timeout_s`` are over; raises nothing for either."""
        ...

    def known_shows(self) -> list[str]:
        """The shows of the library, as far as is known here; each of them has a slot. Never waits."""
        ...
