"""What a binding costs: cold look-ups against a minimal C loop, cold listings, and the figures of ``damfs bench``.

Cold names are those of a fresh mount, on both sides: nothing was looked up before but the folder itself. (Dropping the
kernel's names instead would have it send as many FORGETs, which would be answered while the next look-ups are timed.)
The client is a program in C, the same on both sides. A look-up is mostly two wake-ups, and those cost several times
as much between two CPUs as on one: the scheduler's choice is measured (a busy machine puts both on one), and with the
client and the server held on two CPUs, as they are where there are idle ones.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.c_programs import Programs, why_not
from tests.bench.measure import RUNS, Ratio, from_times, read_through, seconds
from tests.harness import Mount, Studio, wait_until
from tools.bench.figures import cpu_s

NAMES = 30_000
FILE_BYTES = 2 * 1024**3
FRAMES = 40
FRAME_BYTES = 16 * 1024**2
CACHE_SIZE = "20GiB"
"""The file is far below a quarter of it: what is larger may be served in another way."""
PUBLISH_TIMEOUT_S = 600
BENCH_TIMEOUT_S = 900
AIMS = {"sequential_1m": 0.95, "mmap_sequential": 0.95, "mmap_random": 0.95, "random_4k": 0.9}
CPU_AIM = 0.02
GIB = 1024**3
Note = Callable[[str], None]


def measure(user: Studio, work: Path, note: Note) -> list[Ratio]:
    """All of it. ``user``'s library has the show ``apollo``."""
    results: list[Ratio] = []
    missing = why_not()
    if missing:
        note(f"no look-ups against a C loop: {missing}")
    else:
        results += look_ups(user, work, Programs.build(work / "programs"), note)
    return results + reads(user, work, note)


def look_ups(user: Studio, work: Path, programs: Programs, note: Note) -> list[Ratio]:
    """Stat of names that were never looked up, and listings of folders that were never listed."""
    note(f"publishing {NAMES:,} names, four times")
    source = work / "names"
    source.mkdir()
    for number in range(NAMES):
        (source / f"plate.{number:06d}.exr").touch()
    for version in ("v001", "v002", "v003", "v004"):
        user.run("publish", source, f"apollo:names/{version}", timeout_s=PUBLISH_TIMEOUT_S)
    times: dict[str, list[float]] = defaultdict(list)

    def scan(what: str, how: str, folder: Path, pid: int, cpu: int | None = None) -> None:
        before = cpu_s(pid)
        times[what].append(programs.scan(how, folder, NAMES, cpu))
        after = cpu_s(pid)
        assert before is not None
        assert after is not None
        times[f"{what} cpu"].append(max(after - before, 0.01))

    client, *others = sorted(os.sched_getaffinity(0))
    binding = ""
    for run in range(RUNS):
        note(f"cold look-ups and listings of {NAMES:,} names, run {run + 1} of {RUNS}")
        for how in ("stat", "list"):
            with programs.mounted(work / "loop", NAMES) as loop:
                scan(f"loop {how}", how, loop.path, loop.pid)
        with served(user) as mount:
            binding = str(mount.status()["binding"])
            versions = mount.path / "apollo/names"
            scan("stat", "stat", versions / "v001", mount.pid)
            scan("list", "list", versions / "v002", mount.pid)
            (versions / "v003").stat()
            times["ls"].append(seconds(partial(ls, versions / "v003")))
            if others:
                with programs.mounted(work / "loop", NAMES, others[0]) as loop:
                    scan("loop apart", "stat", loop.path, loop.pid, client)
                keep_on(mount.pid, others)
                scan("apart", "stat", versions / "v004", mount.pid, client)
    aims = {"look-up": 0.8, "list": 5.0} if binding == "kernel" else {}
    names, bare = f"{NAMES:,} names, {binding}", "single look-ups"
    found = [
        from_times(f"cold look-ups of {names} (rate)", "mount", "C loop", times["stat"], times["loop stat"],
                   aim=aims.get("look-up"), at_most=False, rate=True),
        from_times(f"cold look-ups of {names} (the server's CPU time)", "daemon", "C loop", times["stat cpu"],
                   times["loop stat cpu"]),
        from_times(f"cold list and lstat of {names} (speed)", "list and lstat", bare, times["list"], times["stat"],
                   aim=aims.get("list"), at_most=False, rate=True),
        from_times(f"cold ls -l of {names} (speed)", "ls -l", bare, times["ls"], times["stat"],
                   aim=aims.get("list"), at_most=False, rate=True),
        from_times(f"cold list and lstat of {NAMES:,} names, C loop (speed)", "list and lstat", bare,
                   times["loop list"], times["loop stat"], at_most=False, rate=True),
    ]  # fmt: skip
    if others:
        found.append(from_times(f"cold look-ups of {names}, client and server on two CPUs (rate)", "mount", "C loop",
                                times["apart"], times["loop apart"], at_most=False, rate=True))  # fmt: skip
    return found


