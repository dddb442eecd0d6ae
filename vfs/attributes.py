"""Attributes: what a stat of a name says, for every binding alike.

Rules: files and links never change (a new version is a new inode), so what is said of them may be kept for ever.
A folder's attributes are those of one revision. Times are the publisher's for files, and the moment of the last
publish below for folders; the three times of a stat are one.
"""

from __future__ import annotations

import stat
from typing import Final

from vfs.inodes import ROOT_INO, Ino

INFINITE_S: Final = float(2**40)
"""A timeout that never ends: the kernel keeps what it was told until an exact invalidation. Accepted by Linux."""

BLOCK_BYTES: Final = 512
FOLDER_NLINK: Final = 1
"""Link counts of folders are not kept, as on btrfs; 1 tells ``find`` not to count on them."""


class Attributes:
    """One reply to LOOKUP or GETATTR. ``ino`` 0 says: there is no such name, and that may be remembered.

    ``size`` in bytes, ``mtime_ns`` in ns since the epoch, the timeouts in seconds; ``mode`` has the type bits.
    """

    __slots__ = ("attr_timeout_s", "entry_timeout_s", "gid", "ino", "mode", "mtime_ns", "nlink", "size", "uid")

    def __init__(
        self,
        ino: Ino,
        mode: int,
        size: int,
        mtime_ns: int,
        owner: tuple[int, int],
        *,
        entry_timeout_s: float = INFINITE_S,
        attr_timeout_s: float = INFINITE_S,
    ) -> None:
        self.ino = ino
        self.mode = mode
        self.nlink = 1
        self.uid, self.gid = owner
        self.size = size
        self.mtime_ns = mtime_ns
        self.entry_timeout_s = entry_timeout_s
        self.attr_timeout_s = attr_timeout_s


NO_SUCH_NAME: Final = Attributes(Ino(0), 0, 0, 0, (0, 0))
"""The negative answer that the kernel may keep: the notice of the name's creation takes it back."""


def root_attributes(mtime_ns: int, owner: tuple[int, int]) -> Attributes:
    """The folder of the shows."""
    return Attributes(ROOT_INO, stat.S_IFDIR | 0o755, 0, mtime_ns, owner)
