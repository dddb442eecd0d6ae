"""Follow a show's log: read its entries in order, verify them, apply them to the replica.

State: the invalid entries behind the head that no valid entry chains to yet (the *run*); everything else is in the
replica. One thread at a time: ``locked`` sees to that.

What a replica holds is a function of the log's bytes and of the trusted keys alone, never of the faults that were
met on the way. Each entry ends in one of five ways:

- **applied**: signed by a trusted key for this show and number, it chains to what lies before it, and its
  changeset is there and keeps the rules.
- **stall, unavailable**: the entry or its changeset cannot be read, a number is missing though later ones are
  there, or the changeset does not have the digest that the entry names (a fact about the way, or about the store,
  never about what was published). The replica stays where it is, and the next ``advance`` tries again.
- **invalid**: it is there and breaks a rule. It is read again from the central store, and that answer decides. An
  invalid entry at the end of the log is *pending*: readers go on at the revision before it, and whoever
  publishes next chains to it. It becomes a **no-op** (revision n equals n-1) once a signed entry chains to it.
- **stall, rewritten**: a signed entry does not chain to the bytes that lie before it. Its publisher saw
  another history: the store has been changed behind our back, or bytes in it have rotted. Nothing is applied, and
  nobody may publish on top, until the store's bytes fit again or people have decided. To call it a bad entry and to
  go on would be a fork: the publisher's own replica, and whoever shares its history, have applied it.

- **stall, newer**: a trusted key has signed an entry of a format that this version does not know, or one whose
  changeset is of such a format. What it does to the show is for later versions to say; nothing goes on here, and
  nobody publishes on top.

Nothing that this machine fails at (a damaged replica, no memory, no way to check a signature) is among them: that is
raised, the replica stays where it is, and no entry is called invalid for it.

A run of several invalid entries n…m is settled together, by the first entry m+1 whose envelope is valid (trusted
signature, this show, this number), whatever its changeset turns out to be:

1. ``prev`` of m+1 must be the digest of m as the central store has it, else: rewritten.
2. Where an entry of the run bears no valid signature, nothing signed vouches for what lies before it. So the entry
   at the head and n…m-1 are read a second time from the central store and must be what they were. A reply that was
   damaged on its way cannot pass twice in the same way, and that an applied entry has changed in the store since
   is noticed before anything is built upon it.
3. Each of n…m becomes a no-op, in order, with the reason that its bytes give.

Safe, because an entry whose envelope is valid is never part of a run but as its first: so that n is judged by the
rules of ``apply`` at state n-1, the same everywhere, and the others by their bytes alone. What remains: a good
entry that some replica applied, with an unsigned one behind it, rots in the store, is settled as a no-op by another
replica, and is repaired later. Nothing signed names its bytes, so no replica can tell by itself.
"""

from __future__ import annotations

import logging
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from manifest.changeset import ChangesetReader
from manifest.digest import Digest
from manifest.errors import Conflict, DigestMismatch, FormatError, NewerFormat, TransportError, Unavailable
from manifest.incoming import Deadline, DeadlinePassed, Incoming, Reading, Stall, Stalled, judge, shortened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from manifest.apply import ReplicaWriter
    from manifest.entry import Entry
    from manifest.incoming import Fetch
    from manifest.log import Log
    from manifest.names import Revision
    from manifest.trust import Verifier

