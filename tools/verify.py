"""``damfs verify``: every chunk and recipe that a revision needs is in the store, and right.

State: a temporary SQLite file with the distinct objects of the revision, so that memory stays bounded however large the
show is. Rules: every object is fetched once and checked against its digest and length; each bad one is reported with
the paths that use it; a store that is not reachable ends the run, for it says nothing about the objects.
"""

import sqlite3
import tempfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from manifest import layout
from manifest.digest import Digest
from manifest.errors import DamfsError, IntegrityError, UsageError
from manifest.names import Revision
from manifest.recipe import Chunk, Recipe
from manifest.replica import Kind, Row
from tools.complete import complete_address
from tools.context import Context
from tools.options import command
from tools.output import Progress, counted, human_bytes
from tools.reader import Reader, inline_recipe
from tools.replicas import View, open_view

IN_FLIGHT_MAX = 32
BAD_MAX = 10_000
PATHS_MAX = 100
"""Of each bad object so many paths are reported; ``paths_more`` says that there are others."""

_SCHEMA = """
CREATE TABLE chunks(digest BLOB, length INTEGER, PRIMARY KEY(digest, length)) WITHOUT ROWID;
CREATE TABLE contents(content BLOB PRIMARY KEY) WITHOUT ROWID;
"""


@dataclass
class Bad:
    """One object that is missing or wrong."""

    kind: str
    key: str
    problem: str
    paths: list[str] = field(default_factory=list)
    paths_more: bool = False


@dataclass
class Report:
    """What the check of one show found."""

    show: str
    revision: Revision
    chunks: int = 0
    recipes: int = 0
    bytes_checked: int = 0
    bad: dict[bytes, Bad] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "show": self.show,
            "revision": self.revision,
            "chunks": self.chunks,
            "recipes": self.recipes,
            "bytes": self.bytes_checked,
            "bad": [
                {
                    "kind": bad.kind,
                    "object": bad.key,
                    "problem": bad.problem,
                    "paths": bad.paths,
                    "paths_more": bad.paths_more,
                }
                for bad in self.bad.values()
            ],
        }


@command()
def verify(
    context: Context,
    address: Annotated[
        str | None,
        typer.Argument(
            metavar="[SHOW[@REV]]",
            help="A show, live or as of a revision or time, or its path in a mount; without it the head of every show.",
            show_default=False,
            autocompletion=complete_address,
        ),
    ] = None,
) -> None:
    """Check that every chunk of a revision is in the store and right."""
    reports = []
    for view in _views(context, address):
        report = Report(view.show, view.revision)
        with Reader(context.library) as reader:
            _check(context, reader, view, report)
        _print(context, report)
        reports.append(report)
    bad = sum(len(report.bad) for report in reports)
    if context.json:
        context.output.result({"ok": not bad, "shows": [report.to_json() for report in reports]})
    if bad:
        raise IntegrityError(
            f"{counted(('object', bad))} missing or wrong: restore what is bad in the store, or publish the files again"
        )


def _views(context: Context, address: str | None) -> Iterator[View]:
    if address is not None:
        place = context.address(address)
        if place.path:
            raise UsageError(f"{address}: a whole show is verified; leave away :{place.path}")
        yield open_view(context, place.show, place.at, bytes_needed=True)
        return
    from manifest.identity import list_shows  # noqa: PLC0415 - loads obstore

    for show in list_shows(context.library, timeout_s=30.0):
        yield open_view(context, show, None, bytes_needed=True)


def _print(context: Context, report: Report) -> None:
    for bad in report.bad.values():
        context.output.error(f"{bad.key}: {bad.problem}")
        for path in bad.paths:
            context.output.error(f"  in {report.show}@{report.revision}:{path}")
        if bad.paths_more:
            context.output.error("  and in others")
    verdict = f"{counted(('bad object', len(report.bad)))}" if report.bad else "all right"
    checked = counted(("chunk", report.chunks), ("recipe", report.recipes))
    context.output.say(f"{report.show}@{report.revision}: {checked}, {human_bytes(report.bytes_checked)}: {verdict}")


