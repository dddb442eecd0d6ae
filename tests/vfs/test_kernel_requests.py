"""Every request that can be provoked from user space: what is refused, what is answered, and who waits for whom."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import itertools
import mmap
import os
import random
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from manifest import layout
from manifest.digest import Digest
from manifest.errors import Unavailable
from manifest.post import File
from manifest.recipe import Recipe
from tests.harness import wait_until
from tests.vfs.mounted import Mounted, mounted
from tests.vfs.publisher import CHUNK_BYTES, T0_NS, Link
from vfs.kernel.folders import LISTINGS_MAX
from vfs.kernel.turns import Turns
from vfs.kernel.waiting import is_killed

NOBODY = 65534
CHUNKS = 320
DATA = random.Random(3).randbytes(2 * CHUNK_BYTES + 4321)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
libc = ctypes.CDLL(None, use_errno=True)


def error_of(call: Callable[..., object], *args: Any, **options: Any) -> int | None:
    """The errno that a call fails with; None when it does not."""
    try:
        call(*args, **options)
    except OSError as error:
        return error.errno
    return None


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def lent(mount: Mounted, path: Path) -> Iterator[int]:
    """A descriptor of a file that the kernel reads by itself: it was read, and the cache is sure of it."""
    path.read_bytes()
    deadline = time.monotonic() + 10
    while True:
        with opened(path) as fd:
            if mount.command(do="kernel")["lent"]:
                yield fd
                return
        assert time.monotonic() < deadline, "the file is never lent"
        time.sleep(0.05)


@pytest.fixture(params=["pyfuse3", "kernel", "passthrough"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    """An open file of DATA in a mount, in each way of reading it."""
    name = request.param
    if name != "pyfuse3":
        request.getfixturevalue("by_kernel")
    with mounted(tmp_path, flags=["pyfuse3" if name == "pyfuse3" else "kernel"]) as mount:
        mount.publish({"d/a": DATA})
        path = mount.path / "apollo/d/a"
        with lent(mount, path) if name == "passthrough" else opened(path) as fd:
            yield fd


# -- what changes something


def copy_into(path: Path) -> None:
    with opened(path) as target, opened(Path(__file__)) as source:
        os.copy_file_range(source, target, 10)


def ioctl_set_flags(path: Path) -> None:
    with opened(path) as fd:
        fcntl.ioctl(fd, 0x40086602, struct.pack("q", 0))  # FS_IOC_SETFLAGS


def fallocate(path: Path) -> None:
    with opened(path) as fd:
        os.posix_fallocate(fd, 0, 10)


def truncate_open(path: Path) -> None:
    with opened(path) as fd:
        os.ftruncate(fd, 0)


def write(path: Path) -> None:
    with opened(path) as fd:
        os.write(fd, b"x")


def map_for_writing(path: Path) -> None:
    with opened(path) as fd:
        mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)


CHANGES: list[tuple[str, Callable[[Path], object], int]] = [
    ("open to write", lambda path: os.open(path, os.O_WRONLY), errno.EROFS),
    ("open to read and write", lambda path: os.open(path, os.O_RDWR), errno.EROFS),
    ("open and truncate", lambda path: os.open(path, os.O_RDONLY | os.O_TRUNC), errno.EROFS),
    ("open to append", lambda path: os.open(path, os.O_WRONLY | os.O_APPEND), errno.EROFS),
    ("create", lambda path: os.open(path.with_name("new"), os.O_CREAT | os.O_WRONLY), errno.EROFS),
    ("create what is there", lambda path: os.open(path, os.O_CREAT | os.O_EXCL), errno.EEXIST),
    ("temporary file", lambda path: os.open(path.parent, os.O_TMPFILE | os.O_RDWR), errno.EROFS),
    ("truncate", lambda path: os.truncate(path, 0), errno.EROFS),
    ("unlink", os.unlink, errno.EROFS),
    ("mkdir", lambda path: os.mkdir(path.with_name("new")), errno.EROFS),
    ("mkdir of what is there", lambda path: os.mkdir(path.parent), errno.EEXIST),
    ("rmdir", lambda path: os.rmdir(path.with_name("sub")), errno.EROFS),
    ("rename", lambda path: os.rename(path, path.with_name("new")), errno.EROFS),
    ("link", lambda path: os.link(path, path.with_name("new")), errno.EROFS),
    ("symlink", lambda path: os.symlink("a", path.with_name("new")), errno.EROFS),
    ("mknod", lambda path: os.mknod(path.with_name("new")), errno.EROFS),
    ("mkfifo", lambda path: os.mkfifo(path.with_name("new")), errno.EROFS),
    ("chmod", lambda path: os.chmod(path, 0o600), errno.EROFS),
    ("chown", lambda path: os.chown(path, 1, 1), errno.EROFS),
    ("chown of a link", lambda path: os.lchown(path.with_name("l"), 1, 1), errno.EROFS),
    ("utimes", lambda path: os.utime(path, (1, 1)), errno.EROFS),
    ("touch", os.utime, errno.EROFS),
    ("setxattr", lambda path: os.setxattr(path, "user.x", b"1"), errno.EROFS),
    ("removexattr", lambda path: os.removexattr(path, "user.damfs.show"), errno.EROFS),
    ("copy into", copy_into, errno.EBADF),
    ("fallocate", fallocate, errno.EBADF),
    ("truncate what is open", truncate_open, errno.EINVAL),
    ("write to what is open", write, errno.EBADF),
    ("map to write", map_for_writing, errno.EACCES),
    ("make a share in the root", lambda path: os.mkdir(path.parent.parent.parent / "new"), errno.EROFS),
]


def test_nothing_can_be_changed(mount: Mounted) -> None:
    mount.publish({"d/a": DATA, "d/sub/x": b"1", "d/l": Link("a")})
    path = mount.path / "apollo/d/a"
    before = {name: (path.parent / name).lstat() for name in os.listdir(path.parent)}
    found = {what: error_of(call, path) for what, call, _ in CHANGES}
    assert found == {what: number for what, _, number in CHANGES}
    assert error_of(ioctl_set_flags, path) in (errno.ENOTTY, errno.EPERM, errno.EROFS, errno.ENOSYS)
    assert {name: (path.parent / name).lstat() for name in os.listdir(path.parent)} == before
    assert path.read_bytes() == DATA


def test_a_private_mapping_can_be_written_to_and_nobody_sees_it(file: int) -> None:
    with mmap.mmap(file, 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
        mapped[:5] = b"local"
        assert mapped[:] == b"local" + DATA[5:]
    assert os.pread(file, len(DATA), 0) == DATA


# -- what reads


def test_a_file_is_copied_out_by_every_call_that_copies(file: int, tmp_path: Path) -> None:
    def by(copy: Callable[[int], int]) -> bytes:
        os.lseek(file, 0, os.SEEK_SET)
        with opened(tmp_path / "copy", os.O_RDWR | os.O_CREAT | os.O_TRUNC) as target:
            while copy(target):
                pass
            return os.pread(target, 2 * len(DATA), 0)

    def spliced(target: int) -> int:
        reading, writing = os.pipe()
        try:
            count = os.splice(file, writing, 65536)
            return os.splice(reading, target, count) if count else 0
        finally:
            os.close(reading)
            os.close(writing)

    offset = iter(range(0, 2**30, 1_000_000))
    assert error_of(by, lambda target: os.copy_file_range(file, target, 1)) == errno.EXDEV, "as between any two devices"
    assert by(lambda target: os.sendfile(target, file, next(offset), 1_000_000)) == DATA
    assert by(spliced) == DATA


def test_a_file_is_read_around_the_page_cache(file: int) -> None:
    """O_DIRECT, whose buffers and offsets must be aligned where the file system below wants it."""
    with opened(Path(f"/proc/self/fd/{file}"), os.O_RDONLY | os.O_DIRECT) as direct, mmap.mmap(-1, 1 << 20) as buffer:
        for offset in (0, 4096, CHUNK_BYTES - 4096, 2 * CHUNK_BYTES):
            count = os.preadv(direct, [buffer], offset)
            assert count == min(len(buffer), len(DATA) - offset)
            assert buffer[:count] == DATA[offset : offset + count]
        assert os.preadv(direct, [buffer], 3 * CHUNK_BYTES) == 0
    assert os.pread(file, 100, 0) == DATA[:100]


def test_hints_are_taken_and_change_nothing(file: int) -> None:
    for advice in (
        os.POSIX_FADV_WILLNEED,
        os.POSIX_FADV_SEQUENTIAL,
        os.POSIX_FADV_RANDOM,
        os.POSIX_FADV_DONTNEED,
        os.POSIX_FADV_NOREUSE,
        os.POSIX_FADV_NORMAL,
    ):
        os.posix_fadvise(file, 0, 0, advice)
        assert os.pread(file, 5000, CHUNK_BYTES - 100) == DATA[CHUNK_BYTES - 100 : CHUNK_BYTES + 4900]
    assert libc.readahead(file, ctypes.c_long(0), ctypes.c_size_t(len(DATA))) == 0
    with mmap.mmap(file, 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
        for hint in (mmap.MADV_WILLNEED, mmap.MADV_DONTNEED, mmap.MADV_RANDOM):
            mapped.madvise(hint)
            assert mapped[:] == DATA


def test_a_file_has_no_holes(file: int) -> None:
    assert os.lseek(file, 100, os.SEEK_DATA) == 100
    assert os.lseek(file, 100, os.SEEK_HOLE) == len(DATA)
    assert error_of(os.lseek, file, len(DATA), os.SEEK_DATA) == errno.ENXIO
    assert error_of(os.lseek, file, len(DATA) + 1, os.SEEK_HOLE) == errno.ENXIO
    assert os.lseek(file, -10, os.SEEK_END) == len(DATA) - 10
    assert os.read(file, 100) == DATA[-10:]
    assert error_of(os.lseek, file, -1, os.SEEK_SET) == errno.EINVAL


def test_ioctls_that_are_not_known_are_said_to_be_so(file: int) -> None:
    for request in (0x80086601, 0xC020660B, 0x5401):  # FS_IOC_GETFLAGS, FIEMAP, TCGETS
        assert error_of(fcntl.ioctl, file, request, bytearray(256)) in (errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS)
    assert os.pread(file, 10, 0) == DATA[:10]


def test_a_file_is_always_ready(file: int) -> None:
    assert select.select([file], [], [], 0) == ([file], [], [])
    poll = select.poll()
    poll.register(file, select.POLLIN | select.POLLPRI)
    assert poll.poll(0) == [(file, select.POLLIN)]


def test_locks_are_kept_by_the_kernel(file: int) -> None:
    """Between the processes of this machine, as on a local disk."""
    other = """
