"""The native files that a mount is compared with: where they lie, how they are made, and that they go again.

They lie in one folder on the file system of the cache, beside the cache folder or in it, and hold the same bytes under
the same names. Rules: nothing is written before there is room for all of it; everything is on the disk before anything
is measured, so that no write-back disturbs; the folder goes when the command ends, also by Ctrl-C, SIGTERM and SIGHUP,
and what a kill -9 left behind is removed by the next run: a folder in use is locked.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from manifest.errors import ConfigurationError, Unavailable, UsageError
from tools.output import human_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

PREFIX = "damfs-bench-"
LEFT_OVER_S = 60.0
"""A folder that nobody has locked is a leftover once it is so old; a younger one may be about to be locked."""
SPARE_BYTES = 1024**3
"""Stays free beside the comparison files: they must not make the cache evict."""
_PIECE_BYTES = 1024 * 1024


def place_for(cache_folder: Path, wanted: Path | None) -> Path:
    """The folder to make the scratch folder in. Raises UsageError, ConfigurationError.

    ``wanted`` is what the user named; it must be on the file system of the cache, or nothing would be comparable.
    """
    try:
        device = cache_folder.stat().st_dev
    except OSError as error:
        raise ConfigurationError(
            f"the cache folder {cache_folder} cannot be looked at ({error.strerror}): run this as who mounted, or root"
        ) from error
    if wanted is not None:
        if not wanted.is_dir():
            raise UsageError(f"--scratch {wanted}: expected a folder")
        if wanted.stat().st_dev != device:
            raise UsageError(f"--scratch {wanted} is on another file system than the cache {cache_folder}")
    candidates = [wanted] if wanted is not None else [cache_folder.parent, cache_folder]
    for folder in candidates:
        if folder.stat().st_dev == device and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise ConfigurationError(
        f"uid {os.geteuid()} may not write to {candidates[0]}, where the files to compare with would lie: run this as "
        f"who mounted or as root, or name with --scratch a folder of yours on the file system of {cache_folder}"
    )


def require_room(folder: Path, needed_bytes: int) -> None:
    """Raises ConfigurationError when the file system has no room for ``needed_bytes``."""
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    if free < needed_bytes + SPARE_BYTES:
        raise ConfigurationError(
            f"{folder}: the files to compare with need {human_bytes(needed_bytes)} and {human_bytes(SPARE_BYTES)} to "
            f"spare, but {human_bytes(free)} are free: make room, or measure less with --size"
        )


@contextmanager
def scratch_folder(place: Path) -> Iterator[Path]:
    """A folder in ``place`` for this run, removed in the end however that comes."""
    _remove_leftovers(place)
    with _ended_by_signals():
        try:
            folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        except OSError as error:
            raise ConfigurationError(f"cannot make a folder in {place}: {error.strerror}") from error
        descriptor = -1
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if descriptor >= 0:
                os.close(descriptor)


def copy_file(source: Path, target: Path, length: int, advance: Callable[[int], None]) -> None:
    """Write the first ``length`` bytes of ``source`` to ``target``, through to the disk."""
    buffer = bytearray(_PIECE_BYTES)
    with source.open("rb", buffering=0) as reading, target.open("xb") as writing:
        done = 0
        while done < length:
            count = reading.readinto(memoryview(buffer)[: length - done])
            if not count:
                raise Unavailable(f"{source} ended after {done} of {length} bytes while it was read")
            writing.write(memoryview(buffer)[:count])
            done += count
            advance(count)
        writing.flush()
        os.fsync(writing.fileno())


def copy_names(source: Path, target: Path) -> int:
    """Make a folder with the same names, kinds and sizes (no bytes) as another one; returns how many."""
    target.mkdir()
    with os.scandir(source) as entries:
        found: Sequence[os.DirEntry[str]] = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        here = target / entry.name
        if entry.is_symlink():
            here.symlink_to(Path(entry.path).readlink())
        elif entry.is_dir(follow_symlinks=False):
            here.mkdir()
        else:
            here.touch()
            os.truncate(here, entry.stat(follow_symlinks=False).st_size)
    descriptor = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return len(found)


def _remove_leftovers(place: Path) -> None:
    """Remove what runs that were killed have left in ``place``. What is not ours to remove stays."""
    for folder in place.glob(PREFIX + "*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime < LEFT_OVER_S:
                continue
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the command as Ctrl-C does, so that what it made is removed."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        del number, frame
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
