"""The commit protocol: how a publish becomes the next revision of its show. Optimistic; the object store decides.

State: none that outlives a ``commit``; a publish is known by its ``publish_id``, which its publisher has written down
before the first upload, so that it can be run again after anything that may happen.

    upload the changeset (its chunks and recipes are there already), and make all of it durable
    loop, with jittered back-off and a limit:
      tail the log to its end (from the central store, past no gap), verify and apply
      our publish_id is there and applied → its revision; the same id with another change → Conflict
      run the readers' own apply on our ops and roll it back: what it refuses is a Conflict
      create the entry at the next number, chained to what the store holds before it; believe no answer
      read the number back: absent → again; ours → apply it, done; somebody else's → rebase, which is: again

Rules:
- On top of what needs a newer damfs nothing is published: nobody here knows what is there.
- An entry is created only behind a log that was read to its end, has no gap, and still is, byte for byte, what the
  replica was made from. Invalid entries at its end are chained to, which settles them. On a rewritten log nothing is
  published.
- The replica's write lock is held for a turn of the loop, not during the uploads, nor while backing off.
- A lost reply leaves the number *open* until something is seen to lie there. While one is open, no error says
  "failed": it is OutcomeUnknown. The same bytes are sent again for the same number, and a publish id is
  applied once, so whatever arrives late changes nothing.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from manifest import layout
from manifest.changeset import ChangesetReader, Header, Op, compress_changeset
from manifest.digest import Digest
from manifest.entry import Entry, seal
from manifest.errors import (
    AccessDenied,
    Conflict,
    DamfsError,
    NewerFormat,
    OutcomeUnknown,
    TransportError,
    TrustError,
    Unavailable,
)
from manifest.names import Revision, version_folders

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from manifest.follow import Follower, Progress
    from manifest.trust import SigningKey

ATTEMPTS = 64
DEADLINE_S = 300.0
FAILURES_MAX = 8
"""Turns in a row that the store did not let come to an end, before giving up while no number is open."""
BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 2.0
REQUEST_TIMEOUT_S = 30.0
UPLOAD_TIMEOUT_S = 120.0
_HISTORY_MAX = 1000
"""How many revisions are looked through to find who removed a path."""

_random = secrets.SystemRandom()


@dataclass(frozen=True, slots=True)
class Publish:
    """What is to become a revision. ``ops`` are sorted by path; ``publish_id`` is 32 lower-case hex digits."""

    show: str
    publish_id: str
    author: str
    message: str
    scope: str
    ops: Sequence[Op]


def commit(
    follower: Follower,
    key: SigningKey,
    publish: Publish,
    *,
    attempts: int = ATTEMPTS,
    deadline_s: float = DEADLINE_S,
    sleep: Callable[[float], None] = time.sleep,
) -> Revision:
    """Publish; returns the revision, once this replica has applied it. Running it again with the same id is safe.

    Raises Conflict (with the path, and who changed it), FormatError for ops that no reader would take, TrustError
    when the key is not trusted or the log was rewritten, NewerFormat, ReplicaDamaged, Busy, TransportError when
    nothing was published, and OutcomeUnknown when it may have been: the same publish, run again, finds out.
    """
    return _Commit(follower, key, publish, time.monotonic() + deadline_s, sleep).run(attempts)


class _Commit:
    """One publish on its way. ``open``: the number at which an entry of ours may lie, or may yet arrive."""

    def __init__(
        self, follower: Follower, key: SigningKey, publish: Publish, deadline: float, sleep: Callable[[float], None]
    ) -> None:
        self.follower = follower
        self.log = follower.log
        self.writer = follower.writer
        self.key = key
        self.publish = publish
        self.deadline = deadline
        self.sleep = sleep
        self.header = Header(publish.show, publish.publish_id, publish.scope)
        self.change, self.compressed = compress_changeset(self.header, publish.ops)
        self.sealed: dict[tuple[int, Digest], bytes] = {}
        self.sent = False
        self.open: int | None = None
        assert publish.show == self.log.show

    def run(self, attempts: int) -> Revision:
        # A key that our own readers do not trust would only make a no-op.
        self.follower.verifier.verify(self._seal(1, self.change))
        self._upload()
        failures = 0
        last: DamfsError = Unavailable(f"show {self.publish.show}: no time was left to publish")
        for attempt in range(attempts):
            if attempt:
                self._back_off(attempt)
            if time.monotonic() >= self.deadline:
                break
            try:
                revision = self._turn()
            except Unavailable as error:
                last = error
                failures += 1
                if failures >= FAILURES_MAX and self.open is None:
                    raise
            except DamfsError as error:
                if self.open is not None:
                    raise self._unknown(error) from error
                raise
            else:
                failures = 0
                if revision is not None:
                    return revision
                last = Unavailable(f"somebody else was first, {attempt + 1} times")
        if self.sent:
            raise self._unknown(last) from last
        raise last

    def _turn(self) -> Revision | None:
        """One turn of the loop; None: again. Raises Unavailable when the store did not let it come to an end."""
        follower, writer = self.follower, self.writer
        with follower.locked(self.deadline):
            progress = follower.advance_locked(deadline=self.deadline, thorough=True)
            if (revision := self._published()) is not None:
                return revision
            following = writer.head + len(follower.pending) + 1
            newer = progress.stalled is not None and progress.stalled.kind == "newer"
            if self.open is not None and self.open < following + newer:
                self.open = None  # what lies there has been read and was not applied as ours: nothing can arrive there
            self._may_follow(progress)
            try:
                writer.check(self.header, ChangesetReader(self.compressed))
            except Conflict as error:
                raise self._explained(error) from error
            if not follower.confirm(self.deadline):
                return None
            prev = follower.pending[-1].digest if follower.pending else writer.tip
            return self._create(following, self._seal(following, prev))

    def _create(self, seq: int, stored: bytes) -> Revision | None:
        """Create entry ``seq``, and let the store say what lies there now."""
        refused: DamfsError | None = None
        self.sent = True
        before, self.open = self.open, seq
        try:
            self.log.create(seq, stored, timeout_s=self._timeout())
        except AccessDenied as error:
            refused = error
        except (TransportError, Conflict):
            pass  # 409, 412, 500 and time-outs lie: what counts is read now
        current = self.log.read(seq, timeout_s=self._timeout())
        if current is None:
            if refused is not None:
                self.open = before
                raise refused
            return None
        if current != stored:
            return None
        self.follower.advance_locked(to=seq, deadline=self.deadline)
        revision = self._published()
        if revision is None:
            self._refuse_if_pending()
            raise Unavailable(f"log entry {seq} is in the store, but could not be applied here yet")
        return revision

    def _published(self) -> Revision | None:
        """The revision that has applied this very publish. Raises Conflict when it applied another by its id."""
        info = self.writer.find_publish(self.publish.publish_id)
        if info is None or info.status != "applied":
            return None
        stored = self.log.read(info.seq, timeout_s=self._timeout())
        if stored is None or Digest.of(stored) != info.entry_digest:
            raise TrustError(f"log entry {info.seq} is not what it was when it was applied: the log was rewritten")
        entry, _ = self.follower.verifier.verify(stored)
        if entry.change != self.change:
            self.open = None  # of two entries with one id only this one was, or ever will be, applied
            raise Conflict(
                f"the publish id {self.publish.publish_id} is taken: {entry.author} used it for another change in "
                f"revision {info.seq} of {self.publish.show}; publish under a new id"
            )
        return Revision(info.seq)

    def _may_follow(self, progress: Progress) -> None:
        """Raise unless a new entry may be chained to the end of the log as it was just seen."""
        if progress.stalled is not None and progress.stalled.kind == "rewritten":
            raise TrustError(progress.stalled.reason)
        if progress.stalled is not None and progress.stalled.kind == "unavailable":
            raise Unavailable(progress.stalled.reason)
        if progress.stalled is not None and progress.stalled.kind == "newer":
            raise NewerFormat(f"nothing is published: {progress.stalled.reason}; upgrade this machine")
        if not progress.reachable or not progress.complete:
            raise Unavailable(
                f"the log of {self.publish.show} could not be read to its end (revision {progress.head} is applied); "
                "is the library reachable?"
            )
        self._refuse_if_pending()

    def _refuse_if_pending(self) -> None:
        """Raise Conflict when an entry of this publish lies in the log and breaks a rule."""
        for invalid in self.follower.pending:
            if invalid.entry is not None and invalid.entry.publish_id == self.publish.publish_id:
                self.open = None
                raise Conflict(
                    f"log entry {invalid.seq} holds this publish but breaks a rule, so nothing was published: "
                    f"{invalid.reason}"
                )

    def _explained(self, error: Conflict) -> Conflict:
        """The conflict, with who changed the path last."""
        if not error.path:
            return error
        head = self.writer.head
        places = [self.writer.resolve(place, head) for place in (*version_folders(error.path), error.path)]
        rows = [row for row in places if row is not None and row.id]
        since = rows[-1].since if rows else self._removed_in(error.path)
        info = None if since is None else self.writer.revision(since)
        if info is None:
            return error
        return Conflict(f"{error}; last changed in revision {info.seq} by {info.author}", error.path)

    def _removed_in(self, path: str) -> int | None:
        """The revision that removed a path, as far back as it is looked for."""
        head = self.writer.head
        for revision in range(head - 1, max(0, head - _HISTORY_MAX), -1):
            if self.writer.resolve(path, Revision(revision)) is not None:
                return revision + 1
        return None

    def _seal(self, seq: int, prev: Digest) -> bytes:
        """The entry for a place in the log; the same bytes each time, so that one that was sent is known again."""
        stored = self.sealed.get((seq, prev))
        if stored is None:
            publish = self.publish
            entry = Entry(
                show=publish.show, seq=seq, prev=prev, publish_id=publish.publish_id, change=self.change,
                author=publish.author, message=publish.message, time_ns=time.time_ns(),
            )  # fmt: skip
            stored = self.sealed[seq, prev] = seal(entry, self.key)
        return stored

    def _upload(self) -> None:
        """Put the changeset and make it durable, with all that the caller put before."""
        key = layout.change_key(self.publish.show, self.change)
        for attempt in range(FAILURES_MAX):
            try:
                self.log.library.put(key, self.compressed, timeout_s=self._timeout(UPLOAD_TIMEOUT_S))
                self.log.library.sync()
            except Unavailable:
                if attempt == FAILURES_MAX - 1 or time.monotonic() >= self.deadline:
                    raise
                self._back_off(attempt + 1)
            else:
                return

    def _back_off(self, attempt: int) -> None:
        """Wait a random while, longer with each attempt, so that publishers who met do not meet again."""
        longest = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(attempt - 1, 10))
        self.sleep(max(0.0, min(_random.uniform(0, longest), self.deadline - time.monotonic())))

    def _timeout(self, at_most_s: float = REQUEST_TIMEOUT_S) -> float:
        """The time-out of a request that begins now, in s. Raises Unavailable at the deadline."""
        remaining = self.deadline - time.monotonic()
        if remaining <= 0:
            raise Unavailable(f"show {self.publish.show}: the deadline of the publish has passed")
        return min(at_most_s, remaining)

    def _unknown(self, error: Exception) -> OutcomeUnknown:
        return OutcomeUnknown(
            f"it is not known whether publish {self.publish.publish_id} became a revision of {self.publish.show} "
            f"({error}); publish the same again: it is found if it is there, and never published twice"
        )