import fcntl, sys
with open(sys.argv[1], "rb") as file:
    try: fcntl.{call}(file, fcntl.{kind} | fcntl.LOCK_NB)
    except BlockingIOError: sys.exit(3)
"""

    def another(call: str, kind: str) -> int:
        script = other.format(call=call, kind=kind)
        path = os.readlink(f"/proc/self/fd/{file}")
        return subprocess.run([sys.executable, "-c", script, path], check=False, timeout=20).returncode

    fcntl.flock(file, fcntl.LOCK_EX)
    assert another("flock", "LOCK_SH") == 3
    fcntl.flock(file, fcntl.LOCK_SH)
    assert another("flock", "LOCK_SH") == 0
    fcntl.flock(file, fcntl.LOCK_UN)
    fcntl.lockf(file, fcntl.LOCK_SH, 10, 0)
    assert another("lockf", "LOCK_SH") == 0
    assert error_of(fcntl.lockf, file, fcntl.LOCK_EX, 10, 0) == errno.EBADF, "it is open to read"


def test_flushing_what_cannot_be_written_is_no_error(file: int) -> None:
    os.close(os.dup(file))
    assert error_of(os.fsync, file) is None
    assert error_of(os.fdatasync, file) is None


def test_a_file_of_which_only_the_path_is_open(mount: Mounted) -> None:
    mount.publish({"d/a": DATA, "d/l": Link("a")})
    folder = mount.path / "apollo/d"
    with opened(folder / "a", os.O_PATH) as fd:
        assert os.fstat(fd).st_size == len(DATA)
        assert error_of(os.read, fd, 1) == errno.EBADF
        with opened(Path(f"/proc/self/fd/{fd}")) as again:
            assert os.pread(again, 10, 5) == DATA[5:15]
    with opened(folder / "l", os.O_PATH | os.O_NOFOLLOW) as fd:
        assert os.readlink("", dir_fd=fd) == "a"
    with opened(folder, os.O_PATH | os.O_DIRECTORY) as fd, opened(folder) as readable:
        assert os.stat("a", dir_fd=fd).st_size == len(DATA)
        assert error_of(os.listdir, fd) == errno.EBADF
        assert sorted(os.listdir(readable)) == ["a", "l"]


def test_files_and_folders_are_not_each_other(mount: Mounted) -> None:
    mount.publish({"d/a": b"1", "d/l": Link("a"), "d/loop": Link("loop"), "d/away": Link("../../..")})
    folder = mount.path / "apollo/d"
    assert error_of(os.open, folder / "a", os.O_DIRECTORY) == errno.ENOTDIR
    assert error_of(os.stat, folder / "a/b") == errno.ENOTDIR
    assert error_of(os.listdir, folder / "a") == errno.ENOTDIR
    assert error_of(os.readlink, folder / "a") == errno.EINVAL
    assert error_of(os.open, folder / "l", os.O_NOFOLLOW) == errno.ELOOP
    assert error_of(os.stat, folder / "loop") == errno.ELOOP
    assert error_of(os.read, os.open(folder, os.O_RDONLY), 1) == errno.EISDIR
    assert os.path.samefile(folder / "away", mount.path.parent)


STATX_ALL = 0xFFF
STATX_BTIME = 0x800
AT_STATX_FORCE_SYNC = 0x2000


def test_statx_says_what_stat_says(mount: Mounted) -> None:
    mount.publish({"d/a": DATA})
    path = mount.path / "apollo/d/a"
    expected = path.stat()
    for flags in (0, AT_STATX_FORCE_SYNC, 0x4000):  # as is, asked anew, as is known
        buffer = ctypes.create_string_buffer(256)
        assert libc.statx(-100, os.fsencode(path), flags, STATX_ALL, buffer) == 0
        mask, block, _, links, uid, gid, mode, ino, size, blocks = struct.unpack_from("<IIQIIIHxxQQQ", buffer)
        assert mask & 0x7FF == 0x7FF
        assert not mask & STATX_BTIME
        assert (links, uid, gid, mode, ino, size, blocks) == (
            1, expected.st_uid, expected.st_gid, expected.st_mode, expected.st_ino, expected.st_size, expected.st_blocks
        )  # fmt: skip
        assert block == expected.st_blksize
        seconds, ns = struct.unpack_from("<qI", buffer, 0x70)
        assert seconds * 1_000_000_000 + ns == expected.st_mtime_ns


def test_names_up_to_255_bytes(mount: Mounted) -> None:
    longest = ["n" * 255, "é" * 127 + "x"]
    mount.publish({f"d/{name}": name.encode() for name in longest})
    folder = mount.path / "apollo/d"
    assert sorted(os.listdir(folder)) == sorted(longest)
    for name in longest:
        assert (folder / name).read_bytes() == name.encode()
    for name in ("n" * 254, "é" * 127):
        assert error_of(os.stat, folder / name) == errno.ENOENT
    for count in (256, 1023, 1024, 1025, 4000):
        assert error_of(os.stat, folder / ("n" * count)) == errno.ENAMETOOLONG
        assert error_of(os.stat, mount.path / ("n" * count)) == errno.ENAMETOOLONG
        assert error_of(os.mkdir, folder / ("n" * count)) == errno.ENAMETOOLONG
    assert error_of(os.stat, folder / "n\udcff") == errno.ENOENT
    assert error_of(os.stat, bytes(mount.path) + b"/\xff\xfe") == errno.ENOENT


def as_nobody(script: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
    prefix = [
        "setpriv",
        f"--reuid={NOBODY}",
        f"--regid={NOBODY}",
        "--clear-groups",
        "--",
        "/usr/bin/python3",
        "-I",
        "-c",
    ]
    return subprocess.run([*prefix, script, *args], capture_output=True, text=True, check=False, timeout=20)


@as_root
def test_the_modes_hold_for_others(public: Path, binding: str) -> None:
    script = """
