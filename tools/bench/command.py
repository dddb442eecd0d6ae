"""``damfs bench``: options in, a table or JSON out; docs/BENCH.md says what is measured and how."""

import os
import platform
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.client import Client
from manifest.errors import UsageError
from tools.context import Context
from tools.options import command
from tools.output import human_bytes, human_duration

if TYPE_CHECKING:
    from tools.bench.figures import Figure
    from tools.bench.run import Run

SIZE = "2GiB"
SECONDS = 0.3
MEMORY_SHARE = 6
"""A file is measured up to a sixth of the memory that is free for it: it may lie there three times."""

TITLES = {
    "sequential_1m": "sequential reads of 1 MiB",
    "random_4k": "random reads of 4 KiB",
    "mmap_sequential": "mmap, copied in order",
    "mmap_random": "mmap, touched at random",
    "parallel_8": "8 readers, each 1 MiB reads",
    "frames": "open, read, close of frames",
    "stat": "stat of known names",
    "list": "list",
}
_CHOOSING = "What is measured"


@command(library=False)
def bench(
    context: Context,
    mountpoint: Annotated[Path, typer.Argument(metavar="MOUNTPOINT", help="Where it is mounted.")],
    show: Annotated[
        list[str] | None,
        typer.Option("--show", metavar="SHOW", rich_help_panel=_CHOOSING, help="Choose from this show."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            metavar="PATH",
            rich_help_panel=_CHOOSING,
            help="The file to read. Else the largest one up to --size.",
        ),
    ] = None,
    frames: Annotated[
        Path | None,
        typer.Option(
            "--frames",
            metavar="PATH",
            rich_help_panel=_CHOOSING,
            help="The folder with frames to play. Else one with many.",
        ),
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option(
            "--names",
            metavar="PATH",
            rich_help_panel=_CHOOSING,
            help="The folder to list. Else the one with most names.",
        ),
    ] = None,
    size: Annotated[
        str,
        typer.Option(
            "--size",
            metavar="SIZE",
            rich_help_panel=_CHOOSING,
            help="At most so much of the file, and of the frames, is read; less where memory is short.",
        ),
    ] = SIZE,
    seconds: Annotated[
        float,
        typer.Option("--seconds", metavar="S", min=0.01, max=600, help="How long a run reads either side."),
    ] = SECONDS,
    cold: Annotated[bool, typer.Option("--cold", help="Read from the disk, too.")] = False,
    scratch: Annotated[
        Path | None,
        typer.Option("--scratch", metavar="DIR", help="Where the native files lie meanwhile. Else beside the cache."),
    ] = None,
) -> None:
    """Measure how fast cached files are read, against the file system under the cache.

    Copies of the same bytes are made beside the cache folder, both sides are read in turn, and the copies are removed.
    Nothing is written to the mount. docs/BENCH.md says how it is done and what the figures mean.
    """  # fmt: skip
    from tools.bench.run import Wanted, begin, measure  # noqa: PLC0415 - no other command needs it

    client = Client.for_mountpoint(mountpoint)
    wanted = Wanted(show or (), file, frames, names, _limit_bytes(size), seconds, cold, scratch)
    run = begin(client.status(), wanted)
    measure(run, context.output)
    if client.status()["pid"] != run.pid:
        run.notes.append("the daemon was replaced meanwhile: its CPU time is not that of all runs")
    if context.json:
        context.output.result(to_json(run))
    else:
        _print(context, run)


def _limit_bytes(size: str) -> int:
    """How much of a file is measured: as asked for, and no more than memory can hold on both sides."""
    from daemon.sizes import parse_size  # noqa: PLC0415
    from tools.bench.pages import memory_available_bytes  # noqa: PLC0415

    wanted = parse_size(size)
    if wanted.bytes is None:
        raise UsageError(f"--size {size}: expected a number of bytes, as in 500MB or 2GiB")
    return min(wanted.bytes, memory_available_bytes() // MEMORY_SHARE)


def to_json(run: "Run") -> dict[str, Any]:
    """What docs/BENCH.md describes."""
    status, what = run.status, run.subjects
    file = frames = names = None
    if what.file:
        file = {
            "path": str(what.file.path),
            "size": what.file.size_bytes,
            "measured_bytes": what.file.length,
            "warming_s": run.warming_s["file"],
        }
    if what.frames:
        frames = {
            "path": str(what.frames.folder),
            "count": len(what.frames.names),
            "size": what.frames.size_bytes,
            "warming_s": run.warming_s["frames"],
        }
    if what.names:
        names = {"path": str(what.names.folder), "count": what.names.count, "files": len(what.names.files)}
    return {
        "mountpoint": status["mountpoint"],
        "version": status["version"],
        "binding": status["binding"],
        "binding_reason": status["binding_reason"],
        "cache_folder": status["cache"]["folder"],
        "native_folder": str(run.place),
        "filesystem": run.filesystem(),
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "load": run.load,
        "seconds": run.wanted.seconds,
        "daemon_idle_cpu_share": run.idle_cpu_share,
        "file": file,
        "frames": frames,
        "names": names,
        "figures": [figure.to_json() for figure in run.figures],
        "notes": run.notes,
    }


def _print(context: Context, run: "Run") -> None:
    output, what = context.output, run.subjects
    output.say(
        f"{run.status['mountpoint']}: {run.status['binding']} ({run.status['binding_reason']}), against "
        f"{run.filesystem()} in {run.place}"
    )
    if what.file:
        part = "" if what.file.length == what.file.size_bytes else f", the first {human_bytes(what.file.length)} of"
        output.say(f"  file    {what.file.path}{part} {human_bytes(what.file.size_bytes)}{_warming(run, 'file')}")
    if what.frames:
        size = human_bytes(what.frames.size_bytes)
        output.say(f"  frames  {len(what.frames.names)} in {what.frames.folder}, {size}{_warming(run, 'frames')}")
    if what.names:
        output.say(f"  names   {what.names.count} in {what.names.folder}")
    output.table(
        ("what", "pages", "mount", "native", "ratio", "of the runs", "daemon's CPU"),
        [_row(figure) for figure in run.figures],
        right=(2, 3, 4, 6),
    )
    if run.idle_cpu_share is not None:
        output.say(f"the daemon uses {run.idle_cpu_share:.1%} of a CPU while nobody reads")
    for note in run.notes:
        output.warn(note)


def _warming(run: "Run", what: str) -> str:
    return f", fetched in {human_duration(run.warming_s[what])}" if run.warming_s[what] else ", was cached"


def _row(figure: "Figure") -> tuple[str, ...]:
    share = figure.daemon_cpu_share
    return (
        TITLES[figure.operation],
        figure.state,
        _rate(statistics.median(figure.mount), figure.unit),
        _rate(statistics.median(figure.native), figure.unit),
        f"{figure.ratio:.2f}",
        f"{min(figure.ratios):.2f} … {max(figure.ratios):.2f}",
        "?" if share is None else f"{share:.0%}",
    )


def _rate(value: float, unit: str) -> str:
    return f"{human_bytes(int(value))}/s" if unit == "bytes" else f"{value:,.0f} {unit}/s"