__all__ = ["Follower", "Invalid", "Progress", "Stall"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """What an ``advance`` came to.

    ``applied`` counts the revisions gained, no-ops among them. ``reachable`` is False when the log could not be
    read; ``complete`` is True when its end was seen, and nothing but pending entries lies behind the head.
    """

    head: Revision
    applied: int
    stalled: Stall | None
    reachable: bool
    complete: bool


@dataclass(frozen=True, slots=True)
class Invalid:
    """An entry that breaks a rule: what the central store holds, and the rule. ``entry`` when its envelope is valid."""

    seq: int
    digest: Digest
    reason: str
    entry: Entry | None


class Follower:
    """Brings one replica up to its log. ``fetch`` may be served by a cache; ``refetch`` asks the central store."""

    def __init__(
        self,
        log: Log,
        writer: ReplicaWriter,
        verifier: Verifier,
        *,
        fetch: Fetch | None = None,
        refetch: Fetch | None = None,
        lock: Callable[[float | None], AbstractContextManager[None]] | None = None,
    ) -> None:
        """``fetch`` and ``refetch``: (number, time-out in s) → stored bytes, or None when there is no such entry.

        ``lock`` keeps other writers of the replica out; it is given the deadline and raises Busy.
        """

        def read(seq: int, timeout_s: float) -> bytes | None:
            return log.read(seq, timeout_s=timeout_s)

        def read_near(seq: int, timeout_s: float) -> bytes | None:
            return log.read_near(seq, timeout_s=timeout_s)

        self.log = log
        self.writer = writer
        self.verifier = verifier
        self._incoming = Incoming(log, verifier, fetch or read_near, refetch or read)
        self._lock = lock or (lambda _deadline: nullcontext())
        self._run: list[Invalid] = []

    @property
    def pending(self) -> tuple[Invalid, ...]:
        """The invalid entries behind the head, as the last ``advance`` found them; numbered from head + 1."""
        return tuple(self._run)

    @contextmanager
    def locked(self, deadline: float | None = None) -> Iterator[None]:
        """Be the replica's one writer. ``deadline`` in s of time.monotonic. Raises Busy at the deadline."""
        with self._lock(deadline):
            yield

    def advance(self, *, to: int | None = None, deadline: float | None = None, thorough: bool = False) -> Progress:
        """Apply what the log has, up to revision ``to``. Raises Busy, ReplicaDamaged and other ConfigurationErrors.

        ``deadline``: s of time.monotonic; no request is begun behind it. ``thorough`` lists the log in any case, so
        that a missing number is never taken for its end.
        """
        with self.locked(deadline):
            return self.advance_locked(to=to, deadline=deadline, thorough=thorough)

    def advance_locked(
        self, *, to: int | None = None, deadline: float | None = None, thorough: bool = False
    ) -> Progress:
        """``advance`` for a caller that is within ``locked``."""
        before = self.writer.head
        self._run = []
        stall: Stall | None = None
        reachable = True
        complete = False
        try:
            complete = self._follow(to, Deadline(deadline), thorough=thorough)
        except Stalled as stalled:
            stall = stalled.stall
        except DeadlinePassed:
            pass
        except TransportError as error:
            reachable = False
            _log.debug("show %s: the log cannot be read: %s", self.log.show, error)
        if stall is None and self._run:
            first = self._run[0]
            stall = Stall(first.seq, f"log entry {first.seq} is invalid: {first.reason}", "invalid")
        head = self.writer.head
        return Progress(head, head - before, stall, reachable, complete)

    def confirm(self, deadline: float | None = None) -> bool:
        """Whether the central store still holds the head and the pending entries as they were judged.

        For whoever is about to chain to them, within ``locked``. Raises Unavailable when they cannot be read.
        """
        try:
            return self._changed(self._run, Deadline(deadline)) is None
        except Stalled as stalled:
            raise Unavailable(str(stalled)) from stalled
        except DeadlinePassed:
            raise Unavailable(f"the log of show {self.log.show} was not read again in time") from None

    def _follow(self, to: int | None, deadline: Deadline, *, thorough: bool) -> bool:
        """Read and settle entries until there is none, or until ``to``; whether the end of the log was seen."""
        if to is not None and self.writer.head >= to:
            return False
        with closing(self._incoming.read(self.writer.head, deadline, thorough=thorough)) as readings:
            for reading in readings:
                self._settle(reading, deadline)
                if to is not None and self.writer.head >= to:
                    return False
        return True

    def _settle(self, reading: Reading, deadline: Deadline, *, central: bool = False) -> None:
        """Apply an entry, or add it to the run. ``central``: it comes from the central store, and so decides."""
        seq, stored = reading.seq, reading.stored
        verdict = reading.verdict or judge(self.verifier, self.log.show, seq, stored)
        entry = verdict.entry
        chained = self._run[-1].digest if self._run else self.writer.tip
        if (entry is None or entry.prev != chained) and not central:
            self._settle(Reading(seq, self._incoming.again(seq, deadline)), deadline, central=True)
            return
        if verdict.newer:
            raise Stalled(seq, f"log entry {seq}: {verdict.reason}", "newer")
        if entry is None:
            self._run.append(Invalid(seq, Digest.of(stored), verdict.reason, None))
            return
        if entry.prev != chained:
            raise self._rewritten(entry, verdict.keyid, chained, deadline)
        self._settle_run(deadline)
        changeset = self._incoming.changeset(reading, entry.change, deadline)
        try:
            self.writer.apply_entry(stored, entry, verdict.keyid, ChangesetReader(changeset))
        except NewerFormat as error:
            raise Stalled(seq, f"log entry {seq} (by {entry.author}): {error}", "newer") from error
        except DigestMismatch as error:  # it had the right one when it came
            raise Stalled(seq, f"the changeset of log entry {seq} cannot be read: {error}", "unavailable") from error
        except (Conflict, FormatError) as error:
            again = stored if central else self._incoming.again(seq, deadline)
            if again != stored:
                self._settle(Reading(seq, again), deadline, central=True)
            else:
                self._run.append(Invalid(seq, Digest.of(stored), shortened(error), entry))

    def _settle_run(self, deadline: Deadline) -> None:
        """Make no-ops of the run, to whose last entry a valid envelope chains: the module's text. Raises Stalled."""
        unsigned = [invalid for invalid in self._run if invalid.entry is None]
        changed = self._changed(self._run[:-1], deadline) if unsigned else None
        if changed is not None:
            raise changed
        for invalid in self._run:
            self.writer.apply_noop(invalid.seq, invalid.digest, invalid.reason)
            _log.info("show %s: log entry %d is a no-op: %s", self.log.show, invalid.seq, invalid.reason)
        self._run = []

    def _changed(self, run: list[Invalid], deadline: Deadline) -> Stalled | None:
        """Read the head and ``run`` a second time from the central store: the stall when one is not what it was."""
        head = self.writer.head
        if head and (now := Digest.of(self._incoming.again(head, deadline))) != self.writer.tip:
            what = f"log entry {head} was {self.writer.tip} when it was applied and is {now} now: the log was rewritten"
            return Stalled(head + 1, f"{what}; nothing more is applied, find out who changed the store", "rewritten")
        for invalid in run:
            if Digest.of(self._incoming.again(invalid.seq, deadline)) != invalid.digest:
                return Stalled(invalid.seq, f"log entry {invalid.seq} reads differently each time", "unavailable")
        return None

    def _rewritten(self, entry: Entry, keyid: str, chained: Digest, deadline: Deadline) -> Stalled:
        """The stall for a signed entry that does not chain to ``chained``, and what the store holds there now."""
        seq, before = entry.seq, entry.seq - 1
        says = f"log entry {seq} (by {entry.author}, key {keyid[:16]}) chains to {entry.prev}"
        if before == 0:
            what = f"expected {chained}: it begins the log of another library or show"
            return Stalled(seq, f"{says}; {what}", "rewritten")
        now = Digest.of(self._incoming.again(before, deadline))
        if self._run and now == entry.prev:
            return Stalled(before, f"log entry {before} reads differently each time", "unavailable")
        if self._run:
            what = f"the store holds {now} at {before}: it is damaged, or the log was rewritten"
        elif now != chained:
            what = f"entry {before} was {chained} when it was applied and is {now} now: the log was rewritten"
        else:
            what = f"entry {before} is {chained}, here and in the store: its publisher saw another history"
        return Stalled(seq, f"{says}, but {what}; nothing more is applied, find out who changed the store", "rewritten")