def keep_on(pid: int, cpus: list[int]) -> None:
    """Hold all threads of a process on some CPUs."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), cpus)


def ls(folder: Path) -> None:
    """``ls -l`` as people call it, its output thrown away."""
    subprocess.run(["ls", "-l", folder], stdout=subprocess.DEVNULL, check=True, timeout=BENCH_TIMEOUT_S)


def reads(user: Studio, work: Path, note: Note) -> list[Ratio]:
    """``damfs bench`` on a fresh mount, of a file of 2 GiB and frames that are in the cache completely."""
    note(f"publishing {(FILE_BYTES + FRAMES * FRAME_BYTES) >> 20:,} MiB")
    source = work / "reads-cached"
    (source / "plate").mkdir(parents=True)
    _fill(source / "movie.mov", FILE_BYTES)
    for number in range(1001, 1001 + FRAMES):
        _fill(source / "plate" / f"plate.{number}.exr", FRAME_BYTES)
    user.run("publish", source, "apollo:cached/v001", timeout_s=PUBLISH_TIMEOUT_S)
    with served(user) as mount:
        note("filling the cache")
        for path in sorted((mount.path / "apollo/cached/v001").rglob("*.*")):
            read_through(path)
    with served(user) as mount:
        note("damfs bench")
        folder = Path("apollo/cached/v001")
        many = Path("apollo/names/v001")
        names = many if (mount.path / many).is_dir() else folder / "plate"
        options = ("--file", folder / "movie.mov", "--frames", folder / "plate", "--names", names, "--json")
        printed = user.run("bench", mount.path, *options, timeout_s=BENCH_TIMEOUT_S)
    return figures(printed)


def figures(printed: str) -> list[Ratio]:
    """What ``damfs bench --json`` printed, as ratios; the times are seconds a GiB, or a thousand of what is counted."""
    told: dict[str, Any] = json.loads(printed)
    binding, is_kernel = told["binding"], told["binding"] == "kernel"
    assert told["file"]["measured_bytes"] == FILE_BYTES, "too little free memory for a file of 2 GiB"
    assert told["file"]["warming_s"] == told["frames"]["warming_s"] == 0, "it was not cached"
    found = []
    for figure in told["figures"]:
        what = f"{figure['operation']}, {figure['state']}, {binding}"
        scale, unit = (GIB, "GiB") if figure["unit"] == "bytes" else (1000, f"1,000 {figure['unit']}")
        found.append(Ratio(f"{what} (rate)", f"mount, a {unit}", f"native, a {unit}", figure["ratio"], figure["ratios"],
                           scale / figure["mount"], scale / figure["native"],
                           AIMS.get(figure["operation"]) if is_kernel else None, at_most=False))  # fmt: skip
        share = figure["daemon_cpu_share"]
        if figure["operation"] not in AIMS or figure["state"] != "first":
            continue
        found.append(Ratio(f"{what}: the daemon's CPU time", "daemon", "reading", share, [share],
                           figure["daemon_cpu_s"], figure["mount_s"],
                           CPU_AIM if is_kernel else None))  # fmt: skip
    return found


@contextmanager
def served(user: Studio) -> Iterator[Mount]:
    """A fresh mount that serves the head of apollo."""
    mount = user.mount("--cache-size", CACHE_SIZE)
    try:
        head = user.json("log", "apollo", "-n", "1")["revisions"][0]["revision"]
        (mount.path / "apollo").stat()
        wait_until(lambda: mount.status()["shows"]["apollo"]["revision"] == head, "apollo to be served", 120)
        yield mount
    finally:
        user.unmount(mount)


def _fill(path: Path, size_bytes: int) -> None:
    with path.open("wb") as file:
        for _ in range(size_bytes >> 20):
            file.write(os.urandom(1 << 20))
