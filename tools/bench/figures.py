"""The figures: what is timed, in which state of the page cache, in which order, and what becomes of the times.

A figure compares one operation in the mount with the same one on a native file of the same bytes. A run is passes of at
most SLICE_S on either side in turn, taking turns at going first, until those of each side have taken ``seconds``; only
the passes are timed. What else the machine does hits both sides so. Each of RUNS runs gives a ratio of rates, and the
median of the ratios is what counts.

State of the page cache:
- ``first``: the pages of the file in the cache folder, and of the native file, are in memory; those that the mount has
  of its own are dropped before every pass. What a program gets that opens a cached file for the first time. With
  passthrough a mount has no pages of its own, and this is the same as ``again``.
- ``again``: nothing is dropped: whoever answers, the bytes are in memory.
- ``cold``: the pages of all three are dropped before every pass: the bytes come from the disk, or what is behind it.
- ``warm``: names and attributes are known to the kernel (stat); of lists only a pinned revision's are ever kept.
"""

from __future__ import annotations

import os
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.bench.loops import MIB
from tools.bench.workers import PASS_DEADLINE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tools.bench.subjects import Frames, LargeFile, Names
    from tools.bench.workers import Workers

RUNS = 5
READERS = 8
PASSES_MAX = 10_000
SLICE_S = 0.1
"""Longer than what one process is given of a busy CPU at a time, shorter than what a machine's load changes in."""
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
Job = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation: how it is called, the unit of its rate, and the jobs of its readers, in the mount and natively."""

    name: str
    unit: str
    state: str
    mount: list[Job]
    native: list[Job]


@dataclass(slots=True)
class Figure:
    """What became of one operation: rates in units a second, the daemon's part, the ratios pair by pair."""

    operation: str
    state: str
    unit: str
    mount: list[float] = field(default_factory=list)
    native: list[float] = field(default_factory=list)
    mount_s: float = 0.0
    daemon_cpu_s: float | None = 0.0

    def count_daemon(self, seconds: float, before: float | None, after: float | None) -> None:
        """One more mounted pass, and the daemon's CPU time at its ends; None where it is not known."""
        self.mount_s += seconds
        if before is None or after is None or self.daemon_cpu_s is None:
            self.daemon_cpu_s = None
        else:
            self.daemon_cpu_s += after - before

    @property
    def ratios(self) -> list[float]:
        return [ours / theirs for ours, theirs in zip(self.mount, self.native, strict=True)]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def daemon_cpu_share(self) -> float | None:
        """The daemon's CPU time by the time of the mounted passes; 1 is one CPU."""
        return None if self.daemon_cpu_s is None else self.daemon_cpu_s / self.mount_s

    def to_json(self) -> dict[str, Any]:
        return {
            "operation": self.operation,
            "state": self.state,
            "unit": self.unit,
            "mount": statistics.median(self.mount),
            "native": statistics.median(self.native),
            "ratio": self.ratio,
            "ratios": self.ratios,
            "mount_s": self.mount_s,
            "daemon_cpu_s": self.daemon_cpu_s,
            "daemon_cpu_share": self.daemon_cpu_share,
        }


def file_operations(file: LargeFile, native: Path, state: str) -> list[Operation]:
    """All that is done with the large file and its native twin."""
    drop = state != "again"
    whole = {"offset": 0, "length": file.length}

    def both(name: str, unit: str, loop: str, parts: list[dict[str, int]]) -> Operation:
        ours = [{"loop": loop, "path": str(file.path), "drop": drop, **part} for part in parts]
        theirs = [{"loop": loop, "path": str(native), "drop": False, **part} for part in parts]
        return Operation(name, unit, state, ours, theirs)

    step = -(-file.length // READERS // MIB) * MIB
    parts = [{"offset": at, "length": min(step, file.length - at)} for at in range(0, file.length, step)]
    return [
        both("sequential_1m", "bytes", "sequential", [whole]),
        both("random_4k", "reads", "random_reads", [whole]),
        both("mmap_sequential", "bytes", "mmap_sequential", [whole]),
        both("mmap_random", "pages", "mmap_random", [whole]),
        both("parallel_8", "bytes", "sequential", parts),
    ]


def frame_operations(frames: Frames, native: Path, state: str) -> list[Operation]:
    """Open, read and close of each frame."""
    job = {"loop": "frames", "names": frames.names}
    ours = {**job, "folder": str(frames.folder), "drop": state != "again"}
    return [Operation("frames", "files", state, [ours], [{**job, "folder": str(native), "drop": False}])]


def name_operations(names: Names, native: Path) -> list[Operation]:
    """Stat and list."""
    found = []
    for name, unit, loop in (("stat", "stats", "stats"), ("list", "names", "lists")):
        job: Job = {"loop": loop, "names": names.files} if loop == "stats" else {"loop": loop}
        ours, theirs = {**job, "folder": str(names.folder)}, {**job, "folder": str(native)}
        found.append(Operation(name, unit, "warm", [ours], [theirs]))
    return found


def cpu_s(pid: int) -> float | None:
    """CPU seconds, user and system, that a process has used, in ticks; None where that cannot be read.

    Source: proc(5), fields 14 and 15 of /proc/pid/stat.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def fill(workers: Workers, operations: Iterable[Operation]) -> None:
    """Bring the bytes of both sides into memory, in the same way: in order, in reads of 1 MiB."""
    for operation in operations:
        if operation.name in ("sequential_1m", "frames"):
            for jobs in (operation.native, operation.mount):
                workers.prepare([{**job, "deadline_s": PASS_DEADLINE_S} for job in jobs]).run()


def measure(
    workers: Workers,
    operation: Operation,
    *,
    pid: int,
    seconds: float,
    before_pass: Callable[[], None],
    advance: Callable[[int], None],
) -> Figure:
    """Run the operation RUNS times on either side, in turn, and shortly on both before that.

    ``pid`` is the daemon's; ``before_pass`` is called before each pass and not timed, ``advance`` after each run.
    """
    figure = Figure(operation.name, operation.state, operation.unit)

    def run_pass(side: _Side, limit_s: float, *, counted: bool) -> None:
        before_pass()
        prepared = workers.prepare([{**job, "deadline_s": limit_s} for job in side.jobs])
        before = cpu_s(pid)
        passed = prepared.run()
        if counted and side.is_mount:
            figure.count_daemon(passed.seconds, before, cpu_s(pid))
        side.seconds += passed.seconds
        side.units += passed.bytes if operation.unit == "bytes" else passed.count

    def sides() -> list[_Side]:
        return [_Side(operation.native, is_mount=False), _Side(operation.mount, is_mount=True)]

    for side in sides():
        run_pass(side, SLICE_S, counted=False)
    for number in range(RUNS):
        native, mount = both = sides()
        for turn in range(PASSES_MAX):
            waiting = [side for side in both if side.seconds < seconds]
            if not waiting:
                break
            for side in waiting if (number + turn) % 2 else reversed(waiting):
                run_pass(side, min(SLICE_S, seconds - side.seconds), counted=True)
        figure.mount.append(mount.units / mount.seconds)
        figure.native.append(native.units / native.seconds)
        advance(1)
    return figure


@dataclass(slots=True)
class _Side:
    """One side of a run: how long its passes took, and what they did."""

    jobs: list[Job]
    is_mount: bool
    seconds: float = 0.0
    units: float = 0.0
