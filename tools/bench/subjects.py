"""What is measured: a large file, a sequence of frames, a folder of many names; chosen in the mount, or named.

The choice looks at the shows that are served already first, breadth first, through at most ENTRIES_MAX names and for at
most SEARCH_S. Links are not followed: they lead to what is seen anyway. What is cached completely is preferred, for
everything that is chosen has to be fetched.
"""

from __future__ import annotations

import os
import stat
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from manifest.errors import NotFound, Unavailable, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

FILE_BYTES_MIN = 1024 * 1024
FRAMES_MAX = 100
FRAME_BYTES_MIN = 128 * 1024
"""Smaller files are kept, and read, in another way."""
NAMES_MAX = 100_000
ENTRIES_MAX = 200_000
SEARCH_S = 20.0
SETTLE_S = 5.0
"""What was read counts as cached once it is on the disk; longer than this it does not stand still before."""
CACHED = "user.damfs.cached"
WORTH_PREFERRING = 8
"""A cached file is chosen before one that is not, unless that is so many times its size."""
_PIECE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class LargeFile:
    """One file, of which the first ``length`` bytes are measured."""

    path: Path
    size_bytes: int
    length: int


@dataclass(frozen=True, slots=True)
class Frames:
    """Files in one folder that are read one after the other, whole."""

    folder: Path
    names: list[str]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Names:
    """A folder that is listed, and those of its names that are files, which are asked for their attributes."""

    folder: Path
    count: int
    files: list[str]


@dataclass(frozen=True, slots=True)
class Subjects:
    """What is measured; None where the mount has nothing fit for it."""

    file: LargeFile | None
    frames: Frames | None
    names: Names | None


@dataclass(slots=True)
class _Folder:
    """What a search keeps of a folder."""

    path: Path
    count: int = 0
    sizes: dict[str, int] = field(default_factory=dict)

    def frames(self, limit_bytes: int) -> Frames | None:
        """The files of the commonest extension, in order of name, as many as fit."""
        kinds = Counter(Path(name).suffix for name, size in self.sizes.items() if size >= FRAME_BYTES_MIN)
        if not kinds:
            return None
        suffix = kinds.most_common(1)[0][0]
        names: list[str] = []
        total = 0
        for name in sorted(self.sizes):
            size = self.sizes[name]
            if Path(name).suffix != suffix or size < FRAME_BYTES_MIN:
                continue
            if len(names) == FRAMES_MAX or total + size > limit_bytes:
                break
            names.append(name)
            total += size
        return Frames(self.path, names, total) if names else None


def percent_cached(path: Path) -> int:
    """How much of a file is on this machine, as the mount tells. Raises Unavailable."""
    try:
        return int(os.getxattr(path, CACHED))
    except (OSError, ValueError) as error:
        raise Unavailable(f"{path} does not tell how much of it is cached: {error}") from error


def warm(path: Path, advance: Callable[[int], None]) -> None:
    """Read a file to its end unless it is cached. Raises Unavailable when it is not cached completely then."""
    if percent_cached(path) == 100:
        return
    buffer = bytearray(_PIECE_BYTES)
    try:
        with path.open("rb", buffering=0) as reading:
            while count := reading.readinto(buffer):
                advance(count)
    except OSError as error:
        raise Unavailable(f"{path} cannot be read: {error.strerror}; see `damfs status`") from error
    percent, since = percent_cached(path), time.monotonic()
    while percent != 100 and time.monotonic() < since + SETTLE_S:
        time.sleep(0.05)
        before, percent = percent, percent_cached(path)
        since = time.monotonic() if percent != before else since
    if percent != 100:
        raise Unavailable(
            f"{path} was read to its end, but {percent}% of it are cached: the cache is too small or in use; measure "
            "with a smaller file (--file), or give the cache more room"
        )


def inside(mountpoint: Path, path: Path) -> Path:
    """A path that the user named, in the mount: as it stands, else relative to the mountpoint. Raises UsageError."""
    here = Path(os.path.abspath(path))  # noqa: PTH100 - resolves no link
    if here != mountpoint and here.is_relative_to(mountpoint):
        return here
    if path.is_absolute() or ".." in path.parts:
        raise UsageError(f"{path} is not in the mount {mountpoint}")
    return mountpoint / path


