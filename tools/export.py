"""``damfs cat`` and ``damfs export``: verified bytes out of a library without a mount.

Rules: ``cat`` writes a chunk only after it was verified, in order, with bounded memory; when the whole file turns out
not to be what was published it says so behind the last byte, with exit status 7. ``export`` gives a file its name only
after the whole of it was verified and synced, so it never leaves half a file; a file that is there and right is left
alone. It never writes through a symbolic link. What is wrong with one file is told at the end; a target that takes no
more ends the export at once.
"""

import errno
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from manifest.digest import Digest
from manifest.errors import ConfigurationError, Conflict, DamfsError, IsAFolder, Unavailable
from manifest.recipe import Recipe
from manifest.replica import Kind, Row
from tools.complete import complete_address
from tools.context import Context
from tools.options import command
from tools.output import Progress, counted, human_bytes
from tools.reader import Reader
from tools.replicas import Target, open_target

FILES_AT_ONCE = 8
QUEUED_FILES_MAX = 64
FAILURES_MAX = 20
"""After so many failed files an export ends: the cause is not the files."""

_REMEDIES = {
    errno.EROFS: "its file system is read-only: name a folder on another one, or mount it writable",
    errno.ENOSPC: "make room there, or name a folder on a larger disk, and run it again",
    errno.EDQUOT: "make room in your quota there, or name another folder, and run it again",
    errno.EACCES: "check the rights on the folder, or name another one",
    errno.EPERM: "check the rights on the folder, or name another one",
    errno.ENAMETOOLONG: "its file system takes no such name: name a folder on another one",
    errno.EINVAL: "its file system takes no such name: name a folder on another one",
}


class _TargetEnded(ConfigurationError):
    """The target takes no file any more."""


Place = Annotated[
    str,
    typer.Argument(
        metavar="SHOW[@REV]:PATH",
        help="A file or folder in a show, live or as of a revision or time; or a path in a mount.",
        autocompletion=complete_address,
    ),
]


@command(json=False)
def cat(context: Context, address: Place) -> None:
    """Write the verified bytes of a file to stdout."""
    target = open_target(context, address, bytes_needed=True)
    if target.row.kind == Kind.FOLDER:
        raise IsAFolder(f"{target} is a folder: `damfs ls` lists it, `damfs export` copies it")
    assert target.row.digest is not None
    sys.stdout.flush()
    out = sys.stdout.buffer
    with Reader(context.library) as reader, context.output.progress(target.row.name, total=target.row.size) as progress:
        recipe = reader.recipe_of(target.view.show, target.row, target.view.reader)
        for data in reader.file(target.view.show, recipe, Digest(target.row.digest)):
            out.write(data)
            progress.advance(len(data))
        out.flush()


@dataclass
class Tally:
    """What an export did."""

    files: int = 0
    bytes_written: int = 0
    skipped: int = 0
    links: int = 0
    folders: int = 0
    failed: list[tuple[str, DamfsError]] = field(default_factory=list)


@command()
def export(
    context: Context,
    address: Place,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to; made when it is missing.")],
) -> None:
    """Copy a file, or a folder's contents, into DIR, every byte verified."""
    target = open_target(context, address, bytes_needed=True)
    tally = Tally()
    with Reader(context.library) as reader, context.output.progress("exporting", total=0) as progress:
        _Export(reader, target, folder, tally, progress).run()
    for path, error in tally.failed:
        context.output.error(f"{path}: {error}")
    if context.json:
        context.output.result(
            {
                "show": target.view.show,
                "revision": target.view.revision,
                "path": target.path,
                "folder": str(folder.absolute()),
                "files": tally.files,
                "bytes": tally.bytes_written,
                "skipped": tally.skipped,
                "links": tally.links,
                "folders": tally.folders,
                "failed": [path for path, _ in tally.failed],
            }
        )
    already = f", {counted(('file', tally.skipped))} there already" if tally.skipped else ""
    written = f"{counted(('file', tally.files))}, {human_bytes(tally.bytes_written)}"
    context.output.say(f"{target} → {folder}: {written}{already}")
    if tally.failed:
        worst = max((error for _, error in tally.failed), key=lambda error: error.exit_code)
        raise type(worst)(f"{counted(('file', len(tally.failed)))} could not be exported; run it again to go on")


