"""Opening a file only if the kernel has its name in memory: openat2(2) with RESOLVE_CACHED (Linux 5.12).

State: none. glibc has no wrapper; the call's number is the same on every architecture that Linux added it to.
"""

from __future__ import annotations

import ctypes
import os

_SYS_OPENAT2 = 437
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_RESOLVE_CACHED = 0x20


class _OpenHow(ctypes.Structure):
    """``struct open_how`` of <linux/openat2.h>."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_HOW = _OpenHow(os.O_RDWR | os.O_CLOEXEC, 0, _RESOLVE_CACHED | _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS)
_HOW_AT = ctypes.addressof(_HOW)
_HOW_BYTES = ctypes.sizeof(_HOW)
# The GIL is kept: the call never waits, and getting it back from a busy thread can take milliseconds.
_syscall = ctypes.PyDLL(None).syscall
_syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)
_syscall.restype = ctypes.c_long


def open_cached(folder_fd: int, name: str) -> int | None:
    """A descriptor (read, write, close-on-exec) of a file below ``folder_fd``; None for whatever reason. Never waits.

    A reason is most often that the name has to be looked up on the disk, or that the kernel or a filter of system
    calls does not know the call: an ordinary open, in a thread, says what it is.
    """
    fd: int = _syscall(_SYS_OPENAT2, folder_fd, os.fsencode(name), _HOW_AT, _HOW_BYTES)
    return None if fd < 0 else fd
