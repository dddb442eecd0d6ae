"""The memory that a publish reads into: blocks of a few sizes, used again, within one budget.

State: the free blocks, and how many blocks and bytes are out. Rules: what is out and what is kept never exceeds the
budget, nor what is out a number of blocks; a block is used again only when everybody gave it back and nobody spoilt it
(a request that timed out may still be sending from it); who asked first is served first. Fresh memory costs a page
fault per 4 KiB, which halved the speed of a publish (measured): that is why blocks are kept.
"""

from __future__ import annotations

import threading
from collections import defaultdict

KIB = 1024
MIB = 1024 * KIB
BUDGET_BYTES = 256 * MIB
BLOCK_BYTES_MAX = 32 * MIB
BLOCKS_MAX = 256
"""Out at a time. Far more than uploaders can be busy with; small files would else be read ahead by the thousand, each
into the smallest block."""
_SIZES = (64 * KIB, 256 * KIB, 1 * MIB, 4 * MIB, 12 * MIB, 20 * MIB, BLOCK_BYTES_MAX)


class Stopped(Exception):
    """The publish is being given up; internal to the pipeline."""


class Block:
    """Some memory, given back when ``release`` was called once per ``hold`` (it begins held once)."""

    __slots__ = ("_blocks", "_holds", "_lock", "_spoilt", "buffer", "view")

    def __init__(self, blocks: Blocks, buffer: bytearray) -> None:
        self._blocks = blocks
        self._holds = 1
        self._lock = threading.Lock()
        self._spoilt = False
        self.buffer = buffer
        self.view = memoryview(buffer)

    def hold(self, count: int = 1) -> None:
        """``count`` more users."""
        with self._lock:
            self._holds += count

    def release(self) -> None:
        """One user less."""
        with self._lock:
            self._holds -= 1
            last = self._holds == 0
            assert self._holds >= 0
        if last:
            self._blocks._take_back(self.buffer, keep=not self._spoilt)  # noqa: SLF001 - one class in two

    def spoil(self) -> None:
        """Somebody may go on reading this memory after the release: it is not to be used again."""
        self._spoilt = True


class Blocks:
    """Hands out blocks. Thread-safe."""

    def __init__(self, budget_bytes: int = BUDGET_BYTES) -> None:
        self.budget_bytes = budget_bytes
        self._out = 0
        self._out_bytes = 0
        self._kept_bytes = 0
        self._kept: defaultdict[int, list[bytearray]] = defaultdict(list)
        self._turn = threading.Lock()
        self._changed = threading.Condition()
        self._stopped = False

    def get(self, size_bytes: int) -> Block:
        """A block of at least ``size_bytes`` (at most BLOCK_BYTES_MAX), as soon as there is room. Raises Stopped."""
        size = next(size for size in _SIZES if size >= size_bytes)
        with self._turn, self._changed:
            while self._out >= BLOCKS_MAX or self._out_bytes + size > self.budget_bytes:
                if self._stopped:
                    raise Stopped
                self._changed.wait()
            if self._stopped:
                raise Stopped
            self._out += 1
            self._out_bytes += size
            if self._kept[size]:
                self._kept_bytes -= size
                return Block(self, self._kept[size].pop())
            self._drop_kept()
        return Block(self, bytearray(size))

    def stop(self) -> None:
        """Wake everybody who waits, with Stopped."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _take_back(self, buffer: bytearray, *, keep: bool) -> None:
        with self._changed:
            self._out -= 1
            self._out_bytes -= len(buffer)
            if keep:
                self._kept[len(buffer)].append(buffer)
                self._kept_bytes += len(buffer)
                self._drop_kept()
            self._changed.notify_all()

    def _drop_kept(self) -> None:
        """Forget kept blocks, the largest first, until everything fits the budget."""
        for size in reversed(_SIZES):
            while self._kept[size] and self._out_bytes + self._kept_bytes > self.budget_bytes:
                self._kept[size].pop()
                self._kept_bytes -= size