class _Export:
    """One run: folders first, files in parallel, then links, then the folders' modes.

    State: the tree that is being written. Only the thread that calls ``run`` reads the replica.
    """

    def __init__(self, reader: Reader, target: Target, folder: Path, tally: Tally, progress: Progress) -> None:
        self._reader = reader
        self._target = target
        self._folder = folder
        self._tally = tally
        self._progress = progress
        self._folders: list[tuple[Path, int]] = []
        self._links: list[tuple[Path, str]] = []

    def run(self) -> None:
        """Write everything. Raises the first error that is not about one file; collects the others in the tally."""
        _make_folder(self._folder, parents=True)
        waiting: dict[Future[bool], tuple[str, int]] = {}
        with ThreadPoolExecutor(FILES_AT_ONCE, thread_name_prefix="export") as pool:
            try:
                for name, row in self._target.below():
                    if len(waiting) >= QUEUED_FILES_MAX:
                        self._collect(waiting)
                    self._begin(pool, waiting, name, row)
                while waiting:
                    self._collect(waiting)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        for path, target in self._links:
            _write_link(path, target)
            self._tally.links += 1
        for path, mode in reversed(self._folders):
            with _written(path):
                _sync_folder(path)
                path.chmod(mode)
        with _written(self._folder):
            _sync_folder(self._folder)

    def _begin(
        self, pool: ThreadPoolExecutor, waiting: dict[Future[bool], tuple[str, int]], name: str, row: Row
    ) -> None:
        path = self._folder / name
        if row.kind == Kind.FOLDER:
            _make_folder(path)
            self._folders.append((path, row.mode))
            self._tally.folders += 1
        elif row.kind == Kind.LINK:
            self._links.append((path, row.target or ""))
        else:
            self._progress.grow(row.size)
            try:
                recipe = self._reader.recipe_of(self._target.view.show, row, self._target.view.reader)
            except Unavailable:
                raise
            except DamfsError as error:
                self._tally.failed.append((name, error))
                return
            waiting[pool.submit(self._write, path, row, recipe)] = (name, row.size)

    def _collect(self, waiting: dict[Future[bool], tuple[str, int]]) -> None:
        done, _ = wait(waiting, return_when=FIRST_COMPLETED)
        for future in done:
            name, size = waiting.pop(future)
            try:
                if future.result():
                    self._tally.files += 1
                    self._tally.bytes_written += size
                else:
                    self._tally.skipped += 1
            except DamfsError as error:
                self._tally.failed.append((name, error))
                if isinstance(error, _TargetEnded) or len(self._tally.failed) > FAILURES_MAX:
                    raise

    def _write(self, path: Path, row: Row, recipe: Recipe) -> bool:
        """Make ``path`` the file of this row; False when it was that already. Runs in a thread."""
        assert row.digest is not None
        digest = Digest(row.digest)
        temporary = path.parent / f".damfs-{secrets.token_hex(8)}.tmp"
        with _written(path, temporary):
            if _is_right(path, row.size, digest):
                path.chmod(row.mode)
                os.utime(path, ns=(row.mtime_ns, row.mtime_ns))
                self._progress.advance(row.size)
                return False
            with temporary.open("xb", buffering=0) as file:
                for data in self._reader.file(self._target.view.show, recipe, digest):
                    _write_all(file.fileno(), data)
                    self._progress.advance(len(data))
                os.fchmod(file.fileno(), row.mode)
                os.utime(file.fileno(), ns=(row.mtime_ns, row.mtime_ns))
                os.fsync(file.fileno())
            _place(temporary, path)
        return True


@contextmanager
def _written(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """What the operating system raises while ``path`` is made leaves as ConfigurationError; ``temporary`` goes."""
    try:
        yield
    except OSError as error:
        remedy = f"; {_REMEDIES[error.errno]}" if error.errno in _REMEDIES else ""
        kind = _TargetEnded if error.errno in (errno.EROFS, errno.ENOSPC, errno.EDQUOT) else ConfigurationError
        raise kind(f"cannot write {path}: {error.strerror}{remedy}") from error
    finally:
        if temporary is not None:
            with suppress(OSError):  # it is not there, or the target takes nothing: that was told
                temporary.unlink()


def _is_right(path: Path, size: int, digest: Digest) -> bool:
    """Whether a plain file with exactly these bytes is there."""
    try:
        found = path.lstat()
        return stat.S_ISREG(found.st_mode) and found.st_size == size and Digest.of_file(path) == digest
    except OSError:
        return False


def _place(temporary: Path, path: Path) -> None:
    """Give a finished file or link its name. Raises Conflict where a folder is in the way."""
    try:
        temporary.rename(path)
    except IsADirectoryError as error:
        raise Conflict(f"{path} is a folder here and none in the library: move it away") from error


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _make_folder(path: Path, *, parents: bool = False) -> None:
    """Make a folder that its owner can write to. Raises Conflict when something else has the name."""
    with _written(path):
        try:
            path.mkdir(mode=0o755, parents=parents)
        except FileExistsError:
            if parents and path.is_dir():
                return
            if not stat.S_ISDIR(path.lstat().st_mode):
                raise Conflict(f"{path} is no folder here and one in the library: move it away") from None
            if (mode := path.stat().st_mode) & 0o700 != 0o700:
                path.chmod(mode | 0o700)


def _write_link(path: Path, target: str) -> None:
    with suppress(OSError):
        if path.readlink() == Path(target):
            return
    temporary = path.parent / f".damfs-{secrets.token_hex(8)}.tmp"
    with _written(path, temporary):
        temporary.symlink_to(target)
        _place(temporary, path)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
