"""The tools' own replicas, brought up to date as far as the library lets them.

Rules: a command that needs only names (ls, log, diff) goes on with what the replica knows when the library is not
reachable, and says so; one that needs bytes, and one that names a revision which the replica does not have, ends with
Unavailable. A show that stalls is said, too: what is shown is then the last revision that could be applied.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from manifest.errors import NotFound, Unavailable
from manifest.links import follow
from manifest.names import At, Revision, join
from manifest.replica import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from manifest.names import Address
    from manifest.replica import ReplicaReader, Row
    from tools.context import Context

SYNC_DEADLINE_S = 600.0


@dataclass(frozen=True, slots=True)
class View:
    """One show as of one revision, to be read from the thread that opened it."""

    show: str
    revision: Revision
    reader: ReplicaReader


@dataclass(frozen=True, slots=True)
class Target:
    """What an address came to: a path without links in a view, and its row."""

    view: View
    path: str
    row: Row

    def below(self) -> Iterator[tuple[str, Row]]:
        """(path relative to this folder, row) of everything in it, sorted; what is no folder by its own name."""
        if self.row.kind != Kind.FOLDER:
            yield self.row.name, self.row
            return
        start = len(join(self.path, ""))
        for path, row in self.view.reader.walk(self.path, self.view.revision):
            if path != self.path:
                yield path[start:], row

    def __str__(self) -> str:
        return f"{self.view.show}@{self.view.revision}" + (f":{self.path}" if self.path else "")


def open_view(context: Context, name: str, at: Revision | At | None, *, bytes_needed: bool = False) -> View:
    """Sync the tools' replica of a show and look at it as of ``at`` (None: its head).

    Raises NotFound for a show or a revision that is not there, Unavailable as the module's rules say.
    """
    reader = context.reader(name)
    wanted = at if isinstance(at, int) else None
    if not (wanted is not None and wanted <= reader.head and not bytes_needed):
        _advance(context, name, bytes_needed=bytes_needed)
    head = reader.head
    if isinstance(at, At):
        return View(name, reader.at_time(at.time_ns), reader)
    if wanted is None:
        return View(name, head, reader)
    if wanted > head:
        missing = f"{name} has no revision {wanted}: the newest is {head}"
        if context.offline:
            raise Unavailable(f"{missing} on this machine, and the library is not reachable")
        raise NotFound(missing)
    return View(name, Revision(wanted), reader)


def open_target(context: Context, text: str, *, follow_last: bool = True, bytes_needed: bool = False) -> Target:
    """What ``text`` (an address, or a path in a mount) names. Raises NotFound, UsageError, Unavailable."""
    address: Address = context.address(text)
    view = open_view(context, address.show, address.at, bytes_needed=bytes_needed)
    path, row = follow(view.reader, address.path, view.revision, last=follow_last)
    return Target(view, path, row)


def _advance(context: Context, name: str, *, bytes_needed: bool) -> None:
    show = context.show(name)
    reader = context.reader(name)
    before = reader.head
    reachable, reason = not context.offline, ""
    if reachable:
        with context.output.progress(f"syncing {name}", unit="revisions"):
            progress = show.follower.advance(deadline=time.monotonic() + SYNC_DEADLINE_S)
        reachable = progress.reachable
        if progress.stalled is not None:
            reason = f"{name} is stalled behind revision {progress.head}: {progress.stalled.reason}"
            context.output.warn(reason)
    if not reachable:
        context.offline = True
        if bytes_needed or before == 0:
            again = f"library {context.library.url} is not reachable; try again later"
            raise Unavailable(context.offline_reason or again)
        context.output.note(f"library {context.library.url} is not reachable: this is {name} as of revision {before}")
    elif reader.head == 0:
        _require_show(context, name)


def _require_show(context: Context, name: str) -> None:
    """Raise NotFound when the library has no such show, rather than an empty one."""
    from manifest.identity import list_shows, show_exists  # noqa: PLC0415 - loads obstore

    if show_exists(context.library, name):
        return
    shows = list_shows(context.library, timeout_s=5.0)
    known = f"it has {', '.join(shows[:8])}{'…' if len(shows) > 8 else ''}" if shows else "it has none"
    raise NotFound(f"library {context.library.url} has no show {name}: {known}; `damfs show add {name}` makes it")
