"""What people type to name a place: ``SHOW[@REV][:PATH]``, or a path in a mount.

Rule: text is a path when its part before the first colon holds a ``/`` or is ``.``, ``..`` or ``~``; a show's name
never does. A path is looked up in the kernel's table of mounts without touching the mount, which may be stuck; what
library that is, the daemon behind it tells. Symbolic links inside a show are followed (manifest/links.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from daemon import mounts
from manifest.errors import FormatError, NotFound, UsageError
from manifest.names import Address, check_path, check_show, parse_address, parse_at


@dataclass(frozen=True, slots=True)
class Place:
    """An address, and the mountpoint that it was written as a path of, if it was."""

    address: Address
    mountpoint: Path | None = None


def is_local_path(text: str) -> bool:
    """Whether people mean a path of this machine by ``text``, rather than SHOW[@REV][:PATH]."""
    head = text.partition(":")[0]
    return "/" in head or text in (".", "..", "~")


def locate(text: str) -> Place:
    """Read an address, or a path in a mount of this machine. Raises UsageError, NotFound for a path in none."""
    if not is_local_path(text):
        return Place(parse_address(text))
    path = mounts.canonical(Path(text).expanduser())
    mount = mounts.containing(path)
    if mount is None:
        raise NotFound(f"{text} is in no damfs mount of this machine; name a place as SHOW[@REV][:PATH]")
    mountpoint = mount.mountpoint
    parts = path.relative_to(mountpoint).parts
    if not parts:
        raise UsageError(f"{text} is the mount itself: name a show in it")
    show, has_at, at = parts[0].partition("@")
    inside = "/".join(parts[1:])
    try:
        address = Address(check_show(show), parse_at(at) if has_at else None, check_path(inside) if inside else "")
    except FormatError as error:
        raise UsageError(str(error)) from error
    return Place(address, mountpoint)