def given_file(path: Path, limit_bytes: int) -> LargeFile:
    """Raises NotFound, UsageError."""
    found = _stat(path)
    size = found.st_size
    if not stat.S_ISREG(found.st_mode) or size < FILE_BYTES_MIN:
        raise UsageError(f"--file {path}: expected a file of at least {FILE_BYTES_MIN >> 20} MiB")
    return LargeFile(path, size, min(size, limit_bytes))


def given_frames(path: Path, limit_bytes: int) -> Frames:
    """Raises NotFound, UsageError."""
    found = _look(path).frames(limit_bytes)
    if found is None:
        raise UsageError(f"--frames {path}: expected a folder with files of {FRAME_BYTES_MIN >> 10} KiB and more")
    return found


def given_names(path: Path) -> Names:
    """Raises NotFound, UsageError."""
    found = _look(path)
    if not found.sizes or found.count > NAMES_MAX:
        raise UsageError(f"--names {path}: expected a folder with files in it, and at most {NAMES_MAX} names")
    return _names(found)


def choose(roots: Iterable[Path], limit_bytes: int) -> Subjects:
    """Look through the folders for what can be measured with; ``limit_bytes`` bounds a file, and all frames."""
    folders = [folder for folder in _search(roots) if folder.sizes]
    files = sorted(
        (
            (size, folder.path / name)
            for folder in folders
            for name, size in folder.sizes.items()
            if FILE_BYTES_MIN <= size <= limit_bytes
        ),
        reverse=True,
    )
    sequences = [found for folder in folders if (found := folder.frames(limit_bytes)) and len(found.names) > 1]
    sequences.sort(key=lambda found: (min(len(found.names), FRAMES_MAX), found.size_bytes), reverse=True)
    listed = max((folder for folder in folders if folder.count <= NAMES_MAX), key=lambda one: one.count, default=None)
    return Subjects(
        file=_best(files),
        frames=next((one for one in sequences[:64] if _is_cached(one)), sequences[0] if sequences else None),
        names=_names(listed) if listed else None,
    )


def _best(files: Sequence[tuple[int, Path]]) -> LargeFile | None:
    """The largest; or the largest that is cached, when that is not so much smaller."""
    if not files:
        return None
    largest = files[0][0]
    for size, path in files[:256]:
        if size * WORTH_PREFERRING < largest:
            break
        if percent_cached(path) == 100:
            return LargeFile(path, size, size)
    return LargeFile(files[0][1], largest, largest)


def _is_cached(sequence: Frames) -> bool:
    return all(percent_cached(sequence.folder / name) == 100 for name in sequence.names)


def _search(roots: Iterable[Path]) -> list[_Folder]:
    """Every folder below ``roots`` that was looked at within the limits, breadth first."""
    deadline = time.monotonic() + SEARCH_S
    waiting = deque(roots)
    seen: list[_Folder] = []
    entries = 0
    while waiting and entries < ENTRIES_MAX and time.monotonic() < deadline:
        try:
            folder = _look(waiting.popleft(), waiting)
        except (NotFound, Unavailable):  # gone meanwhile, not for us, or of a show that cannot be had: others can
            continue
        entries += folder.count
        seen.append(folder)
    return seen


def _look(path: Path, below: deque[Path] | None = None) -> _Folder:
    """One folder; the folders in it are added to ``below``. Raises NotFound, UsageError."""
    folder = _Folder(path)
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                folder.count += 1
                if entry.is_file(follow_symlinks=False):
                    folder.sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
                elif below is not None and entry.is_dir(follow_symlinks=False):
                    below.append(Path(entry.path))
    except FileNotFoundError:
        raise NotFound(f"{path} does not exist") from None
    except NotADirectoryError:
        raise UsageError(f"{path} is not a folder") from None
    except OSError as error:
        raise Unavailable(f"{path} cannot be listed: {error.strerror}") from error
    return folder


def _names(folder: _Folder) -> Names:
    return Names(folder.path, folder.count, sorted(folder.sizes))


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError:
        raise NotFound(f"{path} does not exist") from None
