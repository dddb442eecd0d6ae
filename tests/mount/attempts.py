"""Every way to write to a file that is not to be written to, by its name and through a descriptor."""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import mmap
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

FICLONE, FIDEDUPERANGE = 0x40049409, 0xC0189436
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR = 0x80086601, 0x40086602, 0x401C5820
PAGE_BYTES = 4096
_LIBC = ctypes.CDLL(None, use_errno=True)


def refusals(attempts: Iterator[Callable[[], object]]) -> list[str]:
    """Make all attempts; the names of the errors. Raises AssertionError when one of them is not refused."""
    found = []
    for number, attempt in enumerate(attempts):
        try:
            attempt()
        except OSError as error:
            found.append(errno.errorcode[error.errno or errno.EIO])
        else:
            raise AssertionError(f"attempt {number} was not refused")
    return found


def checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def in_ways_to_open(path: Path) -> Iterator[Callable[[], object]]:
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_APPEND,
                  os.O_RDWR | os.O_DIRECT, os.O_RDWR | os.O_NONBLOCK, os.O_ACCMODE):  # fmt: skip
        yield lambda flags=flags: os.close(os.open(path, flags))  # type: ignore[misc]
    yield lambda: os.close(os.open(path.parent / "new", os.O_RDWR | os.O_CREAT | os.O_EXCL))
    yield lambda: os.close(os.open(path.parent, os.O_RDWR | os.O_TMPFILE))
    yield lambda: checked(_LIBC.swapon(os.fsencode(path), 0))


def by_name(path: Path, outside: Path) -> Iterator[Callable[[], object]]:
    new = path.parent / "new"
    yield lambda: os.truncate(path, 0)
    yield lambda: os.truncate(path, 10**9)
    yield lambda: os.utime(path)
    yield lambda: os.utime(path, ns=(1, 1))
    yield lambda: path.chmod(0o777)
    yield lambda: os.chown(path, 0, 0)
    yield lambda: os.setxattr(path, "user.damfs.digest", b"b3:0")
    yield lambda: os.setxattr(path, "trusted.x", b"x")
    yield lambda: os.setxattr(path, "security.capability", bytes(20))
    yield lambda: os.removexattr(path, "user.damfs.digest")
    yield path.unlink
    yield lambda: path.rename(new)
    yield lambda: os.link(path, new)
    yield lambda: os.link(outside, new)
    yield lambda: new.symlink_to("x")
    yield new.mkdir
    yield lambda: os.mknod(new, 0o600)
    yield path.parent.rmdir
    yield lambda: shutil.copyfile(outside, path)


def through_a_descriptor(descriptor: int, outside: int) -> Iterator[Callable[[], object]]:
    """Through one that was opened to be read."""
    yield lambda: os.write(descriptor, b"x")
    yield lambda: os.pwrite(descriptor, b"x", 0)
    yield lambda: os.ftruncate(descriptor, 0)
    yield lambda: os.posix_fallocate(descriptor, 0, 100)
    yield lambda: checked(_LIBC.fallocate(descriptor, 3, ctypes.c_longlong(0), ctypes.c_longlong(4096)))
    yield lambda: os.copy_file_range(outside, descriptor, 100)
    yield lambda: os.sendfile(descriptor, outside, 0, 100)
    yield lambda: os.utime(descriptor)
    yield lambda: os.fchmod(descriptor, 0o777)
    yield lambda: os.setxattr(descriptor, "user.x", b"x")
    yield lambda: mmap.mmap(descriptor, 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE).close()
    yield lambda: make_writable(descriptor)
    yield lambda: os.close(os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR))
    yield lambda: open_what_is_mapped(descriptor)
    yield lambda: write_into_memory(descriptor)
    yield lambda: fcntl.ioctl(descriptor, FICLONE, outside)
    yield lambda: dedupe(outside, descriptor)
    yield lambda: fcntl.ioctl(descriptor, FS_IOC_SETFLAGS, array.array("l", [0x10]))
    yield lambda: fcntl.ioctl(descriptor, FS_IOC_FSSETXATTR, bytes(28))


@contextmanager
def mapped(descriptor: int) -> Iterator[int]:
    """The address of a mapping of the first page that was made to be read."""
    _LIBC.mmap.restype = ctypes.c_void_p
    found = _LIBC.mmap(None, ctypes.c_size_t(PAGE_BYTES), mmap.PROT_READ, mmap.MAP_SHARED, descriptor, ctypes.c_long(0))
    try:
        yield found
    finally:
        checked(_LIBC.munmap(ctypes.c_void_p(found), ctypes.c_size_t(PAGE_BYTES)))


def make_writable(descriptor: int) -> None:
    with mapped(descriptor) as address:
        both = mmap.PROT_READ | mmap.PROT_WRITE
        checked(_LIBC.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(PAGE_BYTES), both))


def open_what_is_mapped(descriptor: int) -> None:
    """The file behind a mapping of what the kernel reads by itself is the cache's."""
    with mapped(descriptor) as address:
        os.close(os.open(f"/proc/self/map_files/{address:x}-{address + PAGE_BYTES:x}", os.O_RDWR))


def write_into_memory(descriptor: int) -> None:
    """As a debugger does, which may write where the process itself may not."""
    with mapped(descriptor) as address, open("/proc/self/mem", "r+b", buffering=0) as memory:
        os.pwrite(memory.fileno(), b"x", address)


def dedupe(source: int, target: int) -> None:
    """FIDEDUPERANGE needs no descriptor to write with, for it changes no byte."""
    request = bytearray(struct.pack("<QQHHI", 0, 4096, 1, 0, 0) + struct.pack("<qQQiI", target, 0, 0, 0, 0))
    fcntl.ioctl(source, FIDEDUPERANGE, request)
    status = struct.unpack_from("<i", request, 48)[0]
    if status < 0:
        raise OSError(-status, os.strerror(-status))
