"""What is opened and learned before there is a mount: the mountpoint, the library, whose it is, whom to trust.

Rules: all of it blocks, and is called in a thread. Which library it is, and its shows, come from the library or, where
it does not answer or is not to be asked (daemon/offline.py), from memory (daemon/remembered.py), so that a mount can
start without it.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cache.lock import holder_of
from daemon import client, mounts, paths
from daemon.offline import OFFLINE_FILE, Wish, load
from daemon.remembered import Remembered
from manifest.errors import Busy, ConfigurationError, TransportError
from manifest.identity import Identity, list_shows, read_identity
from manifest.library import Library
from manifest.trust import PinnedKeys
from vfs.inodes import Slots

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from daemon.config import Settings

log = logging.getLogger(__name__)

FIRST_CONTACT_S = 10.0
"""How long the library is asked who it is, when nothing of it is remembered."""
LATER_CONTACT_S = 3.0
"""The same, when the mount can start without it."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A library that is to be mounted. ``settings`` as they are used; ``offline_because`` None: it answers.

    ``wish``: somebody has said that it is not to be asked, and it was not; None: it may be.
    """

    settings: Settings
    library: Library
    remembered: Remembered
    identity: Identity
    verifier: PinnedKeys
    shows: list[str]
    offline_because: str | None
    wish: Wish | None

    def slots(self) -> Slots:
        """Which show has which slot, as kept beside the replicas. Raises ConfigurationError."""
        folder = self.remembered.library_folder(self.identity)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Slots(folder / "slots.json")


def open_library(settings: Settings, *, in_haste: bool) -> Opened:
    """Open the library of the settings and its trust file. In haste: without asking it, as far as it is remembered.

    Raises TransportError when it is not reachable and there is nothing here to go on with, NotFound when there is no
    library at the URL, ConfigurationError.
    """
    library = Library.open(settings.require_url(), endpoint=settings.library.endpoint, region=settings.library.region)
    remembered = Remembered(paths.replica_folder(settings.cache.folder), library.url)
    known = remembered.identity()
    wish = None if known is None else load(remembered.library_folder(known) / OFFLINE_FILE)
    if wish is not None:
        library.shut_because = str(wish)
    identity, shows, offline_because = _meet(library, remembered, in_haste=in_haste or wish is not None)
    trust = settings.require_trust(identity.id)
    verifier = PinnedKeys.from_file(trust)
    if verifier.library_id != identity.id:
        raise ConfigurationError(
            f"the trust file {trust} is for library {verifier.library_id}, but {library.url} is library {identity.id}: "
            "use the trust file that damfs init printed for it"
        )
    return Opened(_as_used(settings, trust), library, remembered, identity, verifier, shows, offline_because, wish)


def check_mountpoint(mountpoint: Path) -> None:
    """Refuse a mountpoint that another daemon serves; make sure that it can be used."""
    pid = client.is_alive(paths.socket_path(mountpoint, "view"))
    if pid is not None and mounts.at(mountpoint) is not None:
        raise Busy(f"{mountpoint} is already mounted, by pid {pid}: unmount it first, or choose another folder")
    mounts.prepare(mountpoint)


def explain(error: Busy, cache_folders: Sequence[Path]) -> Busy:
    """Who holds a cache folder may be a daemon that was unmounted, and goes on for what is open in its mount."""
    cache_folder = next((folder for folder in cache_folders if f" {folder} " in str(error)), cache_folders[0])
    holder = holder_of(cache_folder)
    if holder is None or mounts.at(holder[1]) is not None:
        return error
    pid, where = holder
    return Busy(
        f"cache folder {cache_folder} is held by pid {pid}: it was unmounted from {where}, and still serves what is "
        f"open there; close that, or cut it off with kill {pid}, or use another cache folder (--cache)"
    )


def _meet(library: Library, remembered: Remembered, *, in_haste: bool) -> tuple[Identity, list[str], str | None]:
    """Which library this is, its shows, and why it is not reachable (None: it is)."""
    known = remembered.identity()
    if in_haste and known is not None:
        return known, remembered.shows(known), None
    can_wait = known is not None and remembered.has_replicas(known)
    timeout_s = LATER_CONTACT_S if can_wait else FIRST_CONTACT_S
    try:
        identity = read_identity(library, timeout_s=timeout_s)
        shows = list_shows(library, timeout_s=timeout_s)
    except TransportError as error:
        if known is None or not can_wait:
            raise
        log.warning("offline: %s", error)
        return known, remembered.shows(known), str(error)
    remembered.remember_identity(identity)
    return identity, sorted({*shows, *remembered.shows(identity)}), None


def _as_used(settings: Settings, trust: Path) -> Settings:
    """The settings with what was found elsewhere: the trust file, and the endpoint as ``Library.open`` finds it."""
    endpoint = settings.library.endpoint
    if endpoint is None and settings.require_url().startswith("s3:"):
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    used = settings.library.model_copy(update={"trust": trust, "endpoint": endpoint})
    return settings.model_copy(update={"library": used})
