"""The kernel's table of mounts, as this process sees it. Source: proc(5), /proc/pid/mountinfo.

It is the only thing that is asked what is mounted where: asking a mount itself, be it with a stat, waits for its
daemon.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FILESYSTEM_TYPE = "fuse.damfs"
_MOUNTINFO = Path("/proc/self/mountinfo")
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo. ``device`` is major:minor; ``options`` those of the file system (super options)."""

    mountpoint: Path
    filesystem: str
    source: str
    device: str
    options: str

    @property
    def is_ours(self) -> bool:
        return self.filesystem == FILESYSTEM_TYPE

    @property
    def uid(self) -> int | None:
        """Who mounted it, from the super options of a FUSE mount."""
        found = re.search(r"(?:^|,)user_id=([0-9]+)", self.options)
        return int(found[1]) if found else None


def table() -> list[Mount]:
    """All mounts that this process sees, in the order of mounting."""
    mounts = []
    for line in _MOUNTINFO.read_text("utf-8", errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(" "), right.split(" ")
        if len(fields) < 6 or len(kind) < 3:
            continue
        mounts.append(Mount(Path(_unescape(fields[4])), kind[0], _unescape(kind[1]), fields[2], kind[2]))
    return mounts


def at(mountpoint: Path) -> Mount | None:
    """The topmost mount exactly at ``mountpoint`` (canonical), if there is one."""
    return next((mount for mount in reversed(table()) if mount.mountpoint == mountpoint), None)


def device_at(mountpoint: Path) -> str | None:
    """The device (major:minor) of the topmost mount there. It tells one mount from the next at the same place."""
    found = at(mountpoint)
    return None if found is None else found.device


def _unescape(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)
