"""The replica, write side: log entries become revisions, each in one transaction.

State: the one writing connection of a replica file (the caller holds the file's lock), used by one thread at a
time. Invariants: the rows of an entry and the revision that counts them are committed together; a failed or merely
checked changeset leaves nothing, so all replicas that applied the same log hold the same rows under the same ids.
A replica made under another trust, library or show is dropped and built anew, for the log decides and not the file.
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING

from manifest import schema
from manifest.changeset import ChangesetReader, ops_in_batches
from manifest.digest import Digest
from manifest.entry import genesis_prev
from manifest.errors import Conflict, FormatError, NotFound
from manifest.replica import Replica
from manifest.rows import Namespace

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from manifest.changeset import Header, Op
    from manifest.entry import Entry

APPLIED, NOOP = "applied", "noop"
CHECKPOINT_OPS = 20_000
"""A changeset of so many ops is taken from the write-ahead log into the database at once."""

_log = logging.getLogger(__name__)


class ReplicaWriter(Replica):
    """The one writer of a replica; it answers questions as well, in the thread that writes."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        super().__init__(connection)
        self.path = path

    @classmethod
    def open(cls, path: Path, show: str, *, trust: bytes, library_id: str, create: bool = True) -> ReplicaWriter:
        """Open the replica of ``show``, made when it is missing and made anew when it does not fit.

        ``trust`` is the digest of what the verifier trusts. Raises NotFound when it is missing and ``create`` is
        False, ConfigurationError when it cannot be opened or has a newer format.
        """
        if not create and not path.exists():
            raise NotFound(f"no replica at {path}")
        wanted = {
            "genesis": str(genesis_prev(library_id, show)),
            "library": library_id,
            "show": show,
            "trust": trust.hex(),
        }
        try:
            connection = schema.connect_writer(path)
            found = dict(connection.execute("SELECT key, value FROM meta").fetchall())
        except sqlite3.DatabaseError as error:
            _log.warning("the replica %s is damaged (%s): it is built anew from the log", path, error)
            connection, found = _anew(path), {}
        differing = sorted(key for key in found if found[key] != wanted.get(key))
        if differing:
            connection.close()
            _log.warning("the replica %s was made under another %s: it is built anew", path, " and ".join(differing))
            connection, found = _anew(path), {}
        if not found:
            with _transaction(connection, path):
                connection.executemany("INSERT INTO meta VALUES (?, ?)", sorted(wanted.items()))
        return cls(connection, path)

    def apply_entry(
        self, stored: bytes, entry: Entry, keyid: str, changeset: ChangesetReader, *, commit: bool = True
    ) -> None:
        """Make the next revision of a verified entry and its verified changeset; ``commit`` False only checks.

        Raises Conflict or FormatError when a rule is broken, ConfigurationError when the file cannot be written,
        ReplicaDamaged; nothing is left then.
        """
        with _transaction(self._connection, self.path, commit=commit):
            self._check_entry(entry, changeset.header)
            namespace = Namespace(self._connection, self, entry.seq)
            namespace.apply(changeset.batches())
            self._insert_revision(
                (entry.seq, entry.publish_id, Digest.of(stored), self._time_ns(entry.time_ns), entry.author),
                (entry.message, keyid, APPLIED, "", namespace.files, namespace.bytes),
            )
        if namespace.ops >= CHECKPOINT_OPS:
            self._checkpoint()

    def check(self, header: Header, ops: Iterable[Op]) -> None:
        """Raise what readers would on applying these ops as the next revision; the replica stays as it is.

        ``ops`` may be a ChangesetReader, which is faster. Raises Conflict, FormatError.
        """
        batches = ops.batches() if isinstance(ops, ChangesetReader) else ops_in_batches(header, ops)
        with _transaction(self._connection, self.path, commit=False):
            if header.show != self.show:
                raise FormatError(f"a changeset of show {header.show}, in the log of {self.show}")
            self._check_publish_id(header.publish_id)
            namespace = Namespace(self._connection, self, self.head + 1)
            namespace.apply(batches)
        if namespace.ops >= CHECKPOINT_OPS:
            self._checkpoint()

    def apply_noop(self, seq: int, stored_digest: Digest, reason: str) -> None:
        """Make a revision that equals the one before it, of an entry that breaks a rule. Raises Conflict."""
        with _transaction(self._connection, self.path):
            self._check_seq(seq)
            files, size = self.totals(seq - 1)
            self._insert_revision((seq, None, stored_digest, self._time_ns(0), ""), ("", "", NOOP, reason, files, size))

    def _check_entry(self, entry: Entry, header: Header) -> None:
        if entry.show != self.show:
            raise FormatError(f"an entry of show {entry.show}, in the log of {self.show}")
        self._check_seq(entry.seq)
        if entry.prev != (tip := self.tip):
            raise Conflict(f"log entry {entry.seq} chains to {entry.prev}: the one before it is {tip}")
        if (header.show, header.publish_id) != (entry.show, entry.publish_id):
            raise FormatError(
                f"log entry {entry.seq} names a changeset of another publish: expected {entry.show} "
                f"{entry.publish_id}, got {header.show} {header.publish_id}"
            )
        self._check_publish_id(entry.publish_id)

    def _check_seq(self, seq: int) -> None:
        if seq != self.head + 1:
            raise Conflict(f"log entry {seq} where {self.head + 1} comes next")

    def _check_publish_id(self, publish_id: str) -> None:
        before = self.find_publish(publish_id)
        if before is not None:
            raise Conflict(f"publish {publish_id} is there already, as revision {before.seq}")

    def _time_ns(self, time_ns: int) -> int:
        """The running maximum: a publisher's clock that goes backwards turns no order around."""
        (latest,) = self._execute("SELECT max(time_ns) FROM revisions").fetchone()
        return max(time_ns, latest or 0)

    def _insert_revision(self, *columns: tuple[object, ...]) -> None:
        values = [value for group in columns for value in group]
        self._execute("INSERT INTO revisions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)

    def _checkpoint(self) -> None:
        """Take the write-ahead log in, as far as readers let us; what they keep is taken in by a later one."""
        self._execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _anew(path: Path) -> sqlite3.Connection:
    schema.drop(path)
    return schema.connect_writer(path)


@contextmanager
def _transaction(connection: sqlite3.Connection, path: Path, *, commit: bool = True) -> Iterator[None]:
    """All or nothing. Raises ConfigurationError when the file cannot be written, ReplicaDamaged."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT" if commit else "ROLLBACK")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    except sqlite3.Error as error:
        found = schema.failure(error, path)
        if found is error:
            raise
        raise found from error
