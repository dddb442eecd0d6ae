"""``damfs rm``: publish that a path is gone. No byte is deleted: older revisions keep it. State: none."""

from __future__ import annotations

import secrets
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from manifest.changeset import Op
from manifest.errors import NotFound, UsageError
from manifest.names import join, split
from manifest.replica import Kind
from tools.publish.publish import advance, check_signature, commit_ops

if TYPE_CHECKING:
    from tools.publish.live import Live
    from tools.publish.publish import Target


@dataclass(frozen=True, slots=True)
class Removal:
    """What was, or would be, removed. ``dangling`` are links beside the path that lead to it."""

    revision: int | None
    files: int
    links: int
    folders: int
    size_bytes: int
    dangling: list[str]


def remove(target: Target, path: str, message: str = "", *, dry_run: bool = False) -> Removal:
    """Remove ``path`` and everything below it, in one revision.

    Raises NotFound, UsageError for the show's root, Conflict when something of it changes at the same moment,
    TransportError, OutcomeUnknown.
    """
    show = target.show.log.show
    if not path:
        raise UsageError(f"name what is to be removed: {show}:PATH; a whole show is not removed")
    check_signature(target, message)
    with closing(target.show.reader()) as reader:
        live = advance(target.show, reader)
        row = live.row(path)
        if row is None:
            raise NotFound(f"{show} has no {path} at revision {live.revision}")
        ops: list[Op] = []
        counts = {Kind.FILE: 0, Kind.LINK: 0, Kind.FOLDER: 0}
        size_bytes = 0
        rows = {path: row}
        if row.kind == Kind.FOLDER:
            rows.update(reader.walk(path, live.revision))
        for below, found in rows.items():
            counts[Kind(found.kind)] += 1
            size_bytes += found.size if found.kind == Kind.FILE else 0
            ops.append(Op(below, live.pre(found), None))
        dangling = _dangling(live, path)
        ops.sort(key=lambda op: op.path)
    revision = None if dry_run else commit_ops(target, secrets.token_hex(16), message, ops)
    return Removal(revision, counts[Kind.FILE], counts[Kind.LINK], counts[Kind.FOLDER], size_bytes, dangling)


def _dangling(live: Live, path: str) -> list[str]:
    folder, name = split(path)
    links = (row for row in live.list(folder) if row.kind == Kind.LINK and row.target == name)
    return [join(folder, row.name) for row in links if row.name != name]
