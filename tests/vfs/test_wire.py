"""What vfs/kernel/wire.py says of the protocol, against what a C compiler says.

Most of it stands in the system's linux/fuse.h. What is newer than that header is declared here as the protocol defines
it (7.39 to 7.45), and is taken from the header as soon as that has it.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from vfs.kernel import wire

PROGRAM = r"""
#include <stddef.h>
#include <stdio.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <linux/fuse.h>

/* What a kernel of today sends and takes, where the header is older than protocol 7.40. */
#if FUSE_KERNEL_MINOR_VERSION < 40
struct open_out { uint64_t fh; uint32_t open_flags; int32_t backing_id; };
struct init_out {
	uint32_t major, minor, max_readahead, flags; uint16_t max_background, congestion_threshold;
	uint32_t max_write, time_gran; uint16_t max_pages, map_alignment; uint32_t flags2;
	uint32_t max_stack_depth; uint16_t request_timeout; uint16_t unused[11];
};
struct fuse_backing_map { int32_t fd; uint32_t flags; uint64_t padding; };
#define FOPEN_PASSTHROUGH (1 << 7)
#define FUSE_PASSTHROUGH (1ULL << 37)
#define FUSE_HAS_RESEND (1ULL << 39)
#define FUSE_DEV_IOC_BACKING_OPEN _IOW(FUSE_DEV_IOC_MAGIC, 1, struct fuse_backing_map)
#define FUSE_DEV_IOC_BACKING_CLOSE _IOW(FUSE_DEV_IOC_MAGIC, 2, uint32_t)
#define FUSE_NOTIFY_RESEND 7
#define FUSE_UNIQUE_RESEND (1ULL << 63)
#define FUSE_STATX 52
#else
#define open_out fuse_open_out
#define init_out fuse_init_out
#endif
#if FUSE_KERNEL_MINOR_VERSION < 44
#define FUSE_NOTIFY_INC_EPOCH 8
#endif
#if FUSE_KERNEL_MINOR_VERSION < 45
#define FUSE_COPY_FILE_RANGE_64 53
#endif

struct direntplus_head { struct fuse_entry_out entry; uint64_t ino, off; uint32_t namelen, type; };
struct reply_entry { struct fuse_out_header header; struct fuse_entry_out body; };
struct reply_attr { struct fuse_out_header header; struct fuse_attr_out body; };
struct reply_open { struct fuse_out_header header; struct open_out body; };

