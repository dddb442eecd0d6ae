"""What fsx does to a file as far as it reads, and more ways to read, run as a process of its own.

``python reader.py MOUNTED REFERENCE SEED OPERATIONS``: two files with the same bytes, one in the mount, one not. Each
operation is chosen at random; between them the file is closed and opened again now and then. Prints one line of JSON:
what was done how often, and what was wrong.
"""

from __future__ import annotations

import collections
import ctypes
import json
import mmap
import os
import random
import sys
from pathlib import Path

FAULTS_MAX = 20
MAPS_MAX = 4
PAGE_BYTES = 4096
_LIBC = ctypes.CDLL(None, use_errno=True)


class Reader:
    """One reader of one file: an open descriptor, and the mappings that it keeps."""

    def __init__(self, mounted: Path, reference: Path, seed: int) -> None:
        self.path = mounted
        self.data = reference.read_bytes()
        self.random = random.Random(seed)
        self.done: collections.Counter[str] = collections.Counter()
        self.faults: list[str] = []
        self.maps: list[mmap.mmap] = []
        self.descriptor = os.open(mounted, os.O_RDONLY)

    def run(self, operations: int) -> None:
        """Do so many things."""
        kinds = (
            self.read, self.read, self.read_at_the_end, self.read_pages, self.read_in_order, self.read_direct,
            self.read_vectored, self.map_shared, self.map_private, self.map_window, self.read_maps, self.advise,
            self.read_ahead, self.reopen, self.copy_out, self.seek, self.stat,
        )  # fmt: skip
        for _ in range(operations):
            kind = self.random.choice(kinds)
            try:
                kind()
            except OSError as error:
                self._fault(f"{kind.__name__}: {error}")
            self.done[kind.__name__] += 1
        os.close(self.descriptor)
        self.read_maps()  # they live on
        for one in self.maps:
            one.close()

    def read(self) -> None:
        offset, size = self._range(300_000)
        self._compare(os.pread(self.descriptor, size, offset), offset, size)

    def read_at_the_end(self) -> None:
        offset = max(0, len(self.data) - self.random.randrange(10_000))
        self._compare(os.pread(self.descriptor, 20_000, offset), offset, 20_000)
        self._compare(os.pread(self.descriptor, 10, len(self.data) + self.random.randrange(9999)), len(self.data), 0)

    def read_pages(self) -> None:
        offset, size = self._range(65_536)
        offset, size = offset // PAGE_BYTES * PAGE_BYTES, -(-size // PAGE_BYTES) * PAGE_BYTES
        self._compare(os.pread(self.descriptor, size, offset), offset, size)

    def read_in_order(self) -> None:
        offset, size = self._range(50_000)
        os.lseek(self.descriptor, offset, os.SEEK_SET)
        for _ in range(5):
            self._compare(os.read(self.descriptor, size), offset, size)
            offset = min(len(self.data), offset + size)

    def read_direct(self) -> None:
        offset, size = self._range(1 << 20)
        offset, size = offset // PAGE_BYTES * PAGE_BYTES, -(-size // PAGE_BYTES) * PAGE_BYTES
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECT)
        try:
            with mmap.mmap(-1, size) as aligned:
                got = os.preadv(descriptor, [aligned], offset)
                self._compare(aligned[:got], offset, size)
        finally:
            os.close(descriptor)

    def read_vectored(self) -> None:
        offset, size = self._range(100_000)
        parts = [bytearray(size), bytearray(1), bytearray(5000)]
        got = os.preadv(self.descriptor, parts, offset)
        self._compare(b"".join(parts)[:got], offset, size + 5001)

    def map_shared(self) -> None:
        self._keep(mmap.mmap(self.descriptor, 0, mmap.MAP_SHARED, mmap.PROT_READ))

    def map_private(self) -> None:
        """What is written into a private mapping is seen there and nowhere else."""
        with mmap.mmap(self.descriptor, 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as private:
            offset, size = self._range(20_000)
            size = len(private[offset : offset + size])
            self._compare(private[offset : offset + size], offset, size)
            private[offset : offset + size] = b"\xa5" * size
            if private[offset : offset + size] != b"\xa5" * size:
                self._fault("a private mapping does not show what was written into it")
            self._compare(os.pread(self.descriptor, size, offset), offset, size)

    def map_window(self) -> None:
        """A part of the file; behind the end of the file its last page is zeros."""
        offset = self.random.randrange(len(self.data)) // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        size = min(len(self.data) - offset, self.random.randrange(1, 500_000))
        with mmap.mmap(self.descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ, offset=offset) as window:
            self._compare(window[:], offset, size)

    def read_maps(self) -> None:
        for one in self.maps:
            for _ in range(3):
                offset, size = self._range(100_000)
                self._compare(one[offset : offset + size], offset, size)

    def advise(self) -> None:
        for one in self.maps:
            one.madvise(self.random.choice((mmap.MADV_WILLNEED, mmap.MADV_DONTNEED, mmap.MADV_SEQUENTIAL,
                                            mmap.MADV_RANDOM, mmap.MADV_NORMAL)))  # fmt: skip
        offset, size = self._range(1 << 20)
        for advice in (os.POSIX_FADV_WILLNEED, os.POSIX_FADV_DONTNEED, os.POSIX_FADV_SEQUENTIAL,
                       os.POSIX_FADV_RANDOM, os.POSIX_FADV_NOREUSE, os.POSIX_FADV_NORMAL):  # fmt: skip
            if self.random.random() < 0.5:
                os.posix_fadvise(self.descriptor, offset, size, advice)
                self._compare(os.pread(self.descriptor, size, offset), offset, size)

    def read_ahead(self) -> None:
        offset, size = self._range(1 << 20)
        if _LIBC.readahead(self.descriptor, ctypes.c_longlong(offset), ctypes.c_size_t(size)) != 0:
            self._fault(f"readahead: {os.strerror(ctypes.get_errno())}")
        self._compare(os.pread(self.descriptor, size, offset), offset, size)

    def reopen(self) -> None:
        os.close(self.descriptor)
        self.descriptor = os.open(self.path, os.O_RDONLY | self.random.choice((0, os.O_NOATIME, os.O_NONBLOCK)))

    def copy_out(self) -> None:
        """sendfile, splice and copy_file_range into something else."""
        offset, size = self._range(60_000)
        size = min(size, len(self.data) - offset)
        with open(os.memfd_create("out"), "w+b", buffering=0) as out:
            sent = os.sendfile(out.fileno(), self.descriptor, offset, size)
            self._compare(os.pread(out.fileno(), sent, 0), offset, size)
        reading, writing = os.pipe()
        try:
            moved = os.splice(self.descriptor, writing, size, offset_src=offset)
            self._compare(os.read(reading, moved), offset, moved)
        finally:
            os.close(reading)
            os.close(writing)

    def seek(self) -> None:
        offset = self.random.randrange(len(self.data))
        if os.lseek(self.descriptor, offset, os.SEEK_DATA) != offset:
            self._fault(f"SEEK_DATA at {offset}")
        if os.lseek(self.descriptor, offset, os.SEEK_HOLE) != len(self.data):
            self._fault(f"SEEK_HOLE at {offset}")
        if os.lseek(self.descriptor, 0, os.SEEK_END) != len(self.data):
            self._fault("SEEK_END")

    def stat(self) -> None:
        for found in (os.fstat(self.descriptor), os.stat(self.path)):
            if found.st_size != len(self.data):
                self._fault(f"the size is {found.st_size}, expected {len(self.data)}")

    def _keep(self, one: mmap.mmap) -> None:
        self.maps.append(one)
        if len(self.maps) > MAPS_MAX:
            self.maps.pop(self.random.randrange(MAPS_MAX)).close()

    def _range(self, size_max: int) -> tuple[int, int]:
        return self.random.randrange(len(self.data)), self.random.randrange(1, size_max)

    def _compare(self, found: bytes, offset: int, size: int) -> None:
        if found != self.data[offset : offset + size]:
            expected = self.data[offset : offset + size]
            at = next((n for n, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), len(found))
            self._fault(f"{len(found)} bytes at {offset}, expected {len(expected)}; the first wrong one is {at}")

    def _fault(self, what: str) -> None:
        if len(self.faults) < FAULTS_MAX:
            self.faults.append(what)


def main() -> None:
    mounted, reference, seed, operations = sys.argv[1:]
    reader = Reader(Path(mounted), Path(reference), int(seed))
    reader.run(int(operations))
    print(json.dumps({"done": reader.done, "faults": reader.faults}), flush=True)


if __name__ == "__main__":
    main()
