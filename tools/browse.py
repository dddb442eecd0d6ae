"""``damfs ls``, ``log`` and ``diff``: what a show holds, and how it came to be. They need names only, never bytes."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from typing import Annotated, Any

import typer

from manifest.errors import NotFound, UsageError
from manifest.links import follow
from manifest.names import Revision, parse_at
from manifest.replica import Kind, ReplicaReader, RevisionInfo, Row
from tools.complete import complete_address
from tools.context import Context
from tools.options import command
from tools.output import human_time, iso_time
from tools.replicas import Target, View, open_target, open_view
from tools.rows import row_cells, row_json

PAGE = 1000
SEARCHED_MAX = 50_000
"""How many revisions one ``log`` of a path looks through: each takes about 50 µs."""

Address = Annotated[
    str,
    typer.Argument(
        metavar="SHOW[@REV][:PATH]",
        help="A place in a show, live or as of a revision or time; or a path in a mount.",
        autocompletion=complete_address,
    ),
]


@command()
def ls(
    context: Context,
    address: Address,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Everything below, with its path.")] = False,
) -> None:
    """List a folder, or one file or link."""
    target = open_target(context, address)
    items = _below(target, recursive=recursive)
    if context.json:
        head = {"show": target.view.show, "revision": target.view.revision, "path": target.path}
        context.output.result_stream(head, "entries", ({"name": name, **row_json(row)} for name, row in items))
    else:
        context.output.table(
            ("mode", "size", "modified", "name"), (row_cells(row, name) for name, row in items), right=(1,)
        )


def _below(target: Target, *, recursive: bool) -> Iterator[tuple[str, Row]]:
    """(name or relative path, row) of what a listing of ``target`` shows, sorted, read in pages."""
    view, row = target.view, target.row
    if recursive or row.kind != Kind.FOLDER:
        yield from target.below()
    else:
        assert row.node is not None
        after = ""
        while page := view.reader.list(row.node, view.revision, after=after, limit=PAGE):
            yield from ((below.name, below) for below in page)
            after = page[-1].name


@command()
def log(
    context: Context,
    address: Annotated[
        str,
        typer.Argument(
            metavar="SHOW[@REV][:PATH]",
            help="A show, or a place in it whose changes are wanted; or a path in a mount.",
            autocompletion=complete_address,
        ),
    ],
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, metavar="N", help="At most so many.")] = None,
) -> None:
    """Show who published what and when, newest first.

    The log of a path looks through 50,000 revisions at most, and says how to go on behind them.
    """
    place = context.address(address)
    view = open_view(context, place.show, place.at)
    path = _behind_links(view, place.path)
    oldest = max(1, view.revision - SEARCHED_MAX + 1) if path else 1
    found = _history(view, path, oldest, limit)
    if oldest > 1:
        on = f"damfs log {view.show}@{oldest - 1}:{path}"
        context.output.note(f"only the revisions from @{oldest} on are looked through: `{on}` goes on")
    elif path:
        newest = next(found, None)
        if newest is None:
            raise NotFound(f"{view.show} has no {path}, and had none in any revision up to {view.revision}")
        found = chain([newest], found)
    if context.json:
        head = {"show": view.show, "path": path, "oldest": oldest}
        context.output.result_stream(head, "revisions", map(revision_json, found))
        return
    rows = (
        (f"@{info.seq}", human_time(info.time_ns), info.author, _first_line(info), info.publish_id[:8])
        for info in found
    )
    context.output.table(("revision", "time", "author", "message", "publish"), rows, right=(0,))


def _behind_links(view: View, path: str) -> str:
    """``path`` with the links on the way to it followed; itself when it is not there (any more)."""
    with suppress(NotFound):
        return follow(view.reader, path, view.revision, last=False)[0]
    return path


def _history(view: View, path: str, oldest: int, limit: int | None) -> Iterator[RevisionInfo]:
    """The revisions from the view's to ``oldest``; with a path only those that changed something there."""
    count = 0
    for seq in range(view.revision, oldest - 1, -1):
        if path and next(iter(view.reader.changes(Revision(seq - 1), Revision(seq), path)), None) is None:
            continue
        info = view.reader.revision(Revision(seq))
        assert info is not None, "the replica holds every revision up to its head"
        yield info
        count += 1
        if count == limit:
            return


def revision_json(info: RevisionInfo) -> dict[str, Any]:
    """One revision, for scripts."""
    return {
        "revision": info.seq,
        "publish_id": info.publish_id,
        "author": info.author,
        "message": info.message,
        "key": info.keyid,
        "time": iso_time(info.time_ns),
        "time_ns": info.time_ns,
        "status": info.status,
        "reason": info.reason,
    }


def _first_line(info: RevisionInfo) -> str:
    if info.status != "applied":
        return f"(not applied: {info.reason})"
    return info.message.partition("\n")[0]


@command()
def diff(
    context: Context,
    address: Annotated[
        str,
        typer.Argument(
            metavar="SHOW[:PATH]",
            help="A show, or a place in it; or a path in a mount.",
            autocompletion=complete_address,
        ),
    ],
    a: Annotated[str, typer.Argument(metavar="A", help="A revision or a time.")],
    b: Annotated[str, typer.Argument(metavar="B", help="A revision or a time.")],
) -> None:
    """Show what changed in a show from revision A to revision B."""
    place = context.address(address)
    if place.at is not None:
        raise UsageError(
            f"{address}: the revisions to compare stand behind the show, as in `damfs diff {place.show} 3 7`"
        )
    first = open_view(context, place.show, parse_at(a.removeprefix("@")))
    second = open_view(context, place.show, parse_at(b.removeprefix("@")))
    reader = second.reader
    if place.path and not _is_there(reader, place.path, first.revision, second.revision):
        raise NotFound(f"{place.show} has no {place.path} at revision {first.revision} or {second.revision}")
    changes = reader.changes(first.revision, second.revision, place.path)
    if context.json:
        head = {"show": place.show, "path": place.path, "a": first.revision, "b": second.revision}
        items = (
            {
                "path": change.path,
                "change": _word(change.before, change.after),
                "before": row_json(change.before) if change.before else None,
                "after": row_json(change.after) if change.after else None,
            }
            for change in changes
        )
        context.output.result_stream(head, "changes", items)
        return
    rows = (
        (_word(change.before, change.after), *_cells(change.after or change.before, change.path)) for change in changes
    )
    context.output.table(("change", "size", "path"), rows, right=(1,))


def _is_there(reader: ReplicaReader, path: str, *revisions: Revision) -> bool:
    return any(reader.resolve(path, revision) is not None for revision in revisions)


def _word(before: Row | None, after: Row | None) -> str:
    return "added" if before is None else "removed" if after is None else "changed"


def _cells(row: Row | None, path: str) -> tuple[str, str]:
    assert row is not None, "a change has a row on one side at least"
    _, size, _, name = row_cells(row, path)
    return size, name
