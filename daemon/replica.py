"""The readers through which the mount looks into a show's replica, and how they tell that it is damaged.

A replica can be damaged or deleted under a running daemon: by a disk, a cleaner of caches, a hand. It is only derived
from the log, so it is built anew (daemon/follow.py); until then the readers go on with the file that they have open.

State: none beside the connections. ``reader`` belongs to the event loop's thread, ``planner`` to one thread at a time.
"""

from __future__ import annotations

import functools
import sqlite3
from typing import TYPE_CHECKING, Concatenate, NamedTuple, ParamSpec, TypeVar

from manifest import schema
from manifest.errors import ConfigurationError, IntegrityError, ReplicaDamaged
from manifest.replica import Replica

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from manifest.digest import Digest
    from manifest.names import Revision
    from manifest.show import Show

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _watched(
    method: Callable[Concatenate[Replica, _P], _T],
) -> Callable[Concatenate[WatchedReplica, _P], _T]:
    def call(self: WatchedReplica, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return method(self, *args, **kwargs)
        except (sqlite3.Error, ReplicaDamaged) as error:
            raise self.explain(error) from error

    functools.update_wrapper(call, method)
    return call


class WatchedReplica(Replica):
    """A reader that calls ``on_damage`` when a question cannot be answered because the file does not hold together.

    Raises what ``Replica`` raises, with ReplicaDamaged or ConfigurationError in the place of SQLite's errors.
    """

    def __init__(self, path: Path, on_damage: Callable[[ReplicaDamaged], None]) -> None:
        """Raises NotFound when there is no file, ConfigurationError."""
        super().__init__(schema.connect_reader(path))
        self._path = path
        self._on_damage = on_damage

    def explain(self, error: Exception) -> Exception:
        """What an error means; it is told when it is damage."""
        found = schema.failure(error, self._path) if isinstance(error, sqlite3.Error) else error
        if isinstance(found, ReplicaDamaged):
            self._on_damage(found)
        elif isinstance(found, ConfigurationError):
            return ConfigurationError(f"the replica {self._path} cannot be read: {error}")
        return found

    revision = _watched(Replica.revision)
    at_time = _watched(Replica.at_time)
    totals = _watched(Replica.totals)
    lookup = _watched(Replica.lookup)
    list = _watched(Replica.list)
    listing = _watched(Replica.listing)
    get = _watched(Replica.get)
    folder = _watched(Replica.folder)
    folder_mtime_ns = _watched(Replica.folder_mtime_ns)
    path_of = _watched(Replica.path_of)
    recipe = _watched(Replica.recipe)


class Readers(NamedTuple):
    """Both readers of one replica file, and the show that keeps that file up."""

    show: Show
    reader: Replica
    planner: Replica

    @classmethod
    def open(cls, show: Show, on_damage: Callable[[ReplicaDamaged], None]) -> Readers:
        """Blocking. ``on_damage`` is called on the event loop's thread. Raises NotFound, ConfigurationError."""
        reader = WatchedReplica(show.path, on_damage)
        try:
            return cls(show, reader, show.reader())
        except BaseException:
            reader.close()
            raise

    def agree_that(self, served: Revision, digest: Digest | None) -> None:
        """Raise IntegrityError unless revision ``served`` was made of the log entry with this digest here too.

        An entry chains to all before it: then both replicas hold the same rows under the same ids.
        """
        info = self.planner.revision(served)
        found = info.entry_digest if info else None
        if found != digest:
            raise IntegrityError(
                f"log entry {served} is served and was {digest}; the replica was built anew from the log, where it is "
                f"{found or 'missing'}: the log was rewritten or cut, find out who changed the store, then mount anew"
            )

    def close(self) -> None:
        """Blocking; nobody uses them any more."""
        close_all((self.reader, self.planner))


def close_all(readers: Iterable[Replica]) -> None:
    """Close readers that nobody uses any more. Blocking."""
    for reader in readers:
        reader.close()
