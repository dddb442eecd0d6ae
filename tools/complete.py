"""What the shell offers behind a half-typed address: shows, and the names in a folder, out of the tools' own replicas.

State: none. Rules: completion must be quick and must never fail: it asks no network and syncs nothing, and in any
trouble it offers nothing. Local paths are left to the shell. Where only a folder or a show fits, what may follow is
offered too, so that no shell ends the word there with a space. Names with a control character are not offered.
"""

from __future__ import annotations

import glob
import io
import re
import sqlite3
import sys
from contextlib import contextmanager, redirect_stdout
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from manifest.errors import DamfsError
from manifest.names import split
from manifest.replica import Kind, Replica
from tools.address import is_local_path
from tools.context import Common, Context

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping

    from manifest.replica import ReplicaReader, Row

OFFERED_MAX = 500
_BREAKS = re.compile(r"[:@=]+")
_QUOTES = ("'", '"')
_SPECIAL = re.compile(r"[^\w@%+=:,./-]")


@contextmanager
def bash_words(environ: MutableMapping[str, str]) -> Iterator[None]:
    """Let bash's completion see words with ``:``, ``@`` and ``=`` in them whole, and answer with what bash replaces.

    Bash breaks words there, each such sign a word of its own, and replaces only what stands behind the last one.
    Nothing happens where bash asks for no completion. Source: bash(1), COMP_WORDBREAKS and COMP_WORDS.
    """
    if environ.get("_DAMFS_COMPLETE") != "complete_bash":
        yield
        return
    words = environ.get("COMP_WORDS", "").split("\n")
    current = int(environ.get("COMP_CWORD", "0"))
    words = [*words[: current + 1], *[""] * (current + 1 - len(words))]
    joined = words[:1]
    for before, word in pairwise(words):
        if joined[1:] and word and (_BREAKS.fullmatch(word) or _BREAKS.fullmatch(before)):
            joined[-1] += word
        else:
            joined.append(word)
    environ.update({"COMP_WORDS": "\n".join(joined), "COMP_CWORD": str(len(joined) - 1)})
    inside = "" if _BREAKS.fullmatch(words[-1]) else words[-1]
    outside = re.sub(r"\\(.)", r"\1", joined[-1][: len(joined[-1]) - len(inside)])
    offered = io.StringIO()
    try:
        with redirect_stdout(offered):
            yield
    finally:
        for line in offered.getvalue().splitlines():
            reply = line.removeprefix(outside)
            sys.stdout.write((reply if inside[:1] in _QUOTES else _SPECIAL.sub(r"\\\g<0>", reply)) + "\n")


def complete_address(invocation: typer.Context, incomplete: str) -> list[str]:
    """Addresses of the library in use that begin with ``incomplete``, at their head."""
    if is_local_path(incomplete):
        return []
    before = invocation.find_root().params
    common = Common(
        library=invocation.params.get("library") or before.get("library_url"),
        config=invocation.params.get("config") or before.get("config_file"),
    )
    try:
        with Context(common) as context:
            return _offered(context, incomplete)
    except (DamfsError, OSError, sqlite3.Error, ValueError):
        return []


def complete_source(invocation: typer.Context, incomplete: str) -> list[str]:
    """As ``complete_address``, for the sources of a publish: the address behind them looks like one more of them."""
    is_file = ":" not in incomplete and any(Path().glob(f"{glob.escape(incomplete)}*"))
    return [] if is_file else complete_address(invocation, incomplete)


def _offered(context: Context, incomplete: str) -> list[str]:
    library_id = context.remembered_id()
    if library_id is None:
        return []
    folder = context.replica_folder / library_id
    head, has_path, path = incomplete.partition(":")
    if not has_path:
        shows = sorted(file.stem for file in folder.glob("*.db") if file.stem.startswith(head))
        return [*shows, f"{shows[0]}:"] if len(shows) == 1 else shows
    show = head.partition("@")[0]
    with Replica.open_reader(folder / f"{show}.db") as reader:
        parent, start = split(path)
        row = reader.resolve(parent, reader.head)
        before = f"{head}:{parent}/" if parent else f"{head}:"
        found = [below for below in _listed(reader, row, start) if below.name.startswith(start)]
        offered = [_named(before, below) for below in found]
        if len(found) == 1 and found[0].kind == Kind.FOLDER:
            offered += [_named(offered[0], below) for below in _listed(reader, found[0])]
        return offered


def _listed(reader: ReplicaReader, row: Row | None, start: str = "") -> list[Row]:
    """The first names of a folder from ``start`` on, without those that no shell shows."""
    if row is None or row.kind != Kind.FOLDER or row.node is None:
        return []
    exact = reader.lookup(row.node, start, reader.head) if start else None
    behind = reader.list(row.node, reader.head, after=start, limit=OFFERED_MAX)
    return [below for below in [*([exact] if exact else []), *behind] if below.name.isprintable()]


def _named(before: str, row: Row) -> str:
    return before + row.name + ("/" if row.kind == Kind.FOLDER else "")
