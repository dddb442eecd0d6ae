"""Rows of a replica as people and scripts see them. The keys are documented in docs/COMMANDS.md and stay stable."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Any

from manifest.digest import Digest
from manifest.replica import Kind
from tools.output import human_bytes, human_time, iso_time

if TYPE_CHECKING:
    from manifest.replica import Row

KIND_NAMES = {Kind.FILE: "file", Kind.LINK: "link", Kind.FOLDER: "folder"}
_TYPE_BITS = {Kind.FILE: stat.S_IFREG, Kind.LINK: stat.S_IFLNK, Kind.FOLDER: stat.S_IFDIR}


def row_json(row: Row) -> dict[str, Any]:
    """One file, link or folder: what is known of it, without its name."""
    kind = Kind(row.kind)
    value: dict[str, Any] = {"kind": KIND_NAMES[kind], "revision": row.since}
    if kind is Kind.LINK:
        return value | {"target": row.target}
    value["mode"] = f"{row.mode:04o}"
    if kind is Kind.FILE:
        assert row.digest is not None
        value |= {
            "size": row.size,
            "mtime": iso_time(row.mtime_ns),
            "mtime_ns": row.mtime_ns,
            "digest": str(Digest(row.digest)),
        }
    return value


def row_cells(row: Row, name: str) -> tuple[str, str, str, str]:
    """Mode, size, time and name, as ``ls -l`` shows them."""
    kind = Kind(row.kind)
    mode = stat.filemode(_TYPE_BITS[kind] | (0o777 if kind is Kind.LINK else row.mode))
    if kind is Kind.FILE:
        return mode, human_bytes(row.size), human_time(row.mtime_ns), name
    return mode, "", "", f"{name} → {row.target}" if kind is Kind.LINK else f"{name}/"