import os, sys
def may(name, mode):
    return os.access(f"{sys.argv[1]}/{name}", mode)
def opens(name):
    try: os.close(os.open(f"{sys.argv[1]}/{name}", os.O_RDONLY))
    except PermissionError: return False
    return True
print([(may(n, os.R_OK), may(n, os.X_OK), may(n, os.W_OK), may(n, os.F_OK), opens(n)) for n in sys.argv[2:]])
"""
    with mounted(public, flags=[binding, "allow_other"]) as mount:
        post = mount.show().post_of
        names = {"open": 0o644, "closed": 0o600, "tool": 0o755, "group": 0o640}
        mount.publish({name: post(DATA, mode=mode) for name, mode in names.items()})
        for name in names:  # all in the cache, so that the kernel may be lent any of them
            (mount.path / "apollo" / name).read_bytes()
        seen = as_nobody(script, mount.path / "apollo", *names)
        assert seen.stderr == ""
        assert eval(seen.stdout) == [
            (True, False, False, True, True),
            (False, False, False, True, False),
            (True, True, False, True, True),
            (False, False, False, True, False),
        ]


def test_a_program_in_the_mount_runs(mount: Mounted) -> None:
    with open("/usr/bin/id", "rb") as program:
        mount.publish({"id": mount.show().post_of(program.read(), mode=0o755)})
    for _ in range(2):
        assert (
            subprocess.run([mount.path / "apollo/id", "-u"], capture_output=True, check=True).stdout
            == b"%d\n" % os.geteuid()
        )


# -- listings


def getdents(fd: int, size: int) -> list[tuple[str, int, int, int]]:
    """(name, inode, offset behind it, type) of one getdents64(2). Raises OSError."""
    buffer = ctypes.create_string_buffer(size)
    count = libc.syscall(217, fd, buffer, size)
    if count < 0:
        raise OSError(ctypes.get_errno(), "getdents64")
    found = []
    at = 0
    while at < count:
        ino, offset, length, kind = struct.unpack_from("<QqHB", buffer, at)
        name = buffer.raw[at + 19 : at + length].partition(b"\0")[0].decode()
        found.append((name, ino, offset, kind))
        at += length
    return found


def getdents_or_none(fd: int, size: int) -> list[tuple[str, int, int, int]] | None:
    """None where the next name is too long for the buffer."""
    try:
        return getdents(fd, size)
    except OSError:
        return None


def names_behind(fd: int, size: int) -> list[str]:
    names = []
    while found := getdents(fd, size):
        names += [name for name, *_ in found]
    return names


needs_getdents = pytest.mark.skipif(os.uname().machine != "x86_64", reason="the number of getdents64 is of x86-64")


@needs_getdents
def test_a_listing_is_read_in_the_smallest_pieces(mount: Mounted) -> None:
    names = sorted([f"n{n:03d}" for n in range(300)] + ["x" * 255, "y" * 255])
    mount.publish({f"d/{name}": b"1" for name in names})
    with opened(mount.path / "apollo/d", os.O_DIRECTORY) as fd:
        assert error_of(getdents, fd, 20) == errno.EINVAL
        assert sorted(names_behind(fd, 280)) == [".", "..", *names]
        os.lseek(fd, 0, os.SEEK_SET)
        seen = []
        while found := getdents_or_none(fd, 32):  # until the first of the long names
            seen += [name for name, *_ in found]
        assert sorted(seen) == [".", "..", *(name for name in names if name.startswith("n"))]
        seen += names_behind(fd, 300)
        assert sorted(seen) == [".", "..", *names]


@needs_getdents
def test_a_large_folder_can_be_read_from_any_place(mount: Mounted) -> None:
    post = mount.show().post_of(b"1")
    mount.publish({f"d/n{n:05d}": post for n in range(5000)})
    with opened(mount.path / "apollo/d", os.O_DIRECTORY) as fd:
        entries = []
        while found := getdents(fd, 5000):
            entries += found
        assert sorted(name for name, *_ in entries) == [".", "..", *(f"n{n:05d}" for n in range(5000))]
        assert len({offset for _, _, offset, _ in entries}) == len(entries)
        places = [*random.Random(1).sample(range(len(entries)), 60), 0, 1, 2, 3, len(entries) - 1]
        for place in places:
            os.lseek(fd, entries[place][2], os.SEEK_SET)
            found = getdents(fd, 700)
            assert found == entries[place + 1 :][: len(found)]
            assert bool(found) == (place < len(entries) - 1)
        os.lseek(fd, 0, os.SEEK_SET)
        assert [name for name, *_ in entries] == names_behind(fd, 65536)


@needs_getdents
def test_a_listing_that_spans_publishes_keeps_its_revision(mount: Mounted) -> None:
    post = mount.show().post_of(b"1")
    before = [f"n{n:04d}" for n in range(2500)]
    mount.publish({f"d/{name}": post for name in before})
    with opened(mount.path / "apollo/d", os.O_DIRECTORY) as fd:
        seen = getdents(fd, 500)
        place = seen[-1][2]
        mount.publish({f"d/{name}": None for name in before[::3]} | {f"d/m{n:04d}": post for n in range(100)})
        rest = names_behind(fd, 500)
        assert [name for name, *_ in seen] + rest == [".", "..", *before]
        mount.publish({"d/n0001": None, "d/zz": post})
        os.lseek(fd, place, os.SEEK_SET)
        assert names_behind(fd, 4000) == rest
    now = sorted(set(before) - set(before[::3]) - {"n0001"} | {f"m{n:04d}" for n in range(100)} | {"zz"})
    assert sorted(os.listdir(mount.path / "apollo/d")) == now


def test_a_folder_that_goes_while_it_is_listed_is_listed_to_its_end(mount: Mounted) -> None:
    post = mount.show().post_of(b"1")
    names = [f"n{n:04d}" for n in range(3000)]
    mount.publish({f"d/{name}": post for name in names} | {"e": b"1"})
    with os.scandir(mount.path / "apollo/d") as listing:
        seen = [next(listing).name]
        mount.publish({f"d/{name}": None for name in names} | {"d": None})
        seen += [entry.name for entry in listing]
    assert seen == names
    assert not (mount.path / "apollo/d").exists()


# -- waiting


READ = """
import ctypes, mmap, os, signal, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
way, path, offset, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
fd = os.open(path, os.O_RDONLY | (os.O_DIRECT if way == "direct" else 0))
if way == "random": os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
done = []
def read(n):
    buffer = mmap.mmap(-1, 4096)
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    got = libc.pread(fd, ctypes.c_void_p(address), 4096, ctypes.c_long(offset + n * 1048576))
    done.append((n, got, ctypes.get_errno() if got < 0 else 0, bytes(buffer[:8])))
