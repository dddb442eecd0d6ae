"""``make bench``: every figure as a ratio, medians of five interleaved runs, as a table and as JSON.

python -m tests.bench [PART …] [--binding NAME] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench import advice, cold, housekeeping, kernel, million, playback, publishing, reads, textures
from tests.bench.measure import Ratio
from tests.harness import REPOSITORY, studio

PARTS = {"publish": publishing.measure, "reads": reads.measure, "million": million.measure,
         "kernel": kernel.measure, "cache": housekeeping.measure, "advice": advice.measure,
         "cold": cold.measure, "playback": playback.measure, "textures": textures.measure}  # fmt: skip
console = Console(width=None if sys.stdout.isatty() else 150)


def table(results: list[Ratio]) -> Table:
    """The results as people read them."""
    shown = Table("what", "ours", "against", "ratio", "of the runs", "aim", "met")
    for result in results:
        aim = "" if result.aim is None else f"{'≤' if result.at_most else '≥'} {result.aim:g}"
        met = {None: "", True: "yes", False: "[red]no[/]"}[result.met]
        spread = f"{min(result.ratios):.2f} … {max(result.ratios):.2f}"
        shown.add_row(result.name, f"{result.ours} {result.ours_s:.3g} {result.unit}",
                      f"{result.theirs} {result.theirs_s:.3g} {result.unit}",
                      f"{result.ratio:.2f}", spread, aim, met)  # fmt: skip
    return shown


def main() -> None:
    """Run the named parts, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(PARTS)}; default: all")
    parser.add_argument("--binding", help="how the mounts speak to the kernel; default: auto")
    parser.add_argument("--json", type=Path, default=REPOSITORY / "bench-results" / time.strftime("%Y%m%d-%H%M%S.json"))
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"no part is called {', '.join(sorted(unknown))}")
    results: list[Ratio] = []
    work = Path(tempfile.mkdtemp(prefix="damfs-bench-"))
    try:
        environment = {"DAMFS_MOUNT__BINDING": arguments.binding} if arguments.binding else {}
        with studio(work / "studio", **environment) as user:
            user.run("init", user.url, "--show", "apollo", "--show", "million", "--show", "small")
            for part in arguments.parts or PARTS:
                results += PARTS[part](user, work, lambda text: console.print(f"[dim]{text}[/]"))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    console.print(table(results))
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    machine = {"kernel": platform.release(), "python": platform.python_version(), "cpus": os.cpu_count()}
    arguments.json.write_text(json.dumps({"machine": machine, "results": [r.to_json() for r in results]}, indent=2))
    console.print(f"written to {arguments.json}")


if __name__ == "__main__":
    main()
