"""Whose the bytes of a cache folder are: one library's, from the first use on.

A tenant is a show's name and no more, and two libraries may each have a show of that name: in one folder they would
share bytes. State: ``<cache>/owner``, two lines, written before there is anything to own. The caller holds the lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cache import durable
from manifest.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

FILE_BYTES_MAX = 65536


class Owner(NamedTuple):
    """``id`` is compared, ``name`` is for people; both are opaque here, without a line break."""

    id: str
    name: str


def owner_of(folder: Path) -> Owner | None:
    """Whose the folder is; None when it does not say. Raises OSError."""
    try:
        with (folder / "owner").open("rb") as file:
            lines = file.read(FILE_BYTES_MAX).decode(errors="surrogateescape").split("\n")
    except FileNotFoundError:
        return None
    return Owner(lines[0], lines[1]) if len(lines) == 3 and lines[0] and not lines[2] else None


def require(folder: Path, owner: Owner) -> bool:
    """Whether the folder says that it is ``owner``'s; False when it says nothing: then ``bind`` it.

    Raises ConfigurationError when it is somebody else's; nothing has changed then. Raises OSError.
    """
    known = owner_of(folder)
    if known is not None and known.id != owner.id:
        raise ConfigurationError(
            f"the cache folder {folder} belongs to library {known.id} ({known.name}), and {owner.name} is library "
            f"{owner.id}: give it a folder of its own with --cache, or remove {folder}"
        )
    return known is not None


def bind(folder: Path, owner: Owner) -> None:
    """Make the folder ``owner``'s, durably. Raises OSError."""
    durable.write(folder / "owner", f"{owner.id}\n{owner.name}\n".encode(errors="surrogateescape"))
