"""What there is to publish: the sources, walked, named and checked before anything is uploaded.

A folder's contents land under the path, a single file under the path by its own name. An argument that is a link stands
for the file or folder that it leads to; a link inside a folder is published as a link, with its target as it stands.
Rules: nothing here reads a file; everything that cannot be published (special files, unreadable files, names
that are not UTF-8, over-long names, siblings equal under NFC, two sources for one name) is refused here, by name.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from daemon.recorded import TRACE_NAME
from manifest.errors import FormatError, NotFound, UsageError
from manifest.names import check_path, join, nfc

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LINK_TARGET_BYTES_MAX = 4095
_DEPTH_MAX = 1024
_PROBLEMS_SHOWN = 3
_SPECIAL = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A regular file that lands at ``path``. ``size`` is what the walk saw, in bytes."""

    path: str
    source: str
    size: int


@dataclass(frozen=True, slots=True)
class SourceLink:
    """A symbolic link that lands at ``path``."""

    path: str
    source: str
    target: str


@dataclass(frozen=True, slots=True)
class SourceFolder:
    """A folder that lands at ``path``."""

    path: str
    source: str
    mode: int
    empty: bool


Item = SourceFile | SourceLink | SourceFolder


@dataclass(slots=True)
class _Walk:
    items: dict[str, Item] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    clashes: list[str] = field(default_factory=list)

    def add(self, item: Item) -> None:
        other = self.items.setdefault(item.path, item)
        if other is item or (isinstance(other, SourceFolder) and isinstance(item, SourceFolder)):
            return
        self.clashes.append(f"{_shown(other.source)} and {_shown(item.source)} both are to become {item.path}")


def walk(sources: Sequence[Path], path: str, trace: Path | None = None) -> list[Item]:
    """Everything below the sources, sorted by where it lands in the show; ``path`` may be empty.

    ``trace``: a file that becomes the trace of the folder.
    Raises NotFound for a missing source, UsageError for whatever cannot be published.
    """
    found = _Walk()
    for given in (*sources, *([trace] if trace else ())):
        source = os.fspath(given)
        try:
            status = os.stat(source)  # noqa: PTH116 - names are kept as given
        except FileNotFoundError:
            dangles = os.path.islink(source)  # noqa: PTH114
            why = "it is a link that leads nowhere" if dangles else "there is no such file or folder"
            raise NotFound(f"nothing to publish at {_shown(source)}: {why}") from None
        except OSError as error:
            raise UsageError(f"{_shown(source)} cannot be published: {error.strerror}") from error
        if given is trace:
            _entry(found, os.path.realpath(source), join(path, TRACE_NAME), status)
        elif stat.S_ISDIR(status.st_mode):
            _folder(found, source, path)
        else:
            # Read without links, as every file is; the name is the one that was given.
            _entry(found, os.path.realpath(source), join(path, given.name), status)
    _check_twins(found)
    _refuse(found)
    if not found.items:
        raise UsageError(f"nothing to publish: {', '.join(_shown(os.fspath(s)) for s in sources)} holds no file")
    return [found.items[key] for key in sorted(found.items)]


def _folder(found: _Walk, root: str, path: str) -> None:
    """Walk a folder, without recursion: its contents land below ``path``."""
    pending = [(root, path)]
    while pending:
        folder, below = pending.pop()
        try:
            with os.scandir(folder) as scan:
                entries = list(scan)
        except OSError as error:
            found.problems.append(f"{_shown(folder)} cannot be listed: {error.strerror}")
            continue
        if folder is not root:
            mode = os.stat(folder).st_mode & 0o777  # noqa: PTH116
            found.add(SourceFolder(below, folder, mode, not entries))
        for entry in entries:
            lands = join(below, entry.name)
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError as error:
                found.problems.append(f"{_shown(entry.path)} cannot be read: {error.strerror}")
                continue
            if not stat.S_ISDIR(status.st_mode):
                _entry(found, entry.path, lands, status)
            elif lands.count("/") > _DEPTH_MAX:
                found.problems.append(f"{_shown(entry.path)} lies too deep")
            elif _good_name(found, entry.path, lands):
                pending.append((entry.path, lands))


def _entry(found: _Walk, source: str, lands: str, status: os.stat_result) -> None:
    """Take up one thing that is not a folder."""
    if not _good_name(found, source, lands):
        return
    if stat.S_ISLNK(status.st_mode):
        _link(found, source, lands)
    elif not stat.S_ISREG(status.st_mode):
        kind = _SPECIAL.get(stat.S_IFMT(status.st_mode), "no regular file")
        found.problems.append(f"{_shown(source)} is {kind}, and only files, folders and links can be published")
    elif not os.access(source, os.R_OK, effective_ids=True):
        found.problems.append(f"{_shown(source)} cannot be read by this user")
    else:
        found.add(SourceFile(lands, source, status.st_size))


def _link(found: _Walk, source: str, lands: str) -> None:
    try:
        target = os.readlink(source)  # noqa: PTH115 - a Path would change the target's spelling
        encoded = target.encode()
    except OSError as error:
        found.problems.append(f"{_shown(source)} cannot be read: {error.strerror}")
    except UnicodeEncodeError:
        found.problems.append(f"{_shown(source)} links to a name that is not UTF-8")
    else:
        if len(encoded) > LINK_TARGET_BYTES_MAX:
            found.problems.append(f"{_shown(source)} has a link target of {len(encoded)} bytes")
        else:
            found.add(SourceLink(lands, source, target))


def _good_name(found: _Walk, source: str, lands: str) -> bool:
    try:
        check_path(lands)
    except FormatError as error:
        found.problems.append(f"{_shown(source)}: {error}")
        return False
    return True


def _check_twins(found: _Walk) -> None:
    """Siblings that differ only in how they spell accents cannot live in one folder on every system."""
    if all(path.isascii() for path in found.items):
        return
    seen: dict[str, str] = {}
    for path in found.items:
        twin = seen.setdefault(nfc(path), path)
        if twin != path:
            found.problems.append(f"{path!r} and {twin!r} are the same name in Unicode's normal form (NFC)")


def _refuse(found: _Walk) -> None:
    for lines, opening in ((found.clashes, "two sources for one name"), (found.problems, "cannot be published")):
        if lines:
            more = f"; and {len(lines) - _PROBLEMS_SHOWN} more" if len(lines) > _PROBLEMS_SHOWN else ""
            raise UsageError(f"{opening}: {'; '.join(lines[:_PROBLEMS_SHOWN])}{more}")


def _shown(source: str) -> str:
    """A local name for a message: bytes that are not UTF-8 are escaped."""
    return source.encode(errors="surrogateescape").decode(errors="backslashreplace")