def _check(context: Context, reader: Reader, view: View, report: Report) -> None:
    """Fill ``report``. Raises Unavailable and AccessDenied; what is bad stands in the report."""
    with _objects() as objects, context.output.progress(f"verifying {view.show}", total=0) as progress:
        _collect(reader, view, report, objects, progress)
        _fetch(reader, view, report, objects, progress)
    if report.bad:
        _find_paths(reader, view, report)


@contextmanager
def _objects() -> Iterator[sqlite3.Connection]:
    """The table of distinct objects, in a file that is gone afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="damfs-verify-") as folder,
        closing(sqlite3.connect(Path(folder) / "objects.db", isolation_level=None)) as objects,
    ):
        objects.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;" + _SCHEMA)
        objects.execute("BEGIN")
        yield objects


def _collect(reader: Reader, view: View, report: Report, objects: sqlite3.Connection, progress: Progress) -> None:
    """Note every distinct chunk of the revision; recipes that are objects are fetched and checked on the way."""
    for _, row in view.reader.walk("", view.revision):
        if (
            row.kind != Kind.FILE
            or not objects.execute("INSERT OR IGNORE INTO contents VALUES (?)", (row.content,)).rowcount
        ):
            continue
        recipe = _recipe(reader, view, row, report)
        if recipe is None:
            continue
        for position in range(len(recipe)):
            digest, length = recipe[position]
            if objects.execute("INSERT OR IGNORE INTO chunks VALUES (?, ?)", (digest, length)).rowcount:
                progress.grow(length)


def _recipe(reader: Reader, view: View, row: Row, report: Report) -> Recipe | None:
    assert row.content is not None
    content = Digest(row.content)
    if inline_recipe(row, view.reader) is None:
        report.recipes += 1
    try:
        return reader.recipe_of(view.show, row, view.reader)
    except IntegrityError as error:
        _note(report, content, "recipe", layout.recipe_key(view.show, content), error)
        return None


def _fetch(reader: Reader, view: View, report: Report, objects: sqlite3.Connection, progress: Progress) -> None:
    """Fetch and check every chunk that was noted, several at once."""
    waiting: deque[tuple[Chunk, Future[None]]] = deque()

    def finish() -> None:
        chunk, future = waiting.popleft()
        try:
            future.result()
        except IntegrityError as error:
            _note(report, chunk.digest, "chunk", layout.chunk_key(view.show, chunk.digest), error)
        report.chunks += 1
        report.bytes_checked += chunk.length
        progress.advance(chunk.length)

    try:
        for digest, length in objects.execute("SELECT digest, length FROM chunks ORDER BY digest, length"):
            chunk = Chunk(Digest(digest), length)
            waiting.append((chunk, reader.submit(partial(_check_chunk, reader, view.show, chunk))))
            if len(waiting) >= IN_FLIGHT_MAX:
                finish()
        while waiting:
            finish()
    finally:
        for _, future in waiting:
            future.cancel()


def _check_chunk(reader: Reader, show: str, chunk: Chunk) -> None:
    reader.chunk(show, chunk)


def _note(report: Report, digest: Digest, kind: str, key: str, error: DamfsError) -> None:
    if len(report.bad) >= BAD_MAX:
        raise IntegrityError(
            f"more than {BAD_MAX} objects of {report.show} are missing or wrong; is this the right store?"
        )
    report.bad[bytes(digest)] = Bad(kind, key, str(error).removeprefix(f"{key}: "))


def _find_paths(reader: Reader, view: View, report: Report) -> None:
    """Find the paths that use each bad object: a second walk, since the first kept none."""
    for path, row in view.reader.walk("", view.revision):
        if row.kind != Kind.FILE:
            continue
        assert row.content is not None
        content = Digest(row.content)
        hit = {bytes(content)} & report.bad.keys()
        if not hit:
            recipe = reader.recipe_of(view.show, row, view.reader)
            hit = {bytes(recipe[position].digest) for position in range(len(recipe))} & report.bad.keys()
        for digest in hit:
            bad = report.bad[digest]
            if len(bad.paths) < PATHS_MAX:
                bad.paths.append(path)
            else:
                bad.paths_more = True
