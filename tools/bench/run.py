"""One run of ``damfs bench``, from the choice of what is measured to the figures.

Order: choose → fetch what is not cached, and say how long that took → copy it beside the cache → bring the pages of
both sides into memory in the same way → measure → remove the copies. Nothing is written to the mount.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon import mounts
from manifest.errors import ConfigurationError, NotFound
from tools.bench import figures, pages, scratch, subjects
from tools.bench.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tools.bench.figures import Figure, Operation
    from tools.bench.subjects import Subjects
    from tools.output import Output

IDLE_S = 1.0
COLD_LEFT_OUT = ("random_4k", "mmap_random", "parallel_8")
"""Not measured from the disk: these say more about the disk than about the mount."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user wants: paths are in the mount; None is chosen."""

    shows: Sequence[str] = ()
    file: Path | None = None
    frames: Path | None = None
    names: Path | None = None
    limit_bytes: int = 0
    seconds: float = 0.5
    cold: bool = False
    scratch: Path | None = None


@dataclass(slots=True)
class Run:
    """What was found out. ``warming_s`` is by what was warmed: "file", "frames"."""

    status: dict[str, Any]
    wanted: Wanted
    subjects: Subjects
    place: Path
    load: float
    warming_s: dict[str, float] = field(default_factory=dict)
    idle_cpu_share: float | None = None
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return int(self.status["pid"])

    @property
    def cache_folder(self) -> Path:
        return Path(self.status["cache"]["folder"])

    def filesystem(self) -> str:
        """The kind of file system under the cache and the native files."""
        device = self.place.stat().st_dev
        name = f"{os.major(device)}:{os.minor(device)}"
        return next((mount.filesystem for mount in mounts.table() if mount.device == name), "unknown")


@dataclass(frozen=True, slots=True)
class _Copies:
    """The native twins, below one folder, and the files in the cache (None: this user may not look)."""

    folder: Path
    cached: list[Path] | None

    @property
    def file(self) -> Path:
        return self.folder / "file"

    @property
    def frames(self) -> Path:
        return self.folder / "frames"

    @property
    def names(self) -> Path:
        return self.folder / "names"


def begin(status: dict[str, Any], wanted: Wanted) -> Run:
    """Choose what is measured, and see that it can be. Raises UsageError, NotFound, ConfigurationError, Unavailable."""
    place = scratch.place_for(Path(status["cache"]["folder"]), wanted.scratch)
    run = Run(status, wanted, _subjects(status, wanted), place, os.getloadavg()[0])
    if run.load > (os.cpu_count() or 1) / 2:
        run.notes.append(f"this machine is busy (load {run.load:.1f}): look at the spread of the ratios")
    what = run.subjects
    if (what.file, what.frames, what.names) == (None, None, None):
        raise NotFound(
            f"{status['mountpoint']} has nothing to measure with: publish a file of at least 1 MiB, or name what is "
            "there with --file, --frames and --names"
        )
    missing = [name for name in ("file", "frames", "names") if getattr(what, name) is None]
    if missing:
        run.notes.append(f"found nothing fit for {', '.join(f'--{name}' for name in missing)}: that is not measured")
    return run


def measure(run: Run, output: Output) -> None:
    """Fill ``run``. What is made on the way is removed, however this ends."""
    _warm(run, output)
    scratch.require_room(run.place, _needed_bytes(run.subjects))
    with scratch.scratch_folder(run.place) as folder, Workers() as workers:
        copies = _copy(run, folder, output)
        if copies.cached is None:
            run.notes.append(
                f"uid {os.geteuid()} may not look into {run.cache_folder}: its pages are measured as they came into "
                "memory, which shows under mmap; run this as who mounted or as root for equal ones"
            )
            if run.wanted.cold:
                raise ConfigurationError("--cold drops pages of the cache's files: run it as who mounted, or as root")
        run.idle_cpu_share = _idle_share(run.pid)
        _measure(run, copies, workers, output)
    for path in _paths(run.subjects):
        if subjects.percent_cached(path) != 100:
            run.notes.append(f"{path} was evicted from the cache meanwhile: the figures are not those of a cached file")
            break


