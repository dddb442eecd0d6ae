"""The mount as its supervisor sees it: whether it is there, and how a dead one is taken away.

Only the kernel's table of mounts is read, and the connection's controls: the mount itself is never asked anything.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from daemon import mounts
from manifest.errors import DamfsError
from vfs.limits import Connection

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger("supervisor")


class Place:
    """A mountpoint. ``connection`` is that of our mount while one is known, ``foreign`` the number of another's."""

    def __init__(self, mountpoint: Path, *, is_ours: bool) -> None:
        """``is_ours``: what is mounted there now, if anything, was left to us."""
        self.mountpoint = mountpoint
        self._foreign = None if is_ours else self._found()
        self._device: str | None = None
        self._connection: Connection | None = None

    def ready(self) -> None:
        """Our daemon has mounted, or taken over what is mounted."""
        self._forget()
        self._device = self._found()
        self._connection = Connection(self.mountpoint)

    def is_gone(self) -> bool:
        """Whether somebody else has unmounted what our daemon had mounted."""
        return self._device is not None and all(
            (mount.mountpoint, mount.device) != (self.mountpoint, self._device) for mount in mounts.ours()
        )

    def clear(self) -> None:
        """Detach what a daemon of ours left, and end what still waits in it; nobody else's mount."""
        found = self._found()
        if self._connection is None and found != self._foreign:
            self._connection = Connection(self.mountpoint)
        if found is not None and self._connection is not None and self._connection.is_at(self.mountpoint):
            self._connection.abort()
            try:
                mounts.unmount(self.mountpoint, lazy=True)
            except DamfsError as error:
                log.error("%s", error)
            else:
                log.info("detached the mount at %s that its daemon left", self.mountpoint)
        self._forget()

    def _forget(self) -> None:
        self._device = None
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _found(self) -> str | None:
        found = mounts.at(self.mountpoint)
        return found.device if found is not None and found.is_ours else None
