"""A show of 1,000,000 entries: applying them, scanning them through the mount, looking names up."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from manifest import layout
from manifest.library import Library
from manifest.replica import Replica
from manifest.trust import PinnedKeys, SigningKey
from tests.bench import applying
from tests.bench.measure import RUNS, Ratio, drop_kernel_caches, from_times, read_through, seconds
from tests.harness import Mount, Studio, detach, end, mounted_below, wait_until

FOLDERS = 1000
FILES = 1000
SMALL_SHOW_FILES = 1000
LOOKUPS = 20_000
STATS = 2_000
STAT_TURNS = 3
LOAD_TIMEOUT_S = 300
FIND_TIMEOUT_S = 300
MEMORY_AIM_MIB = 100


def measure(user: Studio, work: Path, note: Callable[[str], None]) -> list[Ratio]:
    """All figures of a show of a million entries. ``user``'s library has the shows ``million`` and ``small``."""
    trust = PinnedKeys.from_file(next((user.folder / "config").rglob("trust/*.json")))
    key = SigningKey.load(next((user.folder / "config").rglob("key.pem")))
    library = Library.open(user.url)
    note(f"making a changeset of {FOLDERS * FILES:,} entries")
    shows = {
        "million": applying.make_show(trust.library_id, "million", key, applying.files(FOLDERS, FILES)),
        "small": applying.make_show(trust.library_id, "small", key, applying.files(1, SMALL_SHOW_FILES)),
    }
    for show, (stored, entry, compressed) in shows.items():
        library.put(layout.change_key(show, entry.change), compressed)
        library.create(layout.log_key(show, 1), stored)
    what = f"{FOLDERS * FILES:,} entries"
    results = [applying.first_ratio(work / "million.db", trust, key.keyid, shows["million"], what, note)]
    results += applying.measure(work, trust, key, note)
    results += lookup_ratio(work, trust, key.keyid, shows)
    results += scan(user, note)
    return results


def lookup_ratio(work: Path, trust: PinnedKeys, keyid: str, shows: dict[str, applying.Show]) -> list[Ratio]:
    """Look-ups of names in the replica: a show of a million entries against one of a thousand."""
    applying.apply(work / "small.db", trust, keyid, shows["small"])
    choices = random.Random(1)
    readers = {name: Replica.open_reader(work / f"{name}.db") for name in shows}
    small = readers["small"].resolve("f000000", 1)
    assert small is not None
    nodes = [row.node for row in readers["million"].list(0, 1, limit=FOLDERS)]
    names = {
        "million": [(choices.choice(nodes), choices.randrange(FILES)) for _ in range(LOOKUPS)],
        "small": [(small.node, choices.randrange(SMALL_SHOW_FILES)) for _ in range(LOOKUPS)],
    }
    times: dict[str, list[float]] = {"million": [], "small": []}
    for _ in range(RUNS + 1):
        for show, reader in readers.items():
            wanted = [(node or 0, f"plate.{number:06d}.exr") for node, number in names[show]]
            started = time.perf_counter()
            for node, name in wanted:
                assert reader.lookup(node, name, 1) is not None
            times[show].append(time.perf_counter() - started)
    for reader in readers.values():
        reader.close()
    return [from_times("look-up in the replica of 1,000,000 (time)", "1,000,000 entries", "1,000 entries",
                       times["million"][1:], times["small"][1:], aim=1.3)]  # fmt: skip


def scan(user: Studio, note: Callable[[str], None]) -> list[Ratio]:
    """A cold ``find`` and cold look-ups through the mount."""
    with loaded(user, note):
        pass
    ours_s: list[float] = []
    theirs_s: list[float] = []
    memory: list[float] = []
    stats: dict[str, list[float]] = {"million": [], "small": []}
    for run in range(RUNS):
        note(f"cold find of a million names, run {run + 1} of {RUNS}")
        with empty_tree(user.folder / "empty") as tree:
            drop_kernel_caches()
            theirs_s.append(seconds(partial(find, tree)))
        with loaded(user, note) as mount:
            for turn in range(STAT_TURNS):
                drop_kernel_caches()
                for replica in (user.folder / "cache-million").rglob("*.db"):
                    read_through(replica)  # the disk is not what is measured here
                for show, folders, files in (("small", 1, SMALL_SHOW_FILES), ("million", FOLDERS, FILES)):
                    stats[show].append(stat_random(mount.path / show, folders, files, run * STAT_TURNS + turn))
            before = resident_mib(mount.pid)
            drop_kernel_caches()
            ours_s.append(seconds(partial(find, mount.path / "million")))
            memory.append(resident_mib(mount.pid) - before)
    growth = max(memory)
    return [
        from_times("cold find of 1,000,000 names (rate)", "mount", "empty-handed pyfuse3 tree", ours_s, theirs_s,
                   aim=0.6, at_most=False, rate=True),
        from_times("cold stat through the mount (time)", "1,000,000 entries", "1,000 entries",
                   stats["million"], stats["small"], aim=1.3),
        Ratio("daemon's memory growth during find (MiB)", "mount", "before", growth, memory, growth, 0.0,
              float(MEMORY_AIM_MIB)),
    ]  # fmt: skip


def serves(mount: Mount, show: str) -> bool:
    """Whether the mount shows the first revision of a show."""
    found = mount.status()["shows"].get(show)
    return found is not None and found["revision"] == 1


def find(folder: Path) -> None:
    """``find`` with its output thrown away. Raises when it did not see a million files."""
    done = subprocess.run(["find", folder, "-type", "f", "-printf", "."], check=True, capture_output=True,
                          timeout=FIND_TIMEOUT_S)  # fmt: skip
    assert len(done.stdout) == FOLDERS * FILES


def stat_random(folder: Path, folders: int, files: int, seed: int) -> float:
    """Seconds that STATS look-ups of names take that the kernel has not seen."""
    choices = random.Random(seed)
    for number in range(folders):
        (folder / f"f{number:06d}").stat()
    paths = [folder / f"f{choices.randrange(folders):06d}" / f"plate.{number:06d}.exr"
             for number in choices.sample(range(files), min(STATS, files))]  # fmt: skip
    started = time.perf_counter()
    for path in paths:
        path.stat()
    return time.perf_counter() - started


def resident_mib(pid: int) -> float:
    """The anonymous memory of a process, in MiB: what it holds, not the files that it has mapped."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no RssAnon")


@contextmanager
def loaded(user: Studio, note: Callable[[str], None]) -> Iterator[Mount]:
    """A fresh mount that serves both shows whole."""
    mount = user.mount("--cache", user.folder / "cache-million")
    try:
        for show in ("small", "million"):
            note(f"waiting for {show}")
            with suppress(OSError):  # the first who asks for it is told at a deadline that it takes longer
                (mount.path / show).stat()
            wait_until(partial(serves, mount, show), show, LOAD_TIMEOUT_S)
        yield mount
    finally:
        user.unmount(mount)


@contextmanager
def empty_tree(mountpoint: Path) -> Iterator[Path]:
    """The empty-handed pyfuse3 tree of the same shape."""
    mountpoint.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.bench.empty_tree", str(mountpoint), str(FOLDERS), str(FILES)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: mountpoint in mounted_below(mountpoint.parent), "the empty tree to be mounted")
        yield mountpoint
    finally:
        detach(mountpoint)
        end(server.pid)
        server.wait(20)
