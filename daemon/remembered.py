"""What is remembered of a library, so that a mount can start while the library is not reachable.

State: ``<replicas>/<digest of the URL>.identity`` (which library lies at this URL) and
``<replicas>/<library id>/shows.json`` (its shows), beside the replicas themselves. Both are only hints: a library that
is reachable is always asked.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from cache import durable
from manifest import canonical
from manifest.digest import Digest
from manifest.errors import ConfigurationError, DamfsError, FormatError
from manifest.identity import Identity
from manifest.names import check_show

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

FILE_BYTES_MAX = 1024 * 1024
_SHOWS_TYPE = "damfs.shows/1"
_IDENTITY_TYPE = "damfs.known-library/1"


class Remembered:
    """The memory of one library URL, in the daemon's replica folder. Blocking; small files."""

    def __init__(self, folder: Path, url: str) -> None:
        """Makes ``folder`` (0700) when it is missing. Raises ConfigurationError."""
        self.folder = folder
        self._url = url
        self._identity = folder / f"{Digest.of(url.encode()).hex()[:32]}.identity"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"cannot make the folder {folder}: {error.strerror}") from error

    def identity(self) -> Identity | None:
        """Which library was at this URL the last time; None when it was never reached, or the file is damaged."""
        value = _read(self._identity, _IDENTITY_TYPE)
        found = value.get("id") if value and value.get("url") == self._url else None
        return Identity(found) if isinstance(found, str) else None

    def library_folder(self, identity: Identity) -> Path:
        """Where the replicas of this library lie."""
        return self.folder / identity.id

    def has_replicas(self, identity: Identity) -> bool:
        """Whether any show of this library was loaded here before."""
        return any(self.library_folder(identity).glob("*.db"))

    def remember_identity(self, identity: Identity) -> None:
        """Keep which library lies at this URL. Raises ConfigurationError when it cannot be written."""
        if self.identity() != identity:
            _write(self._identity, {"_type": _IDENTITY_TYPE, "id": identity.id, "url": self._url})

    def shows(self, identity: Identity) -> list[str]:
        """The shows of this library as they were known last, sorted; empty when none were."""
        value = _read(self.library_folder(identity) / "shows.json", _SHOWS_TYPE)
        shows = value.get("shows") if value else None
        if not isinstance(shows, list):
            return []
        with suppress(FormatError):
            return sorted({check_show(show) for show in shows})
        return []

    def remember_shows(self, identity: Identity, shows: Iterable[str]) -> None:
        """Keep the list of shows. Raises ConfigurationError when it cannot be written."""
        folder = self.library_folder(identity)
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"cannot make the folder {folder}: {error.strerror}") from error
        _write(folder / "shows.json", {"_type": _SHOWS_TYPE, "shows": sorted(shows)})


def _read(path: Path, kind: str) -> dict[str, object] | None:
    try:
        value = canonical.decode(path.read_bytes().removesuffix(b"\n"), bytes_max=FILE_BYTES_MAX)
    except (OSError, DamfsError):
        return None
    return value if isinstance(value, dict) and value.get("_type") == kind else None


def _write(path: Path, value: dict[str, object]) -> None:
    try:
        durable.write(path, canonical.encode(value) + b"\n")
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from error
