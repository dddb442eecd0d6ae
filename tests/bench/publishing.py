"""Publishing 2 GiB, against ``cp`` of the same files and ``sync``.

What makes the two comparable: what either wrote is removed before the next is timed, so that both find as much free
memory; nothing dirty is left over from before; they take turns at going first; and the page cache never holds more
than the source and one copy.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.bench.measure import RUNS, Ratio, from_times, seconds
from tests.harness import Studio, studio

FILES = 32
FILE_BYTES = 64 * 1024 * 1024


def measure(_user: Studio, work: Path, note: Callable[[str], None]) -> list[Ratio]:
    """A library of its own in every run, so that nothing is known to it beforehand."""
    note(f"publish: {FILES} files of {FILE_BYTES >> 20} MiB")
    source, copies, home = work / "source", work / "copies", work / "publisher"

    def copy() -> None:
        subprocess.run(["cp", "-r", source, copies], check=True, timeout=300)
        subprocess.run(["sync"], check=True, timeout=300)

    def copied() -> float:
        os.sync()
        taken_s = seconds(copy)
        shutil.rmtree(copies)
        return taken_s

    def published() -> float:
        with studio(home) as user:
            user.run("init", user.url, "--show", "apollo")
            os.sync()
            taken_s = seconds(lambda: user.run("publish", source, "apollo:publish/v001", timeout_s=300))
        shutil.rmtree(home)
        return taken_s

    _fill(source)
    ours_s: list[float] = []
    theirs_s: list[float] = []
    for run in range(RUNS + 1):  # the first is not counted
        if run % 2:
            theirs_s.append(copied())
            ours_s.append(published())
        else:
            ours_s.append(published())
            theirs_s.append(copied())
    shutil.rmtree(source)
    os.sync()
    ratio = from_times("publish of 2 GiB (time)", "damfs publish", "cp and sync", ours_s[1:], theirs_s[1:], aim=1.5)
    return [ratio]


def _fill(source: Path) -> None:
    source.mkdir()
    for number in range(FILES):
        with (source / f"plate.{number:04d}.dpx").open("wb") as file:
            for _ in range(FILE_BYTES >> 20):
                file.write(os.urandom(1 << 20))
