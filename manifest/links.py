"""Symbolic links inside a show: followed on the way to a path and, where the caller wants it, at its end.

State: none. Rule: none leads out of its show; what does is not found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from manifest.errors import NotFound
from manifest.names import join, split
from manifest.replica import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from manifest.names import Revision
    from manifest.replica import ReplicaReader, Row

LINKS_MAX = 40
"""As many links as the kernel follows in one path."""


def follow(
    reader: ReplicaReader,
    path: str,
    revision: Revision,
    *,
    last: bool,
    enter: Callable[[str, Row], None] = lambda path, folder: None,  # noqa: ARG005
) -> tuple[str, Row]:
    """The path behind ``path`` with its links followed (the last component's only with ``last``), and its row.

    ``enter`` is called with each folder before a name in it is looked up; what it raises ends the search.
    Raises NotFound, and says which component is missing, not a folder, a link in a circle or one out of the show.
    """
    wanted = path.split("/") if path else []
    here = ""
    row = _row(reader, "", revision, path)
    links = 0
    while wanted:
        name = wanted.pop(0)
        if row.kind != Kind.FOLDER:
            raise NotFound(f"{path}: {here} is not a folder")
        enter(here, row)
        step = join(here, name)
        row = _row(reader, step, revision, path)
        if row.kind != Kind.LINK or not (wanted or last):
            here = step
            continue
        links += 1
        if links > LINKS_MAX:
            raise NotFound(f"{path}: more than {LINKS_MAX} links, {step} is one of a circle")
        wanted = _expand(here, row.target or "", path).split("/") + wanted
        wanted = [part for part in wanted if part]
        here, row = "", _row(reader, "", revision, path)
    return here, row


def _expand(folder: str, target: str, path: str) -> str:
    """The path that a link in ``folder`` leads to, relative to the show."""
    if target.startswith("/"):
        raise NotFound(f"{path}: a link on the way leads out of the show, to {target}")
    parts = folder.split("/") if folder else []
    for part in target.split("/"):
        if part == "..":
            if not parts:
                raise NotFound(f"{path}: a link on the way leads out of the show, to {target}")
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _row(reader: ReplicaReader, path: str, revision: Revision, wanted: str) -> Row:
    row = reader.resolve(path, revision)
    if row is None:
        folder, name = split(path)
        raise NotFound(f"no {wanted} at revision {revision}: {folder or 'the show'} has no {name}")
    return row
