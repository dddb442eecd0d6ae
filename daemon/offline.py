"""Offline by wish: on a train or a plane a mount is told to use no network, until it is told otherwise.

State: the wish, in ``offline.json`` beside the replicas (docs/FORMAT.md), so that it outlives this daemon, whether that
is restarted, replaced or killed.

Rules:
- While it is on nothing is asked of anybody: the library refuses (``Library.shut_because``), the cache asks no
  source (cache/sources/gate.py), contact and sync pause. What is under way ends.
- Who wants what is not here is told so at once, whatever the profile of reads says.
- Switched off, everything is asked again now: nobody waits for the end of a pause.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from cache import durable
from manifest import canonical
from manifest.errors import ConfigurationError, FormatError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from daemon.sync import Sync
    from manifest.library import Library

log = logging.getLogger(__name__)

OFFLINE_FILE = "offline.json"
FILE_BYTES_MAX = 4096
_TYPE = "damfs.offline/1"


@dataclass(frozen=True, slots=True)
class Wish:
    """That no network is used: since when, in ns since 1970, and which user said so."""

    since_ns: int
    uid: int

    def __str__(self) -> str:
        return f"uid {self.uid} has switched this mount offline: `damfs offline off` ends that"


def load(file: Path) -> Wish | None:
    """The wish; None when there is none. One that cannot be read is none: it is said once more. Blocking."""
    try:
        found = canonical.decode(file.read_bytes().removesuffix(b"\n"), bytes_max=FILE_BYTES_MAX)
    except FileNotFoundError:
        return None
    except (OSError, FormatError) as error:
        log.error("%s cannot be read (%s): the mount is not offline; switch it offline again", file, error)
        return None
    if isinstance(found, dict) and found.get("_type") == _TYPE:
        since_ns, uid = found.get("since_ns"), found.get("uid")
        if isinstance(since_ns, int) and isinstance(uid, int):
            return Wish(since_ns, uid)
    log.error("%s is no %s: the mount is not offline; switch it offline again", file, _TYPE)
    return None


class OfflineSwitch:
    """See the module's rules. Belongs to the event loop."""

    def __init__(
        self, file: Path, wish: Wish | None, library: Library, forbid: Callable[[str | None], None], sync: Sync
    ) -> None:
        """``wish`` as it was loaded; ``forbid`` is the cache's. All of ``resumed`` are called when it is given up."""
        self.wish = wish
        self._file = file
        self._library = library
        self._forbid = forbid
        self._sync = sync
        self.resumed: list[Callable[[], None]] = []
        self._changing = trio.Lock()
        if wish is not None:
            self._shut(wish)

    def told(self) -> dict[str, int | float] | None:
        """For ``GET /v1/status``: see docs/STATUS.md."""
        return None if self.wish is None else {"time": self.wish.since_ns / 1e9, "uid": self.wish.uid}

    async def set(self, *, on: bool, uid: int) -> None:
        """Switch, and keep it so. Idempotent. Raises ConfigurationError when it cannot be kept: nothing has changed."""
        async with self._changing:
            if on == (self.wish is not None):
                return
            wish = Wish(time.time_ns(), uid) if on else None
            try:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(save, self._file, wish)
            except OSError as error:
                if on:  # it may be there, and not surely so: a later mount is not to find what was refused
                    with suppress(OSError), trio.CancelScope(shield=True):
                        await trio.to_thread.run_sync(save, self._file, None)
                raise ConfigurationError(f"it cannot be kept in {self._file}: {error.strerror}") from error
            self.wish = wish
            if wish is not None:
                log.info("offline: %s", wish)
                self._shut(wish)
                self._sync.wake()
            else:
                log.info("no longer offline by wish, says uid %d", uid)
                self._open()

    def _shut(self, wish: Wish) -> None:
        reason = str(wish)
        self._library.shut_because = reason
        self._sync.contact.shut(reason)
        self._forbid(reason)

    def _open(self) -> None:
        self._library.shut_because = None
        self._forbid(None)
        self._sync.contact.open()
        self._sync.wake()
        for resume in self.resumed:
            resume()


def save(file: Path, wish: Wish | None) -> None:
    """Write the wish, or that there is none. Blocking. Raises OSError."""
    if wish is not None:
        value = {"_type": _TYPE, "since_ns": wish.since_ns, "uid": wish.uid}
        durable.write(file, canonical.encode(value) + b"\n")
        return
    with suppress(FileNotFoundError):
        file.unlink()
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
