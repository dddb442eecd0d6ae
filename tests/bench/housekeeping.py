"""What the cache's housekeeping costs: cached reads beside it, CPU time per GB, memory per cached object.

A studio's afternoon in one machine: pinned frames are opened and read, 64 KiB at a random place each, while another
program streams files through the cache that do not fit, so that all the time chunks are fetched, hashed and written,
and others evicted. Against it the same reads beside programs that burn as much CPU time as all of that did, and touch
no disk: what remains is what waits for the cache itself.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.measure import RUNS, Ratio
from tests.harness import REPOSITORY, Mount, Studio
from tools.bench.figures import cpu_s

HOT_FILES, HOT_BYTES = 64, 4 * 1024**2
COLD_FILES, COLD_BYTES = 96, 16 * 1024**2
CACHE_SIZE = "1GiB"
READ_BYTES = 64 * 1024
PROBE_S = 4.0
SETTLE_S = 1.0
OBJECTS = 1_000_000
OBJECTS_TIMEOUT_S = 600
GB = 1e9
_STREAM = """
import os, sys
buffer = bytearray(1 << 20)
while True:
    for path in sys.argv[1:]:
        fd = os.open(path, os.O_RDONLY)
        while os.readv(fd, [buffer]):
            pass
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
"""
_BURN = """
import sys, time
share = float(sys.argv[1])
while True:
    until = time.perf_counter() + 0.02 * share
    while time.perf_counter() < until:
        pass
    time.sleep(0.02 * (1 - share))
"""
Note = Callable[[str], None]


def measure(user: Studio, work: Path, note: Note) -> list[Ratio]:
    """All of it. ``user``'s library has the show ``apollo``."""
    return [*beside_it(user, work, note), objects(work, note)]


def beside_it(user: Studio, work: Path, note: Note) -> list[Ratio]:
    """The 99th percentile of open, read and close of cached files, and what a GB fetched, kept and evicted takes."""
    note(f"publishing {(HOT_FILES * HOT_BYTES + COLD_FILES * COLD_BYTES) >> 20:,} MiB")
    for name, count, size_bytes in (("hot", HOT_FILES, HOT_BYTES), ("cold", COLD_FILES, COLD_BYTES)):
        folder = work / name
        folder.mkdir()
        for number in range(count):
            (folder / f"{name}{number:03d}.dpx").write_bytes(os.urandom(size_bytes))
        user.run("publish", folder, f"apollo:{name}/v001", timeout_s=600)
    mount = user.mount("--cache-size", CACHE_SIZE)
    user.run("pin", "apollo:hot/v001", timeout_s=120)
    hot = sorted((mount.path / "apollo/hot/v001").iterdir())
    cold = sorted((mount.path / "apollo/cold/v001").iterdir())
    busy_s: list[float] = []
    calm_s: list[float] = []
    cpu_per_gb: list[float] = []
    wall_per_gb: list[float] = []
    for run in range(RUNS):
        note(f"cached reads beside fills and evictions, run {run + 1} of {RUNS}")
        with running(_STREAM, *map(str, cold)) as stream:
            time.sleep(SETTLE_S)
            before = _spent(mount, stream)
            evicted = _evicted_bytes(mount)
            began = time.monotonic()
            busy_s.append(_p99_s(hot))
            took_s = time.monotonic() - began
            spent_s = _spent(mount, stream) - before
            evicted = _evicted_bytes(mount) - evicted
        assert evicted > 0, "nothing was evicted: it was no housekeeping"
        cpu_per_gb.append(spent_s / (evicted / GB))
        wall_per_gb.append(took_s / (evicted / GB))
        share = min(0.95, spent_s / took_s / 2)
        with running(_BURN, str(share)), running(_BURN, str(share)):
            time.sleep(SETTLE_S)
            calm_s.append(_p99_s(hot))
    user.unmount(mount)
    ratios = [busy / calm for busy, calm in zip(busy_s, calm_s, strict=True)]
    return [
        Ratio("99th percentile of cached reads (time)", "beside fills and evictions", "beside as much CPU time",
              statistics.median(ratios), ratios, statistics.median(busy_s), statistics.median(calm_s), 1.5),
        Ratio("a GB read, fetched, kept, and another one evicted (CPU time)", "daemon and reader", "elapsed",
              statistics.median(c / w for c, w in zip(cpu_per_gb, wall_per_gb, strict=True)),
              [c / w for c, w in zip(cpu_per_gb, wall_per_gb, strict=True)],
              statistics.median(cpu_per_gb), statistics.median(wall_per_gb)),
    ]  # fmt: skip


def objects(work: Path, note: Note) -> Ratio:
    """Resident memory that a cache of a million objects takes, open and after evictions, in MB; and its start."""
    note(f"a cache of {OBJECTS:,} objects")
    folder = work / "objects"
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.many_objects", folder, str(OBJECTS)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=OBJECTS_TIMEOUT_S, check=True,
    )  # fmt: skip
    told = json.loads(done.stdout)
    grown_mb = told["grown_bytes"] / 1e6
    note(f"opened in {told['open_s']:.2f} s; {told['evicted']:,} objects evicted in {told['evict_s']:.2f} s")
    return Ratio(f"memory of a cache of {OBJECTS:,} objects (MB)", "open, used and evicted from", "before", grown_mb,
                 [grown_mb], grown_mb, 0.0, 100)  # fmt: skip


@contextmanager
def running(program: str, *arguments: str) -> Iterator[int]:
    """A Python program beside this one, by its pid, until the end of the block."""
    process = subprocess.Popen([sys.executable, "-c", program, *arguments])
    try:
        yield process.pid
        assert process.poll() is None, "it ended"
    finally:
        process.kill()
        process.wait(10)


def _p99_s(paths: list[Path]) -> float:
    taken_s = []
    end = time.monotonic() + PROBE_S
    dice = random.Random(1)
    while time.monotonic() < end:
        path, offset = dice.choice(paths), dice.randrange(HOT_BYTES - READ_BYTES)
        began = time.perf_counter()
        descriptor = os.open(path, os.O_RDONLY)
        count = len(os.pread(descriptor, READ_BYTES, offset))
        os.close(descriptor)
        taken_s.append(time.perf_counter() - began)
        assert count == READ_BYTES
    return statistics.quantiles(taken_s, n=100)[98]


def _spent(mount: Mount, stream: int) -> float:
    found = [cpu_s(pid) for pid in (mount.pid, stream)]
    return sum(spent for spent in found if spent is not None)


def _evicted_bytes(mount: Mount) -> int:
    return int(mount.status()["cache"]["evicted_bytes"])
