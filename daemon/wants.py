"""What a prefetch is asked to bring: places, sequences, and parts of files; and which files of a show these are.

State: none. A want names its show as of a revision, or a time; once a job has begun these are revisions, so that it
means the same after a restart.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from manifest import patterns
from manifest.digest import Digest
from manifest.errors import FormatError, NotAFolder, NotFound, UsageError, UserError
from manifest.links import follow
from manifest.names import check_path, check_show, join, parse_at, split
from manifest.replica import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from manifest.names import Revision
    from manifest.replica import ReplicaReader, Row

FRAMES_MAX = 100_000
WANTS_MAX = 50_000
RANGES_MAX = 200_000
"""In all wants of one job."""
EXAMPLES_MAX = 20

Ranges = tuple[tuple[int, int], ...]
"""Of a file's bytes: [start, stop), in order, none touches the next."""


@dataclass(frozen=True, slots=True)
class Want:
    """One thing to bring.

    ``sequence``: the last part of ``path`` is a pattern (manifest/patterns.py), of which ``frames`` are wanted, or all.
    ``traced``: a folder, of which what its trace names is wanted. ``ranges``: bytes of a file that was ``content``
    when they were read.
    """

    show: str
    at: str | None = None
    path: str = ""
    recursive: bool = False
    sequence: bool = False
    frames: tuple[int, ...] | None = None
    traced: bool = False
    content: str | None = None
    ranges: Ranges | None = None

    def __str__(self) -> str:
        at = "" if self.at is None else f"@{self.at}"
        return f"{self.show}{at}" + (f":{self.path}" if self.path else "")

    def to_json(self) -> dict[str, Any]:
        """What differs from the defaults."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in values if value not in (None, False, "")}

    @classmethod
    def from_json(cls, values: Any) -> Want:
        """What ``to_json`` gave. Raises FormatError, UsageError."""
        if not isinstance(values, dict):
            raise FormatError("a want is no object")
        values = dict(values)
        for name in ("frames", "ranges"):
            if isinstance(values.get(name), list):
                items = (tuple(item) if isinstance(item, list) else item for item in values[name])
                values[name] = tuple(items)
        try:
            return check(cls(**values))
        except TypeError as error:
            raise FormatError(f"a want is not as it should be: {error}") from error


def check(want: Want) -> Want:
    """A want that can be looked up. Raises FormatError, UsageError."""
    texts, flags = (want.show, want.path), (want.recursive, want.sequence, want.traced)
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(flag, bool) for flag in flags):
        raise FormatError(f"a want has a value of another kind: {want}")
    check_show(want.show)
    if want.path:
        check_path(want.path)
    if want.at is not None:
        if not isinstance(want.at, str):
            raise FormatError(f"{want}: its revision is no text")
        parse_at(want.at)
    if want.sequence:
        patterns.parse(split(want.path)[1])
    if want.frames is not None:
        _check_frames(want)
    if want.content is not None:
        Digest.parse(want.content)
    if want.ranges is not None:
        check_ranges(want.ranges)
    return want


def _check_frames(want: Want) -> None:
    frames = want.frames
    if not want.sequence:
        raise UsageError(f"{want}: frames are those of a sequence")
    if not isinstance(frames, tuple) or len(frames) > FRAMES_MAX or not all(type(frame) is int for frame in frames):
        raise FormatError(f"{want}: expected at most {FRAMES_MAX:,} numbers of frames")


def check_ranges(ranges: Ranges) -> None:
    """Raise FormatError unless these are ranges of bytes as the module has them."""
    if not isinstance(ranges, tuple) or not ranges:
        raise FormatError("expected at least one range")
    before = -1
    for one in ranges:
        if not isinstance(one, tuple) or len(one) != 2 or not all(type(number) is int for number in one):
            raise FormatError(f"{one!r} is no range: expected [start, stop]")
        start, stop = one
        if not before < start < stop < 2**63:
            raise FormatError(f"the range [{start}, {stop}] is empty, or not behind the one before it")
        before = stop


class Wanted(NamedTuple):
    """A file to bring: its path in the show, its row, and the ranges of it; None: all of it."""

    path: str
    row: Row
    ranges: Ranges | None

    @property
    def bytes(self) -> int:
        """How many bytes of it are wanted."""
        return self.row.size if self.ranges is None else sum(stop - start for start, stop in self.ranges)


@dataclass(slots=True)
class Missing:
    """What is wanted and not there: how much, and some of it in words."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def note(self, text: str, count: int = 1) -> None:
        self.count += count
        if len(self.examples) < EXAMPLES_MAX:
            self.examples.append(text)


