"""The locks on the cache folders, as the supervisor keeps them for a successor.

State: none. A folder that is out of service is not kept: nobody could have its disk mended, or mount it elsewhere,
while a copy of its lock is open anywhere.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import trio

from daemon.config import FOLDERS_MAX
from manifest.errors import DamfsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cache.store import CacheStore
    from daemon.systemd import Notify

log = logging.getLogger(__name__)

PREFIX = "cache-lock"


def of(descriptors: Mapping[str, int]) -> list[int]:
    """The locks among the descriptors that were kept."""
    return [descriptor for name, descriptor in descriptors.items() if name.startswith(PREFIX)]


def name(number: int) -> str:
    """Under which name the lock on the folder with this number is kept."""
    return f"{PREFIX}-{number}" if number else PREFIX


async def keep(cache: CacheStore, notify: Notify) -> None:
    """Have the locks kept as they are now. Raises Unavailable."""
    # Copied at once: a lock that is closed meanwhile would leave its number to another file.
    copies = [None if fd is None else os.dup(fd) for fd in cache.lock_fds]
    try:
        await trio.to_thread.run_sync(_keep, copies, notify)
    finally:
        for copy in copies:
            if copy is not None:
                os.close(copy)


async def follow(cache: CacheStore, notify: Notify) -> None:
    """Have them kept whenever a folder has gone out of service or come back. Ends when cancelled."""
    while True:
        await cache.changed.wait()
        try:
            await keep(cache, notify)
        except DamfsError as error:
            log.warning("the locks on the cache folders are not kept as they should be: %s", error)


def forget(notify: Notify, timeout_s: float) -> None:
    """Nobody is to succeed: the next mount may have the folders as soon as this process is gone. Blocking."""
    try:
        for number in range(FOLDERS_MAX):
            notify.forget(name(number))
        notify.barrier(timeout_s)
    except DamfsError as error:
        log.warning("%s", error)


def _keep(descriptors: list[int | None], notify: Notify) -> None:
    for number, descriptor in enumerate(descriptors):
        if descriptor is None:
            notify.forget(name(number))
        else:
            notify.store(name(number), descriptor)
