"""The entries of a log in order, as they come in: one by one at the head, many at once when far behind.

State: what the log's last listing showed. One thread at a time; the parallel reads happen in pools that live no
longer than one ``read``.

Rules: what is yielded is neither skipped nor doubled, and says nothing about validity beyond the envelope's own.

- A number that is absent is the end of the log unless a *signed* entry lies behind it: then it is missing, and
  the reader stalls. (Anything else behind it may have been put there by anybody, to stop the show.) The log is listed
  at the first reading, every ``GAP_CHECK_S`` after that, and whenever the caller asks for it. In between, every
  ``PEEK_S``, the number behind the absent one is asked for, which costs a tenth of a listing: if it is there, the log
  is listed now. So one lost entry is noticed soon, and several in a row by the next listing.
- An entry that is there and cannot be read raises Stalled; that nothing at all can be read raises TransportError.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from manifest.errors import DamfsError, FormatError, NewerFormat, NotFound, TransportError, TrustError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from concurrent.futures import Future

    from manifest.digest import Digest
    from manifest.entry import Entry
    from manifest.log import Log
    from manifest.trust import Verifier

    Fetch = Callable[[int, float], bytes | None]
    """(number, time-out in s) → the stored bytes of an entry, or None when there is none."""

READ_TIMEOUT_S = 30.0
CHANGESET_TIMEOUT_S = 120.0
GAP_CHECK_S = 30.0
PEEK_S = 5.0
PARALLEL_READS = 32
PARALLEL_CHANGESETS = 8
CHANGESETS_HELD_BYTES_MAX = 64 * 1024 * 1024
"""Compressed changesets read ahead; what is under way when the limit is reached comes on top."""
SINGLE_READS_MAX = 3
"""Entries read one by one before the log is listed to see how many more there are."""
BEHIND_GAP_MAX = 64
"""Entries behind an absent number that are looked at for a signature. Behind more forgeries than these a gap goes
unseen: whoever then publishes into it is found out by the chain."""
REASON_CHARS_MAX = 1000

StallKind = Literal["unavailable", "invalid", "newer", "rewritten"]


@dataclass(frozen=True, slots=True)
class Stall:
    """Why a replica does not go on at entry ``seq``; ``manifest.follow`` tells the kinds."""

    seq: int
    reason: str
    kind: StallKind


class Stalled(Exception):
    """Leaves ``read`` and the follower's own steps; never the follower."""

    def __init__(self, seq: int, reason: str, kind: StallKind) -> None:
        super().__init__(reason)
        self.stall = Stall(seq, reason, kind)


class DeadlinePassed(Exception):
    """The caller's deadline came between two requests; never leaves the follower."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of an envelope: its entry and key, or the rule that it breaks. ``newer``: a trusted key signed it, for others."""

    entry: Entry | None
    keyid: str = ""
    reason: str = ""
    newer: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """Entry ``seq`` as it was read; judged, and its changeset under way, when it was read ahead."""

    seq: int
    stored: bytes
    verdict: Verdict | None = None
    changeset: Future[bytes] | None = None


class Deadline:
    """A moment in s of time.monotonic, or none, and what it leaves for the next request."""

    def __init__(self, at: float | None) -> None:
        self._at = at

    def timeout(self, at_most_s: float = READ_TIMEOUT_S) -> float:
        """The time-out of a request that begins now, in s. Raises DeadlinePassed."""
        if self._at is None:
            return at_most_s
        remaining = self._at - time.monotonic()
        if remaining <= 0:
            raise DeadlinePassed
        return min(at_most_s, remaining)


def judge(verifier: Verifier, show: str, seq: int, stored: bytes) -> Verdict:
    """Whether an envelope is valid: signed by a trusted key, for this show and this number.

    Raises ConfigurationError when that cannot be decided on this machine.
    """
    try:
        entry, keyid = verifier.verify(stored)
    except NewerFormat as error:
        return Verdict(None, reason=str(error), newer=True)
    except (TrustError, FormatError) as error:
        return Verdict(None, reason=shortened(error))
    if entry.show != show:
        return Verdict(None, reason=f"it was signed for the show {entry.show}, not for {show}")
    if entry.seq != seq:
        return Verdict(None, reason=f"it was signed as entry {entry.seq} and lies at {seq}")
    return Verdict(entry, keyid)