def files(reader: ReplicaReader, revision: Revision, wants: Iterable[Want], missing: Missing) -> Iterator[Wanted]:
    """The files of these wants, which are of the reader's show as of a revision, in order. Blocking.

    What is not there is noted in ``missing``. A file that two wants name comes twice. Raises what the reader raises.
    """
    for want in wants:
        try:
            if want.sequence:
                yield from _frames(reader, revision, want, missing)
            elif want.ranges is not None:
                yield from _parts(reader, revision, want)
            else:
                yield from _below(reader, revision, want)
        except UserError as error:
            missing.note(f"{want}: {error}")


def _below(reader: ReplicaReader, revision: Revision, want: Want) -> Iterator[Wanted]:
    path, row = follow(reader, want.path, revision, last=True)
    if row.kind != Kind.FOLDER:
        entries: Iterable[tuple[str, Row]] = [(path, row)]
    elif want.recursive:
        entries = reader.walk(path, revision)
    else:
        entries = ((join(path, row.name), row) for row in reader.names(row.node, revision))
    yield from (Wanted(path, row, None) for path, row in entries if _has_bytes(row))


def _parts(reader: ReplicaReader, revision: Revision, want: Want) -> Iterator[Wanted]:
    assert want.ranges is not None
    path, row = follow(reader, want.path, revision, last=True)
    if row.kind == Kind.FOLDER:
        raise NotFound(f"{want} is a folder now")
    ranges = tuple((start, min(stop, row.size)) for start, stop in want.ranges if start < row.size)
    if _has_bytes(row) and ranges:
        yield Wanted(path, row, None if ranges == ((0, row.size),) else ranges)


def _frames(reader: ReplicaReader, revision: Revision, want: Want, missing: Missing) -> Iterator[Wanted]:
    above, name = split(want.path)
    pattern = patterns.parse(name)
    folder, row = follow(reader, above, revision, last=True)
    if row.kind != Kind.FOLDER:
        raise NotAFolder(f"{folder} is no folder")
    wanted = None if want.frames is None else set(want.frames)
    found: dict[int, list[str]] = {}
    for entry in reader.names(row.node, revision):
        number = pattern.number(entry.name)
        if number is not None and (wanted is None or number in wanted):
            found.setdefault(number, []).append(entry.name)
    if not found:
        raise NotFound(f"{folder or 'the show'} has no frame of it" + (" that is wanted" if wanted else ""))
    absent = sorted((wanted or set()) - set(found))
    if absent:
        missing.note(f"{want}: no frames {spell(absent)}", len(absent))
    for number in sorted(found):
        for name in found[number]:
            yield from _below(reader, revision, Want(want.show, want.at, join(folder, name)))


def _has_bytes(row: Row) -> bool:
    return row.kind == Kind.FILE and row.content is not None and row.digest is not None and row.size > 0


def spell(frames: list[int]) -> str:
    """Frames, sorted, as people write them: ``1001-1003,1007``; of many runs the first ones."""
    runs: list[tuple[int, int]] = []
    for frame in frames:
        if runs and frame == runs[-1][1] + 1:
            runs[-1] = runs[-1][0], frame
        else:
            runs.append((frame, frame))
    parts = [str(first) if first == last else f"{first}-{last}" for first, last in islice(runs, EXAMPLES_MAX)]
    return ",".join(parts) + (f" and {len(runs) - len(parts)} more runs" if len(runs) > len(parts) else "")
