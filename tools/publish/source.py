"""Reading a source file so that what was read is one state of it, or an error.

On local file systems the file is read under a read lease (fcntl(2), F_SETLEASE): the kernel grants none while anybody
has the file open for writing or mapped writable, and says so when somebody wants to during the read. Where there are no
leases (network file systems, files of others without CAP_LEASE) the file's status before and after must be equal, and
a file that changed within the resolution of its time stamps is waited for first.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import time
from functools import cache
from pathlib import Path
from typing import NamedTuple, Self

from manifest.errors import SourceChanged

LEASE_WAITS_S = (0.05, 0.1, 0.2, 0.4, 0.8)
"""The pauses between attempts to get a lease that a writer is in the way of."""
_TICK_NS = 20_000_000
_COARSE_TICK_NS = 2_000_000_000
_NO_LEASES = frozenset({errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})
_NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "lustre", "afs", "beegfs", "gpfs", "virtiofs"}
)


class Fingerprint(NamedTuple):
    """What tells one state of a file from another without reading it."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    mode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """The fingerprint in a stat result; ``mode`` is the permission bits without set-id and sticky bits."""
        return cls(
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_mode & 0o777
        )

    def young(self, now_ns: int) -> bool:
        """Whether another change right now might leave the same time stamps."""
        return now_ns - max(self.mtime_ns, self.ctime_ns) < self.tick_ns

    @property
    def tick_ns(self) -> int:
        """How long a file system may go on giving one time stamp: a tick, or seconds where it looks so."""
        return _TICK_NS if self.ctime_ns % 1_000_000_000 else _COARSE_TICK_NS


class SourceReader:
    """One open source. Used by one thread.

    Invariant: when ``finish`` has returned, the ``size`` bytes that were read are one state of the file.
    """

    def __init__(self, path: str) -> None:
        """Open it and take the lease. Raises SourceChanged, OSError."""
        self.path = path
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            raise SourceChanged(f"{path} has gone since it was listed; publish again") from None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise SourceChanged(f"{path} has become a link since it was listed; publish again") from None
            raise
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, which gives the lease back."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def fill(self, view: memoryview, offset: int) -> None:
        """Read exactly ``len(view)`` bytes at ``offset``. Raises SourceChanged, OSError."""
        done = 0
        while done < len(view):
            count = os.preadv(self.descriptor, [view[done:]], offset + done)
            if count == 0:
                raise self._changed("it has become shorter")
            done += count
        self._check_lease()

    def finish(self) -> None:
        """Everything was read. Raises SourceChanged when that was not one state of the file."""
        self._check_lease()
        now = Fingerprint.of(os.fstat(self.descriptor))
        if now != self.fingerprint:
            raise self._changed("its size, times or mode are not what they were")

    @property
    def durable(self) -> bool:
        """Whether the fingerprint will tell every later change."""
        return not self.fingerprint.young(time.time_ns())

    def _prepare(self) -> None:
        status = os.fstat(self.descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise SourceChanged(f"{self.path} is no regular file any more; publish again")
        self.leased = self._lease(status.st_dev)
        self.fingerprint = Fingerprint.of(os.fstat(self.descriptor))
        if not self.leased and self.fingerprint.young(time.time_ns()):
            time.sleep(self.fingerprint.tick_ns / 1e9)
            self.fingerprint = Fingerprint.of(os.fstat(self.descriptor))
        os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def _lease(self, device: int) -> bool:
        if _file_system(device) in _NETWORK or _file_system(device).startswith("fuse"):
            return False
        # Without this the kernel reports a broken lease with SIGIO, which ends a process; SIGURG is ignored by default.
        fcntl.fcntl(self.descriptor, fcntl.F_SETSIG, signal.SIGURG)
        for wait_s in (*LEASE_WAITS_S, None):
            try:
                fcntl.fcntl(self.descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            except OSError as error:
                if error.errno in _NO_LEASES:
                    return False
                if error.errno != errno.EAGAIN:
                    raise
            else:
                return True
            if wait_s is not None:
                time.sleep(wait_s)
        raise SourceChanged(
            f"{self.path} is open for writing in another program; publish again when it has been written and closed"
        )

    def _check_lease(self) -> None:
        if self.leased and fcntl.fcntl(self.descriptor, fcntl.F_GETLEASE) != fcntl.F_RDLCK:
            raise self._changed("another program opened it for writing")

    def _changed(self, how: str) -> SourceChanged:
        return SourceChanged(f"{self.path} changed while it was read ({how}); nothing was published, publish again")


@cache
def _file_system(device: int) -> str:
    """The type of the mounted file system with this device number; empty when it is not known."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields = line.split(" ")
        if fields[2] == wanted:
            return fields[fields.index("-") + 1]
    return ""