def _subjects(status: dict[str, Any], wanted: Wanted) -> Subjects:
    mountpoint, limit = Path(status["mountpoint"]), wanted.limit_bytes
    file = frames = names = None
    if wanted.file is not None:
        file = subjects.given_file(subjects.inside(mountpoint, wanted.file), limit)
    if wanted.frames is not None:
        frames = subjects.given_frames(subjects.inside(mountpoint, wanted.frames), limit)
    if wanted.names is not None:
        names = subjects.given_names(subjects.inside(mountpoint, wanted.names))
    if file and frames and names:
        return subjects.Subjects(file, frames, names)
    shows = status["shows"]
    unknown = [show for show in wanted.shows if show not in shows]
    if unknown:
        raise NotFound(f"{mountpoint} has no show {unknown[0]}: `damfs status` lists them")
    ordered = sorted(wanted.shows or shows, key=lambda show: (not shows[show]["loaded"], show))
    found = subjects.choose([mountpoint / show for show in ordered], limit)
    return subjects.Subjects(file or found.file, frames or found.frames, names or found.names)


def _paths(what: Subjects) -> list[Path]:
    """Every file whose bytes are read."""
    paths = [what.file.path] if what.file else []
    return paths + ([what.frames.folder / name for name in what.frames.names] if what.frames else [])


def _needed_bytes(what: Subjects) -> int:
    return (what.file.length if what.file else 0) + (what.frames.size_bytes if what.frames else 0)


def _warm(run: Run, output: Output) -> None:
    """Have everything in the cache, and note how long that took."""
    what = run.subjects
    groups = {"file": [what.file.path] if what.file else []}
    groups["frames"] = [what.frames.folder / name for name in what.frames.names] if what.frames else []
    total = (what.file.size_bytes if what.file else 0) + (what.frames.size_bytes if what.frames else 0)
    with output.progress("fetching into the cache", total=total) as progress:
        for name, paths in groups.items():
            began = time.monotonic()
            missing = [path for path in paths if subjects.percent_cached(path) != 100]
            for path in missing:
                subjects.warm(path, progress.advance)
            if paths:
                run.warming_s[name] = time.monotonic() - began if missing else 0.0


def _copy(run: Run, folder: Path, output: Output) -> _Copies:
    """Make the native twins."""
    what = run.subjects
    sizes = {path.stat().st_size for path in _paths(what)}
    copies = _Copies(folder, pages.files_of_size(run.cache_folder, sizes))
    with output.progress("making native files", total=_needed_bytes(what)) as progress:
        if what.file:
            scratch.copy_file(what.file.path, copies.file, what.file.length, progress.advance)
        if what.frames:
            copies.frames.mkdir()
            for name in what.frames.names:
                source = what.frames.folder / name
                scratch.copy_file(source, copies.frames / name, source.stat().st_size, progress.advance)
    if what.names:
        scratch.copy_names(what.names.folder, copies.names)
    return copies


def _measure(run: Run, copies: _Copies, workers: Workers, output: Output) -> None:
    what = run.subjects

    def operations(state: str) -> list[Operation]:
        found = figures.file_operations(what.file, copies.file, state) if what.file else []
        return found + (figures.frame_operations(what.frames, copies.frames, state) if what.frames else [])

    def drop() -> None:
        natives = [copies.file] if what.file else []
        natives += [copies.frames / name for name in what.frames.names] if what.frames else []
        pages.drop([*natives, *(copies.cached or [])])

    groups: list[tuple[list[Operation], bool, Callable[[], None]]] = [
        (operations("first"), True, _nothing),
        (operations("again"), True, _nothing),
        (figures.name_operations(what.names, copies.names) if what.names else [], False, _nothing),
    ]
    if run.wanted.cold:
        cold = [operation for operation in operations("cold") if operation.name not in COLD_LEFT_OUT]
        groups.append((cold, False, drop))
    drop()
    total = figures.RUNS * sum(len(group) for group, _, _ in groups)
    with output.progress("measuring", total=total, unit="runs") as progress:
        for group, filled, before_pass in groups:
            if filled:
                figures.fill(workers, group)
            for operation in group:
                progress.describe(f"measuring {operation.name}, {operation.state}")
                figure = figures.measure(
                    workers,
                    operation,
                    pid=run.pid,
                    seconds=run.wanted.seconds,
                    before_pass=before_pass,
                    advance=progress.advance,
                )
                run.figures.append(figure)


def _nothing() -> None:
    pass


def _idle_share(pid: int) -> float | None:
    """What share of a CPU the daemon uses while nobody asks it for anything."""
    before = figures.cpu_s(pid)
    began = time.monotonic()
    time.sleep(IDLE_S)
    after = figures.cpu_s(pid)
    return None if before is None or after is None else (after - before) / (time.monotonic() - began)