@dataclass(frozen=True, slots=True)
class _Listing:
    """What a listing showed: up to which number without a gap, and some of what lies behind the gap."""

    end: int
    behind: tuple[int, ...]
    due: float  # when to list again, in s of time.monotonic


class Incoming:
    """Reads one log. ``fetch`` may be served by a cache; ``refetch`` asks the central store."""

    def __init__(self, log: Log, verifier: Verifier, fetch: Fetch, refetch: Fetch) -> None:
        self._log = log
        self._verifier = verifier
        self._fetch = fetch
        self._refetch = refetch
        self._listing = _Listing(0, (), 0.0)
        self._peek_due = 0.0

    def read(self, after: int, deadline: Deadline, *, thorough: bool) -> Generator[Reading, None, None]:
        """The entries ``after`` + 1 and on, to the end of the log. See the module's rules for what it raises."""
        seq = after + 1
        singles = 0
        if thorough or time.monotonic() >= self._listing.due:
            self._list(after, deadline, near=not thorough)
        while True:
            if singles >= SINGLE_READS_MAX:
                singles = 0
                self._list(seq - 1, deadline)
            if self._listing.end > seq:
                for reading in self._ahead(seq, self._listing.end, deadline):
                    yield reading
                    seq = reading.seq + 1
            stored = self._one(seq, deadline)
            if stored is None:
                return
            yield Reading(seq, stored)
            seq += 1
            singles += 1

    def again(self, seq: int, deadline: Deadline) -> bytes:
        """An entry that was read before, now from the central store. Raises Stalled when it cannot be had."""
        try:
            stored = self._refetch(seq, deadline.timeout())
        except TransportError as error:
            reason = f"log entry {seq} has to be read again from the central store, and cannot be: {error}"
            raise Stalled(seq, reason, "unavailable") from error
        if stored is None:
            raise Stalled(seq, f"log entry {seq} was there and is missing from the central store", "unavailable")
        return stored

    def changeset(self, reading: Reading, digest: Digest, deadline: Deadline) -> bytes:
        """The compressed changeset that an entry names, verified. Raises Stalled when it cannot be had."""
        if reading.changeset is not None:
            ahead = _result(reading.changeset)
            if ahead is not None:
                return ahead
        try:
            return self._log.changeset(digest, timeout_s=deadline.timeout(CHANGESET_TIMEOUT_S))
        except (TransportError, NotFound) as error:
            reason = f"the changeset of log entry {reading.seq} cannot be had: {error}"
            raise Stalled(reading.seq, reason, "unavailable") from error

    def _one(self, seq: int, deadline: Deadline) -> bytes | None:
        """Entry ``seq``, or None when the log ends before it."""
        try:
            stored = self._fetch(seq, deadline.timeout())
        except TransportError as error:
            if self._listing.end < seq:
                self._list(seq - 1, deadline, near=False)
            if self._listing.end >= seq:
                raise Stalled(seq, f"log entry {seq} is there but cannot be read: {error}", "unavailable") from error
            raise
        if stored is not None:
            return stored
        if self._listing.end < seq and not self._listing.behind and not self._is_behind(seq, deadline):
            return None
        if self._listing.end >= seq:  # what the fetch came from may be late
            stored = self._refetch(seq, deadline.timeout())
            if stored is not None:
                return stored
        if time.monotonic() >= self._listing.due or self._listing.end >= seq:
            self._list(seq - 1, deadline, near=False)
        later = self._signed_behind(seq, deadline)
        if later is None and self._listing.end < seq:
            return None
        stored = self._refetch(seq, deadline.timeout())
        if stored is None:
            what = "it was listed" if later is None else f"entry {later} is there"
            reason = f"log entry {seq} is missing from the store, though {what}: restore it, or nothing goes on"
            raise Stalled(seq, reason, "unavailable")
        return stored

    def _is_behind(self, seq: int, deadline: Deadline) -> bool:
        """Whether the number behind the absent ``seq`` is there; asked now and then. The log is to be listed then."""
        if time.monotonic() < self._peek_due:
            return False
        self._peek_due = time.monotonic() + PEEK_S
        try:
            found = self._fetch(seq + 1, deadline.timeout()) is not None
        except TransportError:
            return False
        if found:
            self._listing = replace(self._listing, due=0.0)
        return found

    def _signed_behind(self, seq: int, deadline: Deadline) -> int | None:
        """The number of a signed entry behind the missing ``seq``, or None."""
        for later in self._listing.behind:
            if later <= seq:
                continue
            if self._is_signed(later, self._fetch, deadline) or self._is_signed(later, self._refetch, deadline):
                return later
        # Until the next listing: there is no gap.
        self._listing = replace(self._listing, behind=())
        return None

    def _is_signed(self, seq: int, fetch: Fetch, deadline: Deadline) -> bool:
        stored = fetch(seq, deadline.timeout())
        if stored is None:
            return False
        verdict = judge(self._verifier, self._log.show, seq, stored)
        return verdict.entry is not None or verdict.newer

    def _list(self, after: int, deadline: Deadline, *, near: bool = True) -> None:
        found = set(self._log.listed(after, near=near, timeout_s=deadline.timeout()))
        end = after
        while end + 1 in found:
            end += 1
        behind = heapq.nsmallest(BEHIND_GAP_MAX, (seq for seq in found if seq > end))
        now = time.monotonic()
        self._listing = _Listing(end, tuple(behind), now + GAP_CHECK_S)
        self._peek_due = now + PEEK_S

    def _ahead(self, first: int, last: int, deadline: Deadline) -> Generator[Reading, None, None]:
        """Entries ``first`` to ``last`` and their changesets, read in parallel, a bounded way ahead.

        Ends early, without an error, at the first that is not read at once: ``read`` then asks for that one alone.
        """
        with (
            _Pool(PARALLEL_READS, "log") as entry_pool,
            _Pool(PARALLEL_CHANGESETS, "changesets") as change_pool,
        ):
            entries: deque[tuple[int, Future[bytes | None]]] = deque()
            ready: deque[Reading] = deque()
            following = first
            while True:
                while following <= last and len(entries) < PARALLEL_READS:
                    entries.append((following, entry_pool.submit(self._fetch, following, deadline.timeout())))
                    following += 1
                while entries and len(ready) < PARALLEL_CHANGESETS and (entries[0][1].done() or not ready):
                    seq, future = entries.popleft()
                    stored = _result(future)
                    if stored is None:
                        entries.clear()
                        following = last + 1
                    else:
                        ready.append(self._with_changeset(seq, stored, ready, change_pool, deadline))
                if not ready:
                    return
                yield ready.popleft()

    def _with_changeset(
        self, seq: int, stored: bytes, ready: Iterable[Reading], pool: ThreadPoolExecutor, deadline: Deadline
    ) -> Reading:
        """Judge an envelope, and begin to read its changeset while there is room beside those that are ``ready``."""
        verdict = judge(self._verifier, self._log.show, seq, stored)
        if verdict.entry is None or sum(map(_held_bytes, ready)) > CHANGESETS_HELD_BYTES_MAX:
            return Reading(seq, stored, verdict)
        fetch, digest, timeout_s = self._log.changeset, verdict.entry.change, deadline.timeout(CHANGESET_TIMEOUT_S)
        return Reading(seq, stored, verdict, pool.submit(lambda: fetch(digest, timeout_s=timeout_s)))


class _Pool(ThreadPoolExecutor):
    """A pool that begins nothing more once it is left."""

    def __exit__(self, *_: object) -> None:
        self.shutdown(wait=True, cancel_futures=True)


def _result(future: Future[bytes | None] | Future[bytes]) -> bytes | None:
    """What was read ahead, or None: whoever needs it asks again, and hears the error then."""
    try:
        return future.result()
    except DamfsError:
        return None


def _held_bytes(reading: Reading) -> int:
    """The bytes that a changeset read ahead takes up by now."""
    future = reading.changeset
    done = future is not None and future.done() and not future.cancelled() and future.exception() is None
    return len(future.result()) if future is not None and done else 0


def shortened(error: Exception) -> str:
    """An error as a reason to be stored with a revision, whatever of the entry it quotes."""
    return str(error)[:REASON_CHARS_MAX].encode(errors="backslashreplace").decode()
