"""A small disk of its own on a loop device, to be filled up, to lose its power or to fail; always unmounted."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import struct
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

FileSystem = Literal["ext4", "xfs"]
XFS_MIB_MIN = 300
"""mkfs.xfs makes none smaller."""
IOC_SHUTDOWN = 0x8004587D  # ext4 and XFS have the same one
GOING_FLAGS_NOLOGFLUSH = 2
FICLONE = 0x40049409
MAKE: dict[FileSystem, tuple[str, ...]] = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
    "xfs": ("mkfs.xfs", "-q", "-f", "-m", "reflink=1"),
}


class LoopDisk:
    """A file system of ``size_mib`` in a file, mounted at ``path``. The image lies in ``folder``."""

    def __init__(self, folder: Path, size_mib: int, kind: FileSystem = "ext4", *options: str) -> None:
        self.image = folder / "disk.img"
        self.path = folder / "disk"
        self.path.mkdir()
        with self.image.open("wb") as file:
            file.truncate(size_mib << 20)
        _run(*MAKE[kind], *options, str(self.image))
        self.mounted = False

    def mount(self, image: Path | None = None) -> None:
        """Mount it; or another image, such as a snapshot of it."""
        # two images of one XFS have one UUID
        options = "loop,nouuid" if self._is_xfs(image or self.image) else "loop"
        _run("mount", "-o", options, str(image or self.image), str(self.path))
        self.mounted = True

    def remount(self, option: str) -> None:
        """``ro``, as a kernel does that met an error, or ``rw``."""
        _run("mount", "-o", f"remount,{option}", str(self.path))

    def unmount(self, *, within_s: float = 10) -> None:
        """Unmount; a process that has just been killed may hold it for a moment."""
        deadline = time.monotonic() + within_s
        while self.mounted:
            try:
                _run("umount", str(self.path))
                self.mounted = False
            except subprocess.CalledProcessError:
                if time.monotonic() > deadline:
                    _run("umount", "--lazy", str(self.path))
                    self.mounted = False
                    raise
                time.sleep(0.1)

    def cut_power(self) -> None:
        """What was not durable is gone: the file system stops at once, and its journal is not flushed."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, IOC_SHUTDOWN, struct.pack("I", GOING_FLAGS_NOLOGFLUSH))
        finally:
            os.close(fd)

    def meet_an_error(self) -> None:
        """The kernel finds that an ext4 is damaged, and has it read-only from then on, whatever is open on it."""
        _run("mount", "-o", "remount,errors=remount-ro", str(self.path))
        device = subprocess.run(
            ["findmnt", "-no", "SOURCE", str(self.path)], check=True, capture_output=True, text=True, timeout=30
        ).stdout.strip()
        Path("/sys/fs/ext4", Path(device).name, "trigger_fs_error").write_text("1")

    def lose_sectors(self, path: Path) -> None:
        """The last blocks of a file on it cannot be read any more (EIO): the image ends before them.

        The file has to have been written as the last one. What is in memory of it is let go of.
        """
        os.sync()
        listed = subprocess.run(["filefrag", "-v", str(path)], check=True, capture_output=True, text=True, timeout=30)
        extents = re.findall(r"^ *\d+: +\d+\.\. *\d+: +(\d+)\.\. *(\d+):", listed.stdout, re.MULTILINE)
        (block_bytes,) = re.findall(r"blocks of (\d+) bytes", listed.stdout)
        first, last = max((int(first), int(last)) for first, last in extents)
        os.truncate(self.image, (first + last) // 2 * int(block_bytes))
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def snapshot(self, to: Path) -> None:
        """The disk as it is at this one instant, whatever is being written: its image shares blocks with ``to``.

        The image has to lie on a file system with reflinks: that stops writes for a moment, and knows their order.
        """
        with self.image.open("rb") as image, to.open("wb") as copy:
            fcntl.ioctl(copy.fileno(), FICLONE, image.fileno())

    @staticmethod
    def _is_xfs(image: Path) -> bool:
        with image.open("rb") as file:
            return file.read(4) == b"XFSB"


@contextmanager
def loop_disk(
    size_mib: int, kind: FileSystem = "ext4", *options: str, folder: Path | None = None
) -> Iterator[LoopDisk]:
    """A mounted disk, in a folder of its own (below ``folder``). Skips the test where there are no loop devices."""
    make = MAKE[kind][0]
    if os.geteuid() != 0 or shutil.which(make) is None:
        pytest.skip(f"a disk of its own needs root and {make}")
    below = Path(tempfile.mkdtemp(prefix="damfs-disk-", dir=folder))
    disk = LoopDisk(below, size_mib, kind, *options)
    try:
        try:
            disk.mount()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no loop device: {error.stderr.strip()}")
        yield disk
    finally:
        disk.unmount()
        shutil.rmtree(below)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
