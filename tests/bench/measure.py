"""Interleaved runs and their medians.

These machines drift: two things are compared by running them in turn, A B A B …, and dividing pair by pair.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RUNS = 5


def scaled(usual: int, full: int) -> int:
    """How many: ``usual``, or ``full`` with BENCH_FULL in the environment, which takes minutes."""
    return full if os.environ.get("BENCH_FULL") else usual


@dataclass(frozen=True)
class Ratio:
    """Ours against theirs: the median of the ratios pair by pair, and the medians of both, in seconds or another unit.

    ``aim`` is what the project wants of ``ratio``, with the direction in ``at_most``; None where it is only reported.
    """

    name: str
    ours: str
    theirs: str
    ratio: float
    ratios: list[float]
    ours_s: float
    theirs_s: float
    aim: float | None = None
    at_most: bool = True
    unit: str = "s"

    @property
    def met(self) -> bool | None:
        if self.aim is None:
            return None
        return self.ratio <= self.aim if self.at_most else self.ratio >= self.aim

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"met": self.met}


def from_times(
    name: str, ours: str, theirs: str, ours_s: list[float], theirs_s: list[float], *,
    aim: float | None = None, at_most: bool = True, rate: bool = False,
) -> Ratio:  # fmt: skip
    """The Ratio of times that were measured in turn; ``rate`` turns it round, into ours by theirs of the rates."""
    pairs = list(zip(ours_s, theirs_s, strict=True))
    ratios = [theirs / ours if rate else ours / theirs for ours, theirs in pairs]
    return Ratio(
        name, ours, theirs, statistics.median(ratios), ratios, statistics.median(ours_s), statistics.median(theirs_s),
        aim, at_most)  # fmt: skip


def seconds(work: Callable[[], object]) -> float:
    """How long it takes, in seconds of wall time."""
    gc.collect()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def drop_kernel_caches() -> bool:
    """Write back, and empty the kernel's caches of pages, names and inodes. False when that needs root."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    except PermissionError:
        return False
    return True


def read_through(path: Path, size_bytes: int = 1024 * 1024) -> int:
    """Read a file from end to end with read(2) of this size; returns the number of bytes."""
    buffer = bytearray(size_bytes)
    total = 0
    descriptor = os.open(path, os.O_RDONLY)
    try:
        while count := os.readv(descriptor, [buffer]):
            total += count
    finally:
        os.close(descriptor)
    return total


def forget_pages(path: Path) -> None:
    """Drop the kernel's cached pages of one file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