if len(sys.argv) > 5:  # signals while it waits, with a handler that does not restart
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.siginterrupt(signal.SIGALRM, True)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
threads = [threading.Thread(target=read, args=(n,)) for n in range(count)]
print("begun", flush=True)
if count == 1: read(0)
else:
    for thread in threads: thread.start()
    for thread in threads: thread.join()
signal.setitimer(signal.ITIMER_REAL, 0)
print(repr(sorted(done)), flush=True)
"""


class Reader:
    """A process that reads 4 KiB at each of ``count`` MiB of a file, each in a thread of its own."""

    def __init__(
        self, way: str, path: Path, offset: int = 0, count: int = 1, *, alarms: bool = False, prefix: Sequence[str] = ()
    ) -> None:
        command = [*prefix, "/usr/bin/python3", "-I", "-c", READ, way, str(path), str(offset), str(count)]
        self.process = subprocess.Popen(command + ["alarms"] * alarms, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "begun\n"

    def result(self, timeout_s: float = 20) -> list[tuple[int, int, int, bytes]]:
        """(which, bytes, errno, the first bytes) of each read."""
        out, _ = self.process.communicate(timeout=timeout_s)
        found: list[tuple[int, int, int, bytes]] = eval(out)
        return found

    def kill(self) -> float:
        """Kill it; the seconds until it is gone."""
        started = time.monotonic()
        self.process.kill()
        self.process.wait(60)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return time.monotonic() - started


@pytest.fixture
def stalled(public: Path, by_kernel: str) -> Iterator[Mounted]:
    """A mount of two shows of which one has a source that answers nothing, for longer than anybody would wait."""
    with mounted(public, flags=[by_kernel, "allow_other", "deadline=40"]) as mount:
        mount.publish({"big": huge(mount), "cached": DATA, "small": b"1" * 100})
        mount.publish({f"big{n}": huge(mount) for n in range(5)})
        mount.publish({"fine": DATA, "also": DATA[5:]}, show="zulu")
        with opened(mount.path / "apollo/big", os.O_DIRECT) as fd, mmap.mmap(-1, 4096) as buffer:
            os.preadv(fd, [buffer], (CHUNKS - 1) * CHUNK_BYTES)  # its recipe is here now
        (mount.path / "apollo/cached").read_bytes()
        mount.command(do="stall", show="apollo")
        try:
            yield mount
        finally:
            mount.command(do="go on", show="apollo")


def chunk(n: int) -> bytes:
    return struct.pack("<Q", n).ljust(CHUNK_BYTES, b"\1")


@functools.cache
def recipe() -> Recipe:
    return Recipe.of((Digest.of(chunk(n)), CHUNK_BYTES) for n in range(CHUNKS))


def huge(mount: Mounted) -> File:
    """A file of CHUNKS chunks, of which the library has the few that are ever read."""
    for n in (0, 1, 2, CHUNKS - 1):
        mount.library.put(layout.chunk_key("apollo", Digest.of(chunk(n))), chunk(n))
    mount.library.put(layout.recipe_key("apollo", recipe().content), recipe().to_object())
    return File(0o644, CHUNKS * CHUNK_BYTES, T0_NS, Digest.of(b"nobody reads all of it"), recipe().content, None)


def waiting(mount: Mounted, count: int = 1) -> None:
    wait_until(lambda: mount.command(do="kernel")["waiting"] >= count, f"{count} requests to wait")


@pytest.mark.parametrize("way", ["direct", "random", "buffered"])
def test_a_process_that_is_killed_while_it_waits_goes_at_once(stalled: Mounted, way: str) -> None:
    reader = Reader(way, stalled.path / "apollo/big")
    waiting(stalled)
    time.sleep(0.1)
    assert reader.kill() < 2


def test_a_process_with_many_threads_that_wait_goes_at_once(stalled: Mounted) -> None:
    """More than a user has turns: those that wait for a turn go as well."""
    reader = Reader("direct", stalled.path / "apollo/big", 0, 300)
    waiting(stalled, 300)
    assert stalled.command(do="kernel")["queued"] > 0
    assert reader.kill() < 3
    left = stalled.command(do="kernel")
    assert (left["running"], left["queued"], left["waiting"]) == (0, 0, 0)


def test_a_signal_that_does_not_end_a_process_does_not_end_its_read(stalled: Mounted) -> None:
    readers = [
        Reader(way, stalled.path / "apollo/big", n << 20, alarms=True)
        for n, way in enumerate(["direct", "random", "buffered"])
    ]
    waiting(stalled, 3)
    time.sleep(0.5)
    stalled.command(do="go on", show="apollo")
    try:
        for n, reader in enumerate(readers):
            assert reader.result() == [(0, 4096, 0, struct.pack("<Q", n))]
    finally:
        stalled.command(do="stall", show="apollo")


def test_a_process_that_had_a_signal_before_is_killed_at_once_as_well(stalled: Mounted) -> None:
    reader = Reader("direct", stalled.path / "apollo/big", alarms=True)
    waiting(stalled)
    time.sleep(0.5)
    assert reader.kill() < 2


def took_s(call: Callable[[], object]) -> float:
    started = time.monotonic()
    call()
    return time.monotonic() - started


@as_root
@pytest.mark.parametrize(("way", "count"), [("direct", 300), ("random", 1500)])
def test_what_one_user_waits_for_holds_nobody_else_up(stalled: Mounted, way: str, count: int) -> None:
    """Reads of a dead source, by one user: another one reads what is cached, and fetches what is not."""
    prefix = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"]
    theirs = [
        Reader(way, stalled.path / f"apollo/big{n}", 0, min(count, 300), prefix=prefix) for n in range(-(-count // 300))
    ]
    try:
        waiting(stalled, count)
        apollo, zulu = stalled.path / "apollo", stalled.path / "zulu"
        assert took_s(lambda: os.listdir(apollo)) < 1
        assert took_s(lambda: (apollo / "small").stat()) < 1
        assert took_s(lambda: (apollo / "cached").read_bytes()) < 2
        assert took_s(lambda: (zulu / "fine").read_bytes()) < 3
        assert (zulu / "also").read_bytes() == DATA[5:]
    finally:
        assert sum(reader.kill() for reader in theirs) < 6


def test_a_process_that_is_stopped_or_gone_is_not_taken_for_one_that_waits_and_was_killed() -> None:
    script = "import time; print(flush=True); time.sleep(60)"
    command = [sys.executable, "-c", script]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline()
        assert not is_killed(processes[0].pid)
        processes[0].send_signal(signal.SIGSTOP)
        assert not is_killed(processes[0].pid)
        processes[1].kill()
        processes[1].wait(10)
        assert not is_killed(processes[1].pid)
        assert not is_killed(0)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_more_folders_than_are_remembered_can_be_listed_in_turn(mount: Mounted) -> None:
    post = mount.show().post_of(b"1")
    names = [f"n{n:04d}" for n in range(700)]
    mount.publish({f"d/{name}": post for name in names})
    listings = [os.scandir(mount.path / "apollo/d") for _ in range(LISTINGS_MAX + 44)]
    try:
        seen: list[list[str]] = [[] for _ in listings]
        for _ in range(8):
            for found, listing in zip(seen, listings, strict=True):
                found += [entry.name for entry in itertools.islice(listing, 100)]
        assert all(found == names for found in seen)
    finally:
        for listing in listings:
            listing.close()


# -- the limits themselves


class Started:
    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, name: str) -> Callable[[], None]:
        return lambda: self.names.append(name)


def test_reads_start_at_once_up_to_a_users_limits_and_then_in_turn() -> None:
    started = Started()
    turns = Turns(bytes_max=100, user_bytes_max=30, user_reads_max=2, queue_max=10)
    assert [turns.take(1, 10, started(f"a{n}")) > 0 for n in range(4)] == [False, False, True, True]
    assert [turns.take(2, 20, started(f"b{n}")) > 0 for n in range(3)] == [False, True, True]
    assert started.names == ["a0", "a1", "b0"]
    turns.ended(2, 20)
    assert started.names[3:] == ["b1"]
    turns.ended(1, 10)
    turns.ended(1, 10)
    assert started.names[4:] == ["a2", "a3"]
    assert (turns.running, turns.queued) == (3, 1)


def test_a_user_with_a_long_queue_waits_no_less_than_one_with_a_short_one() -> None:
    started = Started()
    turns = Turns(bytes_max=10, user_bytes_max=10, user_reads_max=5)
    turns.take(1, 10, started("first"))
    for n in range(3):
        turns.take(1, 10, started(f"a{n}"))
    turns.take(2, 10, started("b0"))
    for user in (1, 1, 2, 1):
        turns.ended(user, 10)
    assert started.names == ["first", "a0", "b0", "a1", "a2"]


def test_what_is_withdrawn_does_not_start() -> None:
    started = Started()
    turns = Turns(bytes_max=100, user_bytes_max=100, user_reads_max=1)
    first = turns.take(1, 1, started("a"))
    second, third = turns.take(1, 1, started("b")), turns.take(1, 1, started("c"))
    assert not turns.withdraw(1, first)
    assert turns.withdraw(1, second)
    assert not turns.withdraw(1, second)
    turns.ended(1, 1)
    assert started.names == ["a", "c"]
    assert not turns.withdraw(1, third)
    turns.ended(1, 1)
    assert (turns.running, turns.queued) == (0, 0)


def test_a_queue_that_is_full_is_an_error() -> None:
    turns = Turns(user_reads_max=1, queue_max=1)
    turns.take(1, 1, lambda: None)
    turns.take(1, 1, lambda: None)
    with pytest.raises(Unavailable, match="1 reads wait already"):
        turns.take(1, 1, lambda: None)
    assert turns.take(2, 1, lambda: None) == 0
