"""What a show has at one revision, as somebody who is about to change it asks.

State: a cache of the folders that were looked up. Used from the thread of its reader.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from manifest.names import is_version, join, split, version_folders
from manifest.post import post_digest
from manifest.replica import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from manifest.digest import Digest
    from manifest.names import Revision
    from manifest.replica import ReplicaReader, Row

_VERSION_DIGITS_MIN = 3


class Live:
    """One show at one revision."""

    def __init__(self, reader: ReplicaReader, revision: Revision) -> None:
        self.revision = revision
        self.reader = reader
        self._folders: dict[str, Row | None] = {}
        self._frozen: dict[str, str | None] = {}

    def row(self, path: str) -> Row | None:
        """What is at ``path``; None when nothing is, also when the way to it leads through no folder."""
        if not path:
            return self.reader.resolve("", self.revision)
        parent, name = split(path)
        folder = self._folder(parent)
        if folder is None or folder.node is None:
            return None
        return self.reader.lookup(folder.node, name, self.revision)

    def obstacle(self, path: str) -> str | None:
        """The path of the file or link that stands where a folder above ``path`` would have to be."""
        parent = split(path)[0]
        while parent and self._folder(parent) is None:
            if self.row(parent) is not None:
                return parent
            parent = split(parent)[0]
        return None

    def frozen(self, path: str) -> str | None:
        """The published version that ``path`` is, or lies in: nothing can be added to it or changed in it."""
        parent, name = split(path)
        if parent not in self._frozen:
            self._frozen[parent] = next((v for v in version_folders(parent) if self._is_folder(v)), None)
        if self._frozen[parent] is not None:
            return self._frozen[parent]
        return path if is_version(name) and self._is_folder(path) else None

    def versions(self, folder: str) -> list[str]:
        """The names of the versions in a folder, by their numbers."""
        return sorted(
            (row.name for row in self.list(folder) if row.kind == Kind.FOLDER and is_version(row.name)),
            key=lambda name: int(name[1:]),
        )

    def next_version(self, version: str) -> str:
        """The path of the first free version beside ``version``, with as many digits."""
        folder, name = split(version)
        last = max((int(other[1:]) for other in self.versions(folder)), default=0)
        digits = max(_VERSION_DIGITS_MIN, len(name) - 1)
        following = f"v{last + 1:0{digits}d}"
        return join(folder, following)

    def list(self, path: str) -> Iterator[Row]:
        """The rows of a folder, by name; nothing when it is no folder."""
        folder = self._folder(path)
        if folder is None or folder.node is None:
            return
        yield from self.reader.names(folder.node, self.revision)

    def pre(self, row: Row | None) -> Digest | None:
        """What an op gives as ``pre`` that replaces this row."""
        return None if row is None else post_digest(self.reader.post(row))

    def _folder(self, path: str) -> Row | None:
        unknown = []  # from the path up to what is known: a deep path is no deep recursion
        while path not in self._folders:
            unknown.append(path)
            if not path:
                break
            path = split(path)[0]
        for each in reversed(unknown):
            row = self.row(each)
            self._folders[each] = row if row is not None and row.kind == Kind.FOLDER else None
            path = each
        return self._folders[path]

    def _is_folder(self, path: str) -> bool:
        return self._folder(path) is not None
