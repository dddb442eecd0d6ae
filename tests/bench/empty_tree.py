"""An empty-handed pyfuse3 tree: the fastest that a scan through pyfuse3 can be, to measure ours against.

    python -m tests.bench.empty_tree MOUNTPOINT [FOLDERS] [FILES]

Serves FOLDERS x FILES (by default 1,000 x 1,000) until it is unmounted. Names and attributes come from arithmetic:
no database, no views, no handles, no errors, and one EntryAttributes for all. Prints ``ready`` once it is mounted.
"""
# ruff: noqa: ARG002  (the signatures are pyfuse3's)

from __future__ import annotations

import errno
import stat
import sys

import pyfuse3
import trio

NEVER = float(2**40)
FOLDERS_FROM = 2
STEP = 1 << 32


class EmptyTree(pyfuse3.Operations):
    """Inode 1 is the root, folder f is 2 + f, file n of folder f is (2 + f) + (n + 1) * STEP."""

    def __init__(self, folders: int, files: int) -> None:
        super().__init__()
        self.folders = folders
        self.files = files
        self.entry = pyfuse3.EntryAttributes()
        self.entry.entry_timeout = self.entry.attr_timeout = NEVER

    def init(self) -> None:
        print("ready", flush=True)

    def _fill(self, ino: int) -> pyfuse3.EntryAttributes:
        entry = self.entry
        entry.st_ino = pyfuse3.InodeT(ino)
        entry.st_mode = pyfuse3.ModeT((stat.S_IFREG | 0o644) if ino >= STEP else (stat.S_IFDIR | 0o755))
        entry.st_size = ino % 65536 if ino >= STEP else 0
        entry.st_blocks = entry.st_size // 512
        entry.st_mtime_ns = entry.st_ctime_ns = entry.st_atime_ns = 1_700_000_000_000_000_000 + ino
        return entry

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        try:
            number = int(name[1:] if parent_inode == 1 else name[6:12])  # f000123, plate.000123.exr
        except ValueError:
            raise pyfuse3.FUSEError(errno.ENOENT) from None
        if number >= (self.folders if parent_inode == 1 else self.files):
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._fill(number + FOLDERS_FROM if parent_inode == 1 else parent_inode + (number + 1) * STEP)

    async def getattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._fill(inode)

    async def opendir(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileHandleT:
        return pyfuse3.FileHandleT(inode)

    async def readdir(self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        if fh == 1:
            for number in range(start_id, self.folders):
                entry = self._fill(number + FOLDERS_FROM)
                if not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(b"f%06d" % number), entry, number + 1):
                    return
        else:
            for number in range(start_id, self.files):
                entry = self._fill(fh + (number + 1) * STEP)
                if not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(b"plate.%06d.exr" % number), entry, number + 1):
                    return

    async def releasedir(self, fh: pyfuse3.FileHandleT) -> None:
        return

    async def getxattr(self, inode: pyfuse3.InodeT, name: pyfuse3.XAttrNameT, ctx: pyfuse3.RequestContext) -> bytes:
        raise pyfuse3.FUSEError(errno.ENODATA)


def main() -> None:
    mountpoint, *shape = sys.argv[1:]
    folders, files = (int(number) for number in shape or ("1000", "1000"))
    options = {"ro", "nosuid", "nodev", "default_permissions", "fsname=empty"}
    pyfuse3.init(EmptyTree(folders, files), mountpoint, options)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close()


if __name__ == "__main__":
    main()
