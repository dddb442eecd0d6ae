"""The descriptors that a supervisor keeps for the next daemon, by name.

Invariant: a name has one descriptor, a duplicate of our own, closed on exec. What is kept here is kept by the service
manager above us too, if there is one that keeps descriptors: so a mount outlives even its supervisor.
"""

from __future__ import annotations

import logging
import os
import re
from typing import TYPE_CHECKING

from manifest.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from daemon.systemd import Notify

log = logging.getLogger("supervisor")

STORED_MAX = 16
_NAME = re.compile(r"[a-z0-9-]{1,64}")


class Store:
    """See the module. ``handed`` is what the supervisor itself was started with."""

    def __init__(self, upstream: Notify, handed: Mapping[str, int]) -> None:
        self._upstream = upstream
        self._kept = dict(handed)

    def __contains__(self, name: str) -> bool:
        return name in self._kept

    def __bool__(self) -> bool:
        return bool(self._kept)

    def items(self) -> list[tuple[str, int]]:
        """Names and descriptors, in the order of storing."""
        return list(self._kept.items())

    def keep(self, name: str, descriptor: int) -> None:
        """Take a descriptor over; it replaces one of that name, and is closed at once when it cannot be kept."""
        if not _NAME.fullmatch(name):
            fault = "expected a name of a-z, 0-9 and -"
        elif name not in self._kept and len(self._kept) >= STORED_MAX:
            fault = f"{STORED_MAX} are kept already, which is the most"
        else:
            self.forget(name)
            self._kept[name] = descriptor
            self._tell_upstream(name, descriptor)
            return
        os.close(descriptor)
        log.error("the descriptor %.64r is not kept: %s", name, fault)

    def forget(self, name: str) -> None:
        """Close a descriptor, here and upstream; nothing when it is not kept."""
        descriptor = self._kept.pop(name, None)
        if descriptor is not None:
            self._tell_upstream(name, None)
            os.close(descriptor)

    def close(self) -> None:
        """Forget all: there will be no next daemon."""
        for name in list(self._kept):
            self.forget(name)

    def _tell_upstream(self, name: str, descriptor: int | None) -> None:
        try:
            if descriptor is None:
                self._upstream.forget(name)
            else:
                self._upstream.store(name, descriptor)
        except Unavailable as error:
            log.warning("%s", error)
