"""A trace on disk: which bytes of which files a program read through a mount. JSON Lines, ``damfs.trace/1``.

State: none. docs/FORMAT.md describes it. A trace comes from anybody, also out of a library: it is read strictly, with
limits on everything, and says nothing but what might be worth having in the cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from daemon.wants import RANGES_MAX, WANTS_MAX, Ranges, Want, check_ranges
from manifest import canonical
from manifest.digest import Digest
from manifest.errors import FormatError
from manifest.names import REVISION_MAX, check_path, check_show

if TYPE_CHECKING:
    from collections.abc import Iterable

TRACE_NAME = ".damfs-trace"
"""What a trace is called in a version folder that was published with one."""
TRACE_BYTES_MAX = 16 * 1024 * 1024
FILES_MAX = WANTS_MAX
_TYPE = "damfs.trace/1"
_LINE_BYTES_MAX = 4 * 1024 * 1024
_KEYS = {"show", "revision", "path", "content", "size", "ranges"}


class TracedFile(NamedTuple):
    """A file that was read: as of which revision it has been there, what it was, and which bytes of it."""

    show: str
    revision: int
    path: str
    content: Digest
    size: int
    ranges: Ranges

    def want(self, at: str | None) -> Want:
        """The same bytes of the file that is there as of ``at``."""
        return Want(self.show, at, self.path, content=str(self.content), ranges=self.ranges)


class TraceFile(NamedTuple):
    """All files in the order in which they were opened. ``cut``: there were more than a trace may have."""

    files: list[TracedFile]
    cut: bool = False


def encode(files: Iterable[TracedFile], *, cut: bool) -> bytes:
    """The bytes of a trace; the files that no longer have room in it are left out, and it is cut. Takes a moment."""
    lines: list[bytes] = []
    room = TRACE_BYTES_MAX - 100
    for file in files:
        line = canonical.encode({**file._asdict(), "content": str(file.content), "ranges": list(file.ranges)}) + b"\n"
        room -= len(line)
        if room < 0 or len(lines) == FILES_MAX:
            cut = True
            break
        lines.append(line)
    return canonical.encode({"_type": _TYPE, "cut": int(cut)}) + b"\n" + b"".join(lines)


def parse(data: bytes) -> TraceFile:
    """Read a trace. Raises FormatError, which names the line. Takes a moment."""
    if len(data) > TRACE_BYTES_MAX:
        raise FormatError(f"a trace of more than {TRACE_BYTES_MAX:,} bytes")
    first, *lines = data.split(b"\n")
    head = _decode(first, 1)
    if not isinstance(head, dict) or head.get("_type") != _TYPE or set(head) != {"_type", "cut"}:
        raise FormatError(f"line 1: it is no {_TYPE}")
    if head["cut"] not in (0, 1):
        raise FormatError("line 1: cut is neither 0 nor 1")
    if not lines or lines.pop():
        raise FormatError("its last line is cut off")
    if len(lines) > FILES_MAX:
        raise FormatError(f"it names more than {FILES_MAX:,} files")
    files = [_file(_decode(line, number), number) for number, line in enumerate(lines, 2)]
    if sum(len(file.ranges) for file in files) > RANGES_MAX:
        raise FormatError(f"it has more than {RANGES_MAX:,} ranges")
    if len({(file.show, file.path, file.content) for file in files}) < len(files):
        raise FormatError("it names a file twice")
    return TraceFile(files, bool(head["cut"]))


def _decode(line: bytes, number: int) -> Any:
    try:
        return canonical.decode(line, bytes_max=_LINE_BYTES_MAX)
    except FormatError as error:
        raise FormatError(f"line {number}: {error}") from error


def _file(value: Any, number: int) -> TracedFile:
    try:
        return _read(value)
    except FormatError as error:
        raise FormatError(f"line {number}: {error}") from error


def _read(value: Any) -> TracedFile:
    if not isinstance(value, dict) or set(value) != _KEYS:
        raise FormatError(f"expected an object with {', '.join(sorted(_KEYS))}")
    ranges = value["ranges"]
    if not isinstance(ranges, list) or not all(isinstance(one, list) for one in ranges):
        raise FormatError("its ranges are no list of lists")
    file = TracedFile(
        check_show(value["show"]), _number(value["revision"], REVISION_MAX), check_path(value["path"]),
        Digest.parse(value["content"]), _number(value["size"], canonical.INTEGER_MAX), tuple(map(tuple, ranges)),
    )  # fmt: skip
    check_ranges(file.ranges)
    if file.ranges[-1][1] > file.size:
        raise FormatError(f"a range ends behind the file's {file.size} bytes")
    return file


def _number(value: object, most: int) -> int:
    if type(value) is not int or not 0 < value <= most:
        raise FormatError(f"{value!r} is no number from 1 to {most}")
    return value
