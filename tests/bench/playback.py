"""Playback of cold frames over a network, and what is fetched in vain when the player jumps.

``late`` is reported as frames against all frames; ``in vain`` as bytes that were fetched and not read against all that
were fetched. The network (10 ms, 400 MB/s) stands between the mount and the site's nginx, which has everything.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.bench.cold import make, warm_site
from tests.bench.measure import Ratio, scaled
from tests.bench.site import artist, network, site, why_not
from tests.harness import REPOSITORY, Mount, Studio, wait_until

FRAMES = scaled(96, 240)
FRAME_BYTES = 12 * 1000 * 1000
FPS = 24
LATENCY_S = 0.01
BYTES_PER_S = 400e6
RUNS = 3
PART = 2 * FPS
"""So long the player stays where it is."""
LATE_AIM = 0.0
IN_VAIN_AIM = 0.1
Note = Callable[[str], None]


def measure(user: Studio, work: Path, note: Note) -> list[Ratio]:
    """All of it. ``user``'s library is a folder with the show ``apollo``."""
    missing = why_not()
    if missing:
        note(f"no playback: {missing}")
        return []
    note(f"playback: {FRAMES} frames of {FRAME_BYTES // 10**6} MB at {FPS} a second, {RUNS} times")
    folder = work / "playback"
    folder.mkdir()
    names = make(folder / "frames", [f"plate.{number:04d}.dpx" for number in range(FRAMES)], FRAME_BYTES)
    user.run("publish", folder / "frames", "apollo:plate/v001", timeout_s=600)
    played: list[dict[str, Any]] = []
    jumped: list[tuple[int, int]] = []
    with (
        site(user, folder) as at,
        network(at.nginx, latency_s=LATENCY_S, bytes_per_s=BYTES_PER_S) as wire,
    ):
        warm_site(at)
        for run in range(RUNS):
            with artist(user, folder / f"artist{run}", at, wire.url) as viewer:
                mount = viewer.mount()
                frames = [mount.path / "apollo/plate/v001" / name for name in names]
                played.append(play(frames))
                viewer.unmount(mount)
            with artist(user, folder / f"jumper{run}", at, wire.url) as viewer:
                mount = viewer.mount()
                frames = [mount.path / "apollo/plate/v001" / name for name in names]
                wire.counts()
                read_bytes = play(jumping(frames))["bytes"]
                wait_until(lambda: is_quiet(mount), "what is under way to come", 60)  # noqa: B023
                jumped.append((wire.counts()["sent_bytes"]["chunks"], read_bytes))
                viewer.unmount(mount)
    for one in played:
        some = f", the first {one['late'][:5]}" if one["late"] else ""
        note(f"  {len(one['late'])} frames were late, by {one['latest_s'] * 1e3:.0f} ms at most{some}")
    late = [float(len(one["late"])) for one in played]
    in_vain_mb = [(fetched - read) / 1e6 for fetched, read in jumped]
    return [
        share(f"playback of cold frames at {FPS} a second: late after the second", "late", "frames", late,
              [float(FRAMES - 2)] * RUNS, LATE_AIM, "frames"),
        share(f"playback that jumps after {PART} frames: fetched in vain", "in vain", "fetched",
              in_vain_mb, [fetched / 1e6 for fetched, _ in jumped], IN_VAIN_AIM, "MB"),
    ]  # fmt: skip


def jumping(frames: Sequence[Path]) -> list[Path]:
    """Two seconds of frames, then as many from somewhere else, back and forth; no frame twice."""
    parts = [frames[start : start + PART] for start in range(0, len(frames) - PART + 1, PART)]
    return [frame for part in parts[1::2][::-1] + parts[::2][::-1] for frame in part]


def play(frames: Sequence[Path]) -> dict[str, Any]:
    """Have a player play these frames."""
    command = [sys.executable, "-m", "tests.bench.play", str(FPS), *map(str, frames)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=600)
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def is_quiet(mount: Mount) -> bool:
    """Whether nothing is fetched for a moment."""
    for _ in range(5):
        if mount.status()["cache"]["inflight"]:
            return False
        time.sleep(0.1)
    return True


def share(
    name: str, ours: str, theirs: str, part: list[float], whole: list[float], aim: float | None, unit: str
) -> Ratio:  # fmt: skip
    """A part of a whole, run by run, as a Ratio."""
    ratios = [one / all_of_it for one, all_of_it in zip(part, whole, strict=True)]
    middle = sorted(range(len(ratios)), key=ratios.__getitem__)[len(ratios) // 2]
    return Ratio(name, ours, theirs, ratios[middle], ratios, part[middle], whole[middle], aim, unit=unit)
