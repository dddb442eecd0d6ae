"""What lies on the wire between the kernel and us: numbers, structs and nothing else.

Every message is little-endian as on all machines that we run on; the sizes are compared with those that a C compiler
finds in linux/fuse.h (tests/vfs/test_wire.py). Sources: include/uapi/linux/fuse.h, protocol 7.31 to 7.45.

A request is IN_HEADER and a body; a reply OUT_HEADER (whose error is 0 or a negative errno) and a body; a notice is a
reply to request 0 whose error is the kind of the notice.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

MAJOR: Final = 7
MINOR: Final = 45
"""The newest protocol that is known here; an older kernel says its own."""
MINOR_MIN: Final = 40
"""Passthrough came with 7.40 (Linux 6.9)."""

# Requests.
LOOKUP: Final = 1
FORGET: Final = 2
GETATTR: Final = 3
SETATTR: Final = 4
READLINK: Final = 5
OPEN: Final = 14
READ: Final = 15
STATFS: Final = 17
RELEASE: Final = 18
FSYNC: Final = 20
GETXATTR: Final = 22
LISTXATTR: Final = 23
FLUSH: Final = 25
INIT: Final = 26
OPENDIR: Final = 27
READDIR: Final = 28
RELEASEDIR: Final = 29
FSYNCDIR: Final = 30
ACCESS: Final = 34
INTERRUPT: Final = 36
DESTROY: Final = 38
BATCH_FORGET: Final = 42
READDIRPLUS: Final = 44
LSEEK: Final = 46
SYNCFS: Final = 50
STATX: Final = 52

WRITES: Final = frozenset({4, 6, 8, 9, 10, 11, 12, 13, 16, 21, 24, 35, 43, 45, 47, 51, 53})
"""SETATTR SYMLINK MKNOD MKDIR UNLINK RMDIR RENAME LINK WRITE SETXATTR REMOVEXATTR CREATE FALLOCATE RENAME2
COPY_FILE_RANGE TMPFILE COPY_FILE_RANGE_64: what changes something, and is refused."""

# Flags of INIT: bits 0-31 lie in ``flags``, those above in ``flags2``.
ASYNC_READ: Final = 1 << 0
DO_READDIRPLUS: Final = 1 << 13
ASYNC_DIO: Final = 1 << 15
PARALLEL_DIROPS: Final = 1 << 18
MAX_PAGES: Final = 1 << 22
CACHE_SYMLINKS: Final = 1 << 23
NO_OPENDIR_SUPPORT: Final = 1 << 24
EXPLICIT_INVAL_DATA: Final = 1 << 25
INIT_EXT: Final = 1 << 30
PASSTHROUGH: Final = 1 << 37
HAS_RESEND: Final = 1 << 39

WANTED: Final = (
    ASYNC_READ | DO_READDIRPLUS | ASYNC_DIO | PARALLEL_DIROPS | MAX_PAGES | CACHE_SYMLINKS | NO_OPENDIR_SUPPORT
    | EXPLICIT_INVAL_DATA | INIT_EXT | PASSTHROUGH | HAS_RESEND
)  # fmt: skip
REQUIRED: Final = INIT_EXT | PASSTHROUGH | HAS_RESEND
"""Without these there is no reason for this binding."""

# Flags of a reply to OPEN and OPENDIR.
FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_CACHE_DIR: Final = 1 << 3
FOPEN_NOFLUSH: Final = 1 << 5
FOPEN_PASSTHROUGH: Final = 1 << 7

# Notices.
INVAL_INODE: Final = 2
INVAL_ENTRY: Final = 3
RESEND: Final = 7
INC_EPOCH: Final = 8

UNIQUE_RESENT: Final = 1 << 63
"""Set in the number of a request that an earlier daemon was given already; it is echoed."""

IN_HEADER: Final = Struct("<IIQQIIIHH")
"""len, opcode, unique, nodeid, uid, gid, pid, length of extensions / 8, padding."""
OUT_HEADER: Final = Struct("<IiQ")
"""len, -errno, unique."""
INIT_IN: Final = Struct("<IIIII11I")
"""major, minor, max_readahead, flags, flags2, unused."""
INIT_OUT: Final = Struct("<IIIIHHIIHHIIH11H")
"""major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran, max_pages,
map_alignment, flags2, max_stack_depth, request_timeout, unused."""
ATTR: Final = Struct("<6Q10I")
"""ino, size, blocks, atime, mtime, ctime, their nanoseconds, mode, nlink, uid, gid, rdev, blksize, flags."""
ENTRY_OUT: Final = Struct("<4QII6Q10I")
"""nodeid, generation, entry_valid, attr_valid, their nanoseconds, ATTR."""
ATTR_OUT: Final = Struct("<QII6Q10I")
"""attr_valid, its nanoseconds, padding, ATTR."""
OPEN_IN: Final = Struct("<II")
"""flags, open_flags."""
OPEN_OUT: Final = Struct("<QIi")
"""fh, FOPEN flags, backing_id."""
READ_IN: Final = Struct("<QQIIQII")
"""fh, offset, size, read_flags, lock_owner, flags, padding."""
RELEASE_IN: Final = Struct("<QIIQ")
"""fh, flags, release_flags, lock_owner."""
GETXATTR_IN: Final = Struct("<II")
"""size, padding; the name follows."""
GETXATTR_OUT: Final = Struct("<II")
"""size, padding: the answer to a size of 0."""
STATFS_OUT: Final = Struct("<5Q4I6I")
"""blocks, bfree, bavail, files, ffree, bsize, namelen, frsize, padding, spare."""
INTERRUPT_IN: Final = Struct("<Q")
"""unique of the request that nobody waits for any more."""
LSEEK_IN: Final = Struct("<QQII")
"""fh, offset, whence, padding."""
LSEEK_OUT: Final = Struct("<Q")
"""offset."""
DIRENT: Final = Struct("<QQII")
"""ino, offset behind it, length of the name, type; the name follows, padded to 8 bytes."""
DIRENTPLUS: Final = Struct("<4QII6Q10IQQII")
"""ENTRY_OUT, DIRENT."""
INVAL_INODE_OUT: Final = Struct("<Qqq")
"""ino, offset (negative: attributes only), length."""
INVAL_ENTRY_OUT: Final = Struct("<QII")
"""parent, length of the name, flags; the name and a NUL follow."""
BACKING_MAP: Final = Struct("<iIQ")
"""fd, flags, padding."""
BACKING_ID: Final = Struct("<I")

BACKING_OPEN: Final = 0x4010E501
BACKING_CLOSE: Final = 0x4004E502
"""ioctls of /dev/fuse: _IOW(229, 1, BACKING_MAP) and _IOW(229, 2, BACKING_ID)."""

REPLY_ENTRY: Final = Struct("<IiQ4QII6Q10I")
"""OUT_HEADER and ENTRY_OUT at once: the reply that is sent most."""
REPLY_ATTR: Final = Struct("<IiQQII6Q10I")
"""OUT_HEADER and ATTR_OUT."""
REPLY_OPEN: Final = Struct("<IiQQIi")
"""OUT_HEADER and OPEN_OUT."""

HEADER_BYTES: Final = IN_HEADER.size
REQUEST_BYTES_MAX: Final = 64 * 1024
"""The kernel refuses to fill a buffer below max(8192, 80 + max_write)."""
MAX_WRITE_BYTES: Final = 4096
"""Nothing is ever written here; the size of reads has its limit in MAX_PAGES_COUNT."""
MAX_PAGES_COUNT: Final = 256
PAGE_BYTES: Final = 4096
READ_BYTES_MAX: Final = MAX_PAGES_COUNT * PAGE_BYTES
MAX_STACK_DEPTH: Final = 1
"""1: passthrough below, and an overlayfs above the mount."""


def error(unique: int, number: int) -> bytes:
    """A reply that says an errno, or success without a body (0)."""
    return OUT_HEADER.pack(OUT_HEADER.size, -number, unique)


def reply(unique: int, body: bytes) -> bytes:
    """A successful reply with a body."""
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, unique) + body


def notice(kind: int, body: bytes = b"") -> bytes:
    """A message that no request asked for."""
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), kind, 0) + body


def inval_inode(ino: int) -> bytes:
    """Forget the attributes of an inode, and a folder's listing. A negative offset leaves the pages of files alone."""
    return notice(INVAL_INODE, INVAL_INODE_OUT.pack(ino, 0, 0))


def inval_entry(parent: int, name: bytes) -> bytes:
    """Forget a name."""
    return notice(INVAL_ENTRY, INVAL_ENTRY_OUT.pack(parent, len(name), 0) + name + b"\0")