#define FIELD(type, name) \
	printf("  [\"%s\", %zu, %zu],\n", #name, offsetof(type, name), sizeof(((type *)0)->name));
#define NUMBER(name, value) printf("  \"%s\": %llu,\n", #name, (unsigned long long)(value));

int main(void)
{
	printf("{\"structs\": {\n");
@STRUCTS@
	printf("\"\": null}, \"numbers\": {\n");
@NUMBERS@
	printf("\"\": 0}}\n");
	return 0;
}
"""

ATTR = "ino size blocks atime mtime ctime atimensec mtimensec ctimensec mode nlink uid gid rdev blksize flags"
ENTRY = "nodeid generation entry_valid attr_valid entry_valid_nsec attr_valid_nsec"


def below(prefix: str, fields: str) -> str:
    return " ".join(f"{prefix}.{field}" for field in fields.split())


OUT_HEADER = "len error unique"
INIT = "major minor max_readahead flags"
INIT_NEWER = "max_stack_depth request_timeout unused"
ENTRY_ATTR = f"{ENTRY} {below('attr', ATTR)}"
ATTR_OUT = f"attr_valid attr_valid_nsec dummy {below('attr', ATTR)}"
OPEN_OUT = "fh open_flags backing_id"
DIRENT = "ino off namelen type"

STRUCTS = {
    "IN_HEADER": ("struct fuse_in_header", "len opcode unique nodeid uid gid pid total_extlen padding"),
    "OUT_HEADER": ("struct fuse_out_header", OUT_HEADER),
    "INIT_IN": ("struct fuse_init_in", f"{INIT} flags2 unused"),
    "INIT_OUT": (
        "struct init_out",
        f"{INIT} max_background congestion_threshold max_write time_gran max_pages map_alignment flags2 {INIT_NEWER}",
    ),
    "ATTR": ("struct fuse_attr", ATTR),
    "ENTRY_OUT": ("struct fuse_entry_out", ENTRY_ATTR),
    "ATTR_OUT": ("struct fuse_attr_out", ATTR_OUT),
    "OPEN_IN": ("struct fuse_open_in", "flags open_flags"),
    "OPEN_OUT": ("struct open_out", OPEN_OUT),
    "READ_IN": ("struct fuse_read_in", "fh offset size read_flags lock_owner flags padding"),
    "RELEASE_IN": ("struct fuse_release_in", "fh flags release_flags lock_owner"),
    "GETXATTR_IN": ("struct fuse_getxattr_in", "size padding"),
    "GETXATTR_OUT": ("struct fuse_getxattr_out", "size padding"),
    "STATFS_OUT": (
        "struct fuse_statfs_out",
        below("st", "blocks bfree bavail files ffree bsize namelen frsize padding spare"),
    ),
    "INTERRUPT_IN": ("struct fuse_interrupt_in", "unique"),
    "LSEEK_IN": ("struct fuse_lseek_in", "fh offset whence padding"),
    "LSEEK_OUT": ("struct fuse_lseek_out", "offset"),
    "DIRENT": ("struct fuse_dirent", DIRENT),
    "DIRENTPLUS": ("struct direntplus_head", f"{below('entry', ENTRY_ATTR)} {DIRENT}"),
    "INVAL_INODE_OUT": ("struct fuse_notify_inval_inode_out", "ino off len"),
    "INVAL_ENTRY_OUT": ("struct fuse_notify_inval_entry_out", "parent namelen flags"),
    "BACKING_MAP": ("struct fuse_backing_map", "fd flags padding"),
    "BACKING_ID": ("uint32_t", ""),
    "REPLY_ENTRY": ("struct reply_entry", f"{below('header', OUT_HEADER)} {below('body', ENTRY_ATTR)}"),
    "REPLY_ATTR": ("struct reply_attr", f"{below('header', OUT_HEADER)} {below('body', ATTR_OUT)}"),
    "REPLY_OPEN": ("struct reply_open", f"{below('header', OUT_HEADER)} {below('body', OPEN_OUT)}"),
}
"""Each Struct of wire.py: the C type, and its fields in the order of the Struct's."""

HEADER = Path("/usr/include/linux/fuse.h")
HEADER_MINOR = 38
"""The oldest header that has the fields by these names: Linux 6.2."""

OPCODES = [
    "LOOKUP", "FORGET", "GETATTR", "SETATTR", "READLINK", "OPEN", "READ", "STATFS",
    "RELEASE", "FSYNC", "GETXATTR", "LISTXATTR", "FLUSH", "INIT", "OPENDIR", "READDIR",
    "RELEASEDIR", "FSYNCDIR", "ACCESS", "INTERRUPT", "DESTROY", "BATCH_FORGET", "READDIRPLUS", "LSEEK",
    "SYNCFS", "STATX",
]  # fmt: skip
FLAGS = [
    "ASYNC_READ", "DO_READDIRPLUS", "ASYNC_DIO", "PARALLEL_DIROPS", "MAX_PAGES", "CACHE_SYMLINKS",
    "NO_OPENDIR_SUPPORT", "EXPLICIT_INVAL_DATA",
    "INIT_EXT", "PASSTHROUGH", "HAS_RESEND",
]  # fmt: skip
NUMBERS = {
    **{name: f"FUSE_{name}" for name in (*OPCODES, *FLAGS)},
    **{name: name for name in ("FOPEN_KEEP_CACHE", "FOPEN_CACHE_DIR", "FOPEN_NOFLUSH", "FOPEN_PASSTHROUGH")},
    **{name: f"FUSE_NOTIFY_{name}" for name in ("INVAL_INODE", "INVAL_ENTRY", "RESEND", "INC_EPOCH")},
    "UNIQUE_RESENT": "FUSE_UNIQUE_RESEND",
    "BACKING_OPEN": "FUSE_DEV_IOC_BACKING_OPEN",
    "BACKING_CLOSE": "FUSE_DEV_IOC_BACKING_CLOSE",
    "MAJOR": "FUSE_KERNEL_VERSION",
}
"""Each number of wire.py that the protocol defines: its name in C."""

OURS = {
    "MINOR", "MINOR_MIN", "HEADER_BYTES", "REQUEST_BYTES_MAX", "MAX_WRITE_BYTES", "MAX_PAGES_COUNT", "PAGE_BYTES",
    "READ_BYTES_MAX", "MAX_STACK_DEPTH", "WANTED", "REQUIRED",
}  # fmt: skip
"""What wire.py itself decides."""

CHANGES = [
    "SETATTR", "SYMLINK", "MKNOD", "MKDIR", "UNLINK", "RMDIR", "RENAME", "LINK",
    "WRITE", "SETXATTR", "REMOVEXATTR", "CREATE", "FALLOCATE", "RENAME2", "COPY_FILE_RANGE", "TMPFILE",
    "COPY_FILE_RANGE_64",
]  # fmt: skip
"""The requests that change something."""


def structs_of_wire() -> dict[str, struct.Struct]:
    return {name: value for name, value in vars(wire).items() if isinstance(value, struct.Struct)}


def numbers_of_wire() -> dict[str, int]:
    return {name: value for name, value in vars(wire).items() if name.isupper() and isinstance(value, int)}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a C program says that was compiled against the system's header."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    header = HEADER.read_text() if HEADER.exists() else ""
    minor = re.search(r"^#define FUSE_KERNEL_MINOR_VERSION (\d+)$", header, re.MULTILINE)
    if minor is None or int(minor[1]) < HEADER_MINOR:
        pytest.skip(f"no {HEADER} of protocol 7.{HEADER_MINOR} or newer (package linux-libc-dev)")
    lines = []
    for name, (kind, fields) in STRUCTS.items():
        lines.append(f'printf("\\"%s\\": {{\\"size\\": %zu, \\"fields\\": [\\n", "{name}", sizeof({kind}));')
        lines += [f"FIELD({kind}, {field})" for field in fields.split()]
        lines.append('printf("  null]},\\n");')
    numbers = [f"NUMBER({name}, {value})" for name, value in NUMBERS.items()]
    numbers += [f"NUMBER(CHANGES_{name}, FUSE_{name})" for name in CHANGES]
    folder = tmp_path_factory.mktemp("wire")
    source = folder / "wire.c"
    source.write_text(PROGRAM.replace("@STRUCTS@", "\n".join(lines)).replace("@NUMBERS@", "\n".join(numbers)))
    subprocess.run([compiler, "-Wall", "-o", folder / "wire", source], check=True, timeout=60)
    done = subprocess.run([folder / "wire"], check=True, capture_output=True, text=True, timeout=10)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def offsets(one: struct.Struct) -> list[tuple[int, int]]:
    """(offset, size) of each value of a Struct that is little-endian and has no padding of its own."""
    assert one.format.startswith("<")
    found = []
    at = 0
    for count, code in re.findall(r"(\d*)([a-zA-Z])", one.format[1:]):
        size = struct.calcsize(f"<{code}")
        for _ in range(int(count or 1)):
            found.append((at, size))
            at += size
    assert at == one.size
    return found


def test_everything_in_wire_is_compared() -> None:
    assert set(structs_of_wire()) == set(STRUCTS)
    assert set(numbers_of_wire()) == set(NUMBERS) | OURS


@pytest.mark.parametrize("name", STRUCTS)
def test_a_struct_has_the_size_and_the_fields_of_the_c_one(compiled: dict[str, Any], name: str) -> None:
    ours, theirs = structs_of_wire()[name], compiled["structs"][name]
    assert ours.size == theirs["size"]
    expected = []
    for _, at, size in theirs["fields"][:-1]:
        values = [found for found in offsets(ours) if at <= found[0] < at + size]
        assert sum(found[1] for found in values) == size, "a field is one value or an array of them"
        expected += values
    if theirs["fields"][:-1]:
        assert expected == offsets(ours)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_the_c_one(compiled: dict[str, Any], name: str) -> None:
    assert numbers_of_wire()[name] == compiled["numbers"][name]


def test_what_is_refused_as_a_change_is_what_changes_something(compiled: dict[str, Any]) -> None:
    assert {compiled["numbers"][f"CHANGES_{name}"] for name in CHANGES} == wire.WRITES


def test_the_flags_that_are_required_are_asked_for_and_writing_is_not() -> None:
    assert wire.REQUIRED & ~wire.WANTED == 0
    assert wire.MINOR_MIN <= wire.MINOR
    assert max(8192, 80 + wire.MAX_WRITE_BYTES) <= wire.REQUEST_BYTES_MAX
