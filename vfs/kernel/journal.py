"""What a successor must know of a mount: a table in memory that outlives the process (a memfd).

The memfd is kept by whoever supervises the daemon, beside /dev/fuse; a killed daemon leaves it exactly as it was, for
its pages belong to the kernel. Nothing of it is ever on a disk.

    0        header      MAGIC, format, bytes of the facts, the facts: JSON, written once at the mount
    4096     counters    handles given so far, hand-overs, longest and last pause in ns
    8192     shows       4096 x u64: the revision that the kernel was told of, by slot; 0: the show was not loaded
    65536    handles     2^20 records of 40 bytes: the files that are open

Rules:
- All but the header is words of 64 bits, each written by one store: a kill leaves a word old or new, never torn, and
  never the zero that ``struct.pack_into`` writes first.
- A record is written body first and its number last, and cleared by its number alone: a kill in between leaves it
  unused, or whole.
- A handle's record is there before the kernel is told of the handle, and gone before its backing id is given back: a
  backing id in here is valid. What a kill leaves in between is given back by the successor: a record that is cleared
  still has its id, and one that was lent last and has no record is the newest (``handover.reclaim``).
- The number of a handle is ``count << 20 | index of its record``: never used twice, so a RELEASE that the kernel
  repeats hits nobody else.
"""

from __future__ import annotations

import json
import mmap
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from struct import Struct
from typing import Any, Final, NamedTuple

from manifest.errors import ConfigurationError
from vfs.errno import TooManyHandles
from vfs.inodes import SLOT_MAX

MAGIC: Final = b"damfs.journal\0\0\0"
FORMAT: Final = 1

_HEADER: Final = Struct("<16sII")
_INDEX_BITS: Final = 20
HANDLES_MAX: Final = 1 << _INDEX_BITS
_WORD_BYTES: Final = 8
_COUNTERS: Final = 4096 // _WORD_BYTES
"""From here on these are indexes of words."""
_SHOWS: Final = 8192 // _WORD_BYTES
_HANDLES: Final = 65536 // _WORD_BYTES
_RECORD: Final = 5
"""Words of a record: handle, ino, unique of the OPEN, spare, backing id."""
_BYTES: Final = (_HANDLES + HANDLES_MAX * _RECORD) * _WORD_BYTES

assert _SHOWS + SLOT_MAX + 1 <= _HANDLES


@dataclass(frozen=True, slots=True)
class Facts:
    """What was settled when the mount was made. ``flags``: those of INIT that are in force; ``minor``: the protocol."""

    mountpoint: str
    library_id: str
    minor: int
    flags: int
    max_background: int


class Open(NamedTuple):
    """One open file: its handle, its inode, the request that opened it, its backing id (0: none)."""

    handle: int
    ino: int
    unique: int
    backing_id: int


class Handovers(NamedTuple):
    """How often the mount has changed hands, and for how long nobody answered (ns)."""

    times: int
    last_pause_ns: int
    longest_pause_ns: int


