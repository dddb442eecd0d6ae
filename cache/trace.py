"""A running sample of what is opened, by which ``advise`` tells what another size of the cache would do.

Sampled are files, not opens: of a file every open is in the sample, or none, by a hash of its tenant and content
[SHARDS: Waldspurger et al., FAST 2015]. Such a sample behaves in a cache that is smaller by its rate as all opens do in
the whole one. An open is the unit, for the reads of a complete file can pass the daemon by.

State: REFERENCES_MAX references at most, in arrays, 2.5 MiB. When they are full, the sample becomes half as dense while
it spans less than SPAN_MS; then its older half goes. It is written to ``<cache>/reads.trace`` every SAVE_S and at the
end, so that a restart costs the last minutes of it at most; a file that cannot be read is begun anew.

Belongs to the event loop, which pays 1 µs for an open, and 20 ms whenever the arrays are full.
"""

from __future__ import annotations

import logging
import struct
from array import array
from functools import lru_cache
from itertools import compress
from typing import TYPE_CHECKING, NamedTuple

import trio
from blake3 import blake3

from cache import durable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

logger = logging.getLogger(__name__)

REFERENCES_MAX = 65_536
SPAN_MS = 14 * 24 * 3600 * 1000
SAVE_S = 600.0
TRACE_NAME = "reads.trace"
KEYS = 1 << 63
"""A file is in the sample when its key, a number below this, is below the threshold."""
_MAGIC = b"damfs reads 1\n"
_HEADER = struct.Struct("<14sQQ")
_TENANTS_MAX = 4096


class Reference(NamedTuple):
    """One open of a file: when (Unix milliseconds), which, how large, and the group that it belongs to (0: none).

    ``all_bytes`` are those of all files opened so far, also of what is not in the sample; only differences count.
    """

    when_ms: int
    file: int
    size_bytes: int
    group: int
    all_bytes: int = 0


class Sample(NamedTuple):
    """References in the order of time, and the part of all files that they are of."""

    rate: float
    references: list[Reference]


class Trace:
    """See the module. ``found_bytes`` of ``asked_bytes`` were here at their opens, by measure, in this process."""

    def __init__(self) -> None:
        self.asked_bytes = 0
        self.found_bytes = 0
        self._threshold = KEYS
        self._columns = tuple(array("q") for _ in Reference._fields)
        self._all_bytes = 0
        self._is_changed = False

    def note(
        self, tenant: str, content: bytes, size_bytes: int, group: int, *, here_bytes: int | None, when_ms: int
    ) -> None:
        """A file is opened, of which ``here_bytes`` are here; None: that is not known."""
        if here_bytes is not None:
            self.asked_bytes += size_bytes
            self.found_bytes += here_bytes
        self._all_bytes = self._all_bytes + size_bytes & 2**63 - 1
        salt = _salt(tenant)
        file = int.from_bytes(content[:8], "little") >> 1 ^ salt
        if file < self._threshold:
            when, files, sizes, groups, totals = self._columns
            when.append(when_ms)
            files.append(file)
            sizes.append(size_bytes)
            groups.append(group ^ salt if group else 0)
            totals.append(self._all_bytes)
            self._is_changed = True
            if len(when) >= REFERENCES_MAX:
                self._thin()

    def packed(self) -> bytes:
        """The sample as ``unpack`` reads it."""
        return _HEADER.pack(_MAGIC, self._threshold, len(self._columns[0])) + b"".join(map(bytes, self._columns))

    def load(self, path: Path) -> None:
        """Go on with what an earlier process saved. Blocking."""
        try:
            self._threshold, self._columns = _parse(path.read_bytes())
            self._all_bytes = self._columns[-1][-1] if self._columns[-1] else 0
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            logger.warning("the sample of reads in %s cannot be used (%s): it is begun anew", path, error)

    async def run(self, path: Path) -> None:
        """Save now and then. Ends when cancelled; ``save`` once more after that."""
        while True:
            await trio.sleep(SAVE_S)
            await self.save(path)

    async def save(self, path: Path) -> None:
        """Write the sample if it has changed. Cancellation waits for the disk."""
        if self._is_changed:
            self._is_changed = False
            try:
                await trio.to_thread.run_sync(durable.write, path, self.packed())
            except OSError as error:
                logger.warning("the sample of reads cannot be saved in %s: %s", path, error)

    def _thin(self) -> None:
        when, files, *_ = self._columns
        if when[-1] - when[0] < SPAN_MS:
            self._threshold //= 2
            kept = [file < self._threshold for file in files]
        else:
            kept = [i >= len(files) // 2 for i in range(len(files))]
        self._columns = tuple(array("q", compress(column, kept)) for column in self._columns)


def unpack(packed: bytes) -> Sample:
    """The sample that ``Trace.packed`` gave. Raises ValueError."""
    threshold, columns = _parse(packed)
    return Sample(threshold / KEYS, sorted(_references(columns)))


def _references(columns: tuple[array[int], ...]) -> Iterator[Reference]:
    return map(Reference._make, zip(*columns, strict=True))


def _parse(packed: bytes) -> tuple[int, tuple[array[int], ...]]:
    if len(packed) < _HEADER.size:
        raise ValueError("it is too short")
    magic, threshold, count = _HEADER.unpack_from(packed)
    if magic != _MAGIC or not 0 < threshold <= KEYS or len(packed) != _HEADER.size + 8 * len(Reference._fields) * count:
        raise ValueError("it is no sample of this format")
    columns = []
    for start in range(_HEADER.size, len(packed), 8 * count or 1):
        column = array("q")
        column.frombytes(packed[start : start + 8 * count])
        columns.append(column)
    return threshold, tuple(columns) or tuple(array("q") for _ in Reference._fields)


@lru_cache(_TENANTS_MAX)
def _salt(tenant: str) -> int:
    return int.from_bytes(blake3(tenant.encode()).digest(8), "little") >> 1