class Journal:
    """See the module. Used from the event loop's thread, but ``told``, which the notifier's thread calls."""

    def __init__(self, fd: int) -> None:
        """Use ``create`` or ``adopt``."""
        self.fd = fd
        self._map = mmap.mmap(fd, _BYTES)
        self._words = memoryview(self._map).cast("Q")
        self._count, self._handovers, self._last_ns, self._longest_ns = self._words[_COUNTERS : _COUNTERS + 4]
        self._free: deque[int] = deque()
        self._end = 0
        self.ids_before: set[int] = set()
        """The backing ids of files that a predecessor saw closed; it may have died before it gave one back."""

    @classmethod
    def create(cls, facts: Facts) -> Journal:
        """A new one, for a new mount. Raises OSError."""
        fd = os.memfd_create("damfs-journal", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, _BYTES)
            text = json.dumps(asdict(facts)).encode()
            assert len(text) <= _COUNTERS * _WORD_BYTES - _HEADER.size
            os.pwrite(fd, _HEADER.pack(MAGIC, FORMAT, len(text)) + text, 0)
            return cls(fd)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def adopt(cls, fd: int) -> tuple[Journal, Facts, list[Open]]:
        """A predecessor's: what it was about, and the files that are open. Raises ConfigurationError."""
        facts = read_facts(fd)
        if os.fstat(fd).st_size != _BYTES:
            raise _damaged(f"it has {os.fstat(fd).st_size} bytes, expected {_BYTES}")
        journal = cls(fd)
        opened = list(journal._scan())
        return journal, facts, opened

    def opened(self, ino: int, unique: int, backing_id: int) -> int:
        """Write down a file that is about to be open; its handle. Raises TooManyHandles."""
        if self._free:
            index = self._free.popleft()
        elif self._end < HANDLES_MAX:
            index, self._end = self._end, self._end + 1
        else:
            raise TooManyHandles(f"{HANDLES_MAX} files are open")
        words = self._words
        self._count += 1
        words[_COUNTERS] = self._count
        handle = self._count << _INDEX_BITS | index
        at = _HANDLES + index * _RECORD
        words[at + 1] = ino
        words[at + 2] = unique
        words[at + 4] = backing_id
        words[at] = handle
        return handle

    def released(self, handle: int) -> bool:
        """Strike a file out; False when it was not in here."""
        index = handle & (HANDLES_MAX - 1)
        at = _HANDLES + index * _RECORD
        if not handle or self._words[at] != handle:
            return False
        self._words[at] = 0
        self._free.append(index)
        return True

    def told(self, slot: int, revision: int) -> None:
        """The kernel was told everything about the show in this slot up to a revision."""
        self._words[_SHOWS + slot] = revision + 1

    def told_of(self) -> dict[int, int]:
        """The revision that the kernel was told of, by slot, for the shows that were loaded."""
        values = self._words[_SHOWS : _SHOWS + SLOT_MAX + 1]
        return {slot: value - 1 for slot, value in enumerate(values) if value}

    def handed_over(self, pause_ns: int) -> None:
        """Count a hand-over."""
        self._handovers += 1
        self._last_ns = pause_ns
        self._longest_ns = max(self._longest_ns, pause_ns)
        words = self._words
        words[_COUNTERS + 2] = self._last_ns
        words[_COUNTERS + 3] = self._longest_ns
        words[_COUNTERS + 1] = self._handovers

    @property
    def handovers(self) -> Handovers:
        return Handovers(self._handovers, self._last_ns, self._longest_ns)

    def close(self) -> None:
        """Let go of it; whoever keeps it still has it."""
        self._words.release()
        self._map.close()
        os.close(self.fd)

    def _scan(self) -> Iterator[Open]:
        """All open files; learns which records are free. The memfd is sparse: what was never used reads as zeros."""
        done = 0
        record_bytes, begin_bytes = _RECORD * _WORD_BYTES, _HANDLES * _WORD_BYTES
        for begin, end in _data_ranges(self.fd, begin_bytes):
            first = max(done, (begin - begin_bytes) // record_bytes)
            last = min(HANDLES_MAX, -(-(end - begin_bytes) // record_bytes))
            self._free.extend(range(done, first))
            for index in range(first, last):
                at = _HANDLES + index * _RECORD
                handle, ino, unique, _, backing_id = self._words[at : at + _RECORD]
                if handle:
                    yield Open(handle, ino, unique, backing_id)
                else:
                    self._free.append(index)
                    if backing_id:
                        self.ids_before.add(backing_id)
            done = max(done, last)
        self._end = done


def read_facts(fd: int) -> Facts:
    """What a journal is about, without taking it over. Raises ConfigurationError when it is not one of ours."""
    try:
        head = os.pread(fd, _HEADER.size, 0)
    except OSError:  # a socket, a pipe
        head = b""
    if len(head) != _HEADER.size or not head.startswith(MAGIC):
        raise ConfigurationError("what was kept as the mount's journal is none: the mount cannot be taken over")
    _, version, size = _HEADER.unpack(head)
    if version != FORMAT:
        raise ConfigurationError(
            f"the mount's journal has format {version}, this damfs knows {FORMAT}: unmount, and mount again"
        )
    try:
        found: Any = json.loads(os.pread(fd, size, _HEADER.size))
        return Facts(**found)
    except (ValueError, TypeError) as error:
        raise _damaged(str(error)) from error


def _damaged(why: str) -> ConfigurationError:
    return ConfigurationError(f"the mount's journal is damaged ({why}): unmount, and mount again")


def _data_ranges(fd: int, at: int) -> Iterator[tuple[int, int]]:
    """Where, from an offset on, the memfd has data."""
    while True:
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # ENXIO: no more
            return
        at = os.lseek(fd, begin, os.SEEK_HOLE)
        yield begin, at
