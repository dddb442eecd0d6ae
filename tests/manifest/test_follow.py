"""A replica follows its log: what is applied, what is waited for, what becomes a no-op, and what is refused."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manifest import layout
from manifest.digest import Digest
from manifest.errors import Unavailable
from manifest.library import Library
from manifest.post import Folder
from manifest.trust import SigningKey
from tests.manifest.logs import SHOW, FaultyLibrary, Scribe, dump, file, flipped, names, put

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from manifest.follow import Progress
    from manifest.show import Show


@pytest.fixture
def scribe(library: Library, tmp_path: Path) -> Scribe:
    """The writer of a show's log, on each kind of store."""
    return Scribe(library, tmp_path / "replicas")


@pytest.fixture
def on_disk(file_library: Library, tmp_path: Path) -> Scribe:
    """The writer of a show's log in a folder, for what has nothing to do with the kind of store."""
    return Scribe(file_library, tmp_path / "replicas")


@pytest.fixture
def show(scribe: Scribe) -> Iterator[Show]:
    with scribe.show() as opened:
        yield opened


def status(show: Show, seq: int) -> str | None:
    info = show.writer.revision(seq)
    return None if info is None else info.status


def good(show: Show, head: int) -> Progress:
    """Advance; nothing may be in the way."""
    progress = show.follower.advance(thorough=True)
    assert progress.stalled is None
    assert (progress.head, progress.reachable, progress.complete) == (head, True, True)
    return progress


def stalled(show: Show, head: int, seq: int, kind: str) -> str:
    """Advance; it must stop behind ``head`` because of ``seq``. Returns the reason."""
    progress = show.follower.advance(thorough=True)
    assert progress.stalled is not None
    assert (progress.head, progress.stalled.seq, progress.stalled.kind) == (head, seq, kind), progress.stalled.reason
    assert show.writer.head == head
    return progress.stalled.reason


# The way it should be.


def test_entries_are_applied_in_their_order(scribe: Scribe, show: Show) -> None:
    for name in ("a", "b", "c"):
        scribe.publish(name)
    assert good(show, 3).applied == 3
    assert names(show) == ["a", "b", "c"]
    assert [status(show, seq) for seq in (1, 2, 3)] == ["applied"] * 3


def test_an_empty_log_is_followed_to_its_end(show: Show) -> None:
    assert good(show, 0).applied == 0


def test_a_replica_that_is_far_behind_reads_ahead_and_misses_nothing(scribe: Scribe, show: Show) -> None:
    for number in range(150):
        scribe.publish(f"f{number:03}")
    good(show, 150)
    assert len(names(show)) == 150


def test_a_poll_sees_an_entry_without_listing_the_log(scribe: Scribe, tmp_path: Path) -> None:
    listings = 0

    class Unlisted(FaultyLibrary):
        def list(self, prefix: str, *, after: str | None = None, timeout_s: float = 30.0) -> Iterator[tuple[str, int]]:
            nonlocal listings
            listings += 1
            return self.inner.list(prefix, after=after, timeout_s=timeout_s)

    with scribe.show(library=Unlisted(scribe.library, lambda _key, true: true)) as show:
        assert show.follower.advance().head == 0
        assert listings == 1
        scribe.publish("a")
        scribe.publish("b")
        assert show.follower.advance().head == 2
        assert listings == 1


def test_advance_stops_at_the_revision_that_was_asked_for(scribe: Scribe, show: Show) -> None:
    for number in range(9):
        scribe.publish(f"f{number}")
    progress = show.follower.advance(to=4)
    assert (progress.head, progress.complete) == (4, False)
    assert show.follower.advance(to=4).applied == 0
    good(show, 9)


def test_a_deadline_ends_an_advance_between_two_entries(on_disk: Scribe) -> None:
    for number in range(30):
        on_disk.publish(f"f{number}")

    def slow(_key: str, true: bytes | None) -> bytes | None:
        time.sleep(0.1)
        return true

    with on_disk.show(library=FaultyLibrary(on_disk.library, slow)) as show:
        progress = show.follower.advance(deadline=time.monotonic() + 0.3)
        assert progress.head < 30
        assert not progress.complete
        assert progress.reachable
        good(show, 30)


def test_a_library_that_cannot_be_reached_leaves_the_replica_as_it_is(on_disk: Scribe) -> None:
    down = False

    def reads(_key: str, true: bytes | None) -> bytes | None:
        if down:
            raise Unavailable("the library is down")
        return true

    class Down(FaultyLibrary):
        def list(self, prefix: str, *, after: str | None = None, timeout_s: float = 30.0) -> Iterator[tuple[str, int]]:
            reads("", None)
            return self.inner.list(prefix, after=after, timeout_s=timeout_s)

    on_disk.publish("a")
    with on_disk.show(library=Down(on_disk.library, reads)) as show:
        good(show, 1)
        on_disk.publish("b")
        down = True
        for thorough in (False, True):
            progress = show.follower.advance(thorough=thorough)
            assert (progress.head, progress.reachable, progress.complete, progress.stalled) == (1, False, False, None)
        assert names(show) == ["a"]
        down = False
        good(show, 2)


# Bad entries: each pending at the head, a no-op once a good one chains to it.


def tampered(scribe: Scribe) -> bytes:
    return flipped(scribe.entry([put("evil")]))


def replayed(scribe: Scribe) -> bytes:
    return scribe.stored(1)


def of_an_unknown_key(scribe: Scribe) -> bytes:
    return scribe.entry([put("evil")], key=SigningKey.generate())


def with_the_signature_of_another(scribe: Scribe) -> bytes:
    from manifest import canonical

    ours, theirs = (canonical.decode(scribe.entry([put(name)]), bytes_max=65536) for name in ("evil", "other"))
    return canonical.encode(ours | {"signatures": theirs["signatures"]})


def of_another_show(scribe: Scribe) -> bytes:
    return scribe.entry([put("evil")], show="gemini", prev=Digest.of(b"an entry of gemini"))


def of_a_later_number(scribe: Scribe) -> bytes:
    return scribe.entry([put("evil")], seq=scribe.seq + 2, prev=Digest.of(b"what was there"))


def empty(_scribe: Scribe) -> bytes:
    return b""


def not_json(_scribe: Scribe) -> bytes:
    return b"\x80 no entry"


def too_large(scribe: Scribe) -> bytes:
    return scribe.entry([put("evil")]) + b" " * 200_000


def with_a_used_publish_id(scribe: Scribe) -> bytes:
    from manifest.trust import PinnedKeys

    assert isinstance(scribe.trust, PinnedKeys)
    return scribe.entry([put("evil")], publish_id=scribe.trust.verify(scribe.stored(1))[0].publish_id)


def over_what_is_not_there(scribe: Scribe) -> bytes:
    return scribe.entry([put("evil", over=file(b"never"))])


def over_what_is_there(scribe: Scribe) -> bytes:
    return scribe.entry([put("a", file(b"other"))])


def into_a_version(scribe: Scribe) -> bytes:
    return scribe.entry([put("plate/v001/evil")])


def through_a_file(scribe: Scribe) -> bytes:
    return scribe.entry([put("a/evil")])


def a_file_where_a_folder_is(scribe: Scribe) -> bytes:
    return scribe.entry([put("plate", over=Folder(0o755))])


def hostile(path: str) -> Callable[[Scribe], bytes]:
    def make(scribe: Scribe) -> bytes:
        return scribe.raw([{"path": path, "post": {"kind": "link", "target": "x"}, "pre": None}])

    make.__name__ = f"hostile {path[:10]!r}"
    return make


def of_unsorted_ops(scribe: Scribe) -> bytes:
    link = {"kind": "link", "target": "x"}
    return scribe.raw([{"path": path, "post": link, "pre": None} for path in ("z", "y")])


def of_another_publish(scribe: Scribe) -> bytes:
    return scribe.entry([put("evil")], publish_id="0" * 32, change=_change_of(scribe, "1" * 32))


def _change_of(scribe: Scribe, publish_id: str) -> Digest:
    from manifest.trust import PinnedKeys

    assert isinstance(scribe.trust, PinnedKeys)
    return scribe.trust.verify(scribe.entry([put("evil")], publish_id=publish_id))[0].change


UNSIGNED = [tampered, replayed, of_an_unknown_key, with_the_signature_of_another, of_another_show, of_a_later_number,
            empty, not_json, too_large]  # fmt: skip
SIGNED = [with_a_used_publish_id, over_what_is_not_there, over_what_is_there, into_a_version, through_a_file,
          a_file_where_a_folder_is, hostile("../evil"), hostile("/evil"), hostile(""), hostile("a\0b"),
          hostile("x" * 300), of_unsorted_ops, of_another_publish]  # fmt: skip


def begun(scribe: Scribe) -> None:
    """Entry 1, which the bad ones run into."""
    scribe.add(scribe.entry([put("a"), put("plate/v001/frame")]))


@pytest.mark.parametrize("bad", [*UNSIGNED, *SIGNED], ids=lambda bad: bad.__name__)
def test_a_bad_entry_is_pending_at_the_head_and_a_no_op_once_a_good_one_chains_to_it(
    on_disk: Scribe, bad: Callable[[Scribe], bytes]
) -> None:
    begun(on_disk)
    with on_disk.show() as show:
        good(show, 1)
        stored = bad(on_disk)
        on_disk.add(stored)
        for _ in range(2):
            assert "log entry 2 is invalid: " in stalled(show, 1, 2, "invalid")
            assert names(show) == ["a", "plate/v001/frame"]
        if bad is too_large:
            on_disk.prev = Digest.of(stored[: 65536 + 1])
        on_disk.publish("b")
        assert good(show, 3).applied == 2
        assert (status(show, 2), status(show, 3)) == ("noop", "applied")
        info = show.writer.revision(2)
        assert info is not None
        assert info.reason
        assert names(show) == ["a", "b", "plate/v001/frame"]
        assert not list(show.writer.changes(1, 2))


@pytest.mark.parametrize("bad", [tampered, replayed, over_what_is_there], ids=lambda bad: bad.__name__)
def test_a_bad_entry_is_skipped_on_every_kind_of_store(
    scribe: Scribe, show: Show, bad: Callable[[Scribe], bytes]
) -> None:
    begun(scribe)
    scribe.add(bad(scribe))
    stalled(show, 1, 2, "invalid")
    scribe.publish("b")
    good(show, 3)
    assert status(show, 2) == "noop"


@pytest.mark.parametrize("first", [tampered, over_what_is_there], ids=lambda bad: bad.__name__)
@pytest.mark.parametrize("second", [replayed, over_what_is_not_there], ids=lambda bad: bad.__name__)
def test_two_bad_entries_in_a_row_do_not_stop_a_show(
    scribe: Scribe, show: Show, first: Callable[[Scribe], bytes], second: Callable[[Scribe], bytes]
) -> None:
    begun(scribe)
    scribe.add(first(scribe))
    scribe.add(second(scribe))
    head = 2 if second is over_what_is_not_there else 1
    stalled(show, head, head + 1, "invalid")
    scribe.publish("b")
    scribe.publish("c")
    good(show, 5)
    assert [status(show, seq) for seq in range(1, 6)] == ["applied", "noop", "noop", "applied", "applied"]


def test_a_show_may_begin_with_bad_entries(on_disk: Scribe) -> None:
    on_disk.add(b"no entry")
    on_disk.add(b"none either")
    with on_disk.show() as show:
        stalled(show, 0, 1, "invalid")
        on_disk.publish("a")
        good(show, 3)


def test_two_entries_that_were_exchanged_are_both_no_ops(scribe: Scribe, show: Show) -> None:
    for name in ("a", "b", "c"):
        scribe.publish(name)
    second, third = scribe.stored(2), scribe.stored(3)
    scribe.overwrite(2, third)
    scribe.overwrite(3, second)
    stalled(show, 1, 2, "invalid")
    scribe.prev = Digest.of(second)
    scribe.publish("d")
    good(show, 4)
    assert [status(show, seq) for seq in range(1, 5)] == ["applied", "noop", "noop", "applied"]


def test_a_bad_entry_at_the_head_heals_when_the_store_is_repaired(scribe: Scribe, show: Show) -> None:
    scribe.publish("a")
    scribe.publish("b")
    whole = scribe.stored(2)
    scribe.overwrite(2, flipped(whole))
    stalled(show, 1, 2, "invalid")
    scribe.overwrite(2, whole)
    good(show, 2)
    assert status(show, 2) == "applied"


def test_what_was_a_no_op_once_may_be_published_again_under_its_id(on_disk: Scribe) -> None:
    begun(on_disk)
    on_disk.add(on_disk.entry([put("a", file(b"lost"))], publish_id="f" * 32))
    on_disk.add(on_disk.entry([put("b")], publish_id="f" * 32))
    with on_disk.show() as show:
        good(show, 3)
        assert (status(show, 2), status(show, 3)) == ("noop", "applied")


# What is not there, or cannot be had, is waited for.


def test_a_missing_entry_with_later_ones_stalls_and_recovers(scribe: Scribe, show: Show) -> None:
    for name in ("a", "b", "c", "d"):
        scribe.publish(name)
    lost = scribe.lose(2)
    assert "log entry 2 is missing" in stalled(show, 1, 2, "unavailable")
    # Also a poll that does not list says so.
    poll = show.follower.advance()
    assert poll.stalled is not None
    assert poll.stalled.kind == "unavailable"
    scribe.overwrite(2, lost)
    good(show, 4)


def test_a_gap_that_opens_behind_a_listed_head_is_found_by_the_next_listing(
    on_disk: Scribe, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk.publish("a")
    with on_disk.show() as show:
        good(show, 1)
        on_disk.publish("b")
        on_disk.publish("c")
        on_disk.lose(2)
        assert show.follower.advance().stalled is None
        monkeypatch.setattr("manifest.incoming.GAP_CHECK_S", 0.0)
        stalled(show, 1, 2, "unavailable")
        poll = show.follower.advance()
        assert poll.stalled is not None
        assert poll.stalled.seq == 2


def test_a_log_whose_first_entry_is_missing_stalls(on_disk: Scribe) -> None:
    on_disk.publish("a")
    on_disk.publish("b")
    on_disk.lose(1)
    with on_disk.show() as show:
        stalled(show, 0, 1, "unavailable")


def test_unsigned_objects_at_numbers_far_ahead_do_not_stop_a_show(scribe: Scribe, show: Show) -> None:
    begun(scribe)
    for seq, stored in ((3, b"junk"), (7, scribe.stored(1)), (4_000_000, b"")):
        scribe.library.create(layout.log_key(SHOW, seq), stored)
    scribe.library.create(layout.log_prefix(SHOW) + "notes.txt", b"not an entry at all")
    good(show, 1)
    scribe.publish("b")
    stalled(show, 2, 3, "invalid")
    scribe.seq, scribe.prev = 3, Digest.of(b"junk")
    scribe.publish("c")
    good(show, 4)


def test_a_missing_changeset_stalls_and_recovers(scribe: Scribe, show: Show) -> None:
    begun(scribe)
    scribe.add(scribe.entry([put("b")], publish_id="b" * 32))
    key = layout.change_key(SHOW, _change_of_entry(scribe, 2))
    whole = scribe.library.get(key)
    scribe.library.delete(key)
    scribe.publish("c")
    assert "changeset" in stalled(show, 1, 2, "unavailable")
    scribe.library.put(key, whole)
    good(show, 3)


@pytest.mark.parametrize("damage", [flipped, lambda _: b"", lambda data: data[:-9]], ids=["flip", "empty", "truncate"])
def test_a_changeset_with_other_bytes_stalls_and_recovers(on_disk: Scribe, damage: Callable[[bytes], bytes]) -> None:
    begun(on_disk)
    on_disk.publish("b")
    on_disk.publish("c")
    key = layout.change_key(SHOW, _change_of_entry(on_disk, 2))
    whole = on_disk.library.get(key)
    on_disk.library.put(key, damage(whole))
    with on_disk.show() as show:
        stalled(show, 1, 2, "unavailable")
        on_disk.library.put(key, whole)
        good(show, 3)
        assert status(show, 2) == "applied"


def test_the_changeset_of_another_publish_in_its_place_stalls(on_disk: Scribe) -> None:
    begun(on_disk)
    on_disk.publish("b")
    on_disk.publish("c")
    keys = [layout.change_key(SHOW, _change_of_entry(on_disk, seq)) for seq in (2, 3)]
    on_disk.library.put(keys[0], on_disk.library.get(keys[1]))
    with on_disk.show() as show:
        stalled(show, 1, 2, "unavailable")


def _change_of_entry(scribe: Scribe, seq: int) -> Digest:
    from manifest.trust import PinnedKeys

    assert isinstance(scribe.trust, PinnedKeys)
    return scribe.trust.verify(scribe.stored(seq))[0].change


# A cache on the way may lie; the central store decides.


@pytest.mark.parametrize(
    "lie",
    [flipped, lambda _: b"", lambda stored: stored[:100], lambda _: None],
    ids=["a flipped bit", "nothing", "half", "not there"],
)
def test_what_a_cache_says_wrongly_of_an_entry_is_read_again(
    on_disk: Scribe, lie: Callable[[bytes], bytes | None]
) -> None:
    for name in ("a", "b", "c"):
        on_disk.publish(name)
    with on_disk.show("cached") as show:

        def fetch(seq: int, timeout_s: float) -> bytes | None:
            stored = show.log.read(seq, timeout_s=timeout_s)
            return lie(stored) if seq == 2 and stored is not None else stored

        with on_disk.show("cached", fetch=fetch) as cached:
            good(cached, 3)
            assert status(cached, 2) == "applied"


def test_a_signed_entry_of_a_cache_that_the_store_does_not_have_is_not_applied(on_disk: Scribe) -> None:
    begun(on_disk)
    other = on_disk.entry([put("other")])
    on_disk.publish("b")
    on_disk.publish("c")
    # Signed and chained to entry 1: nothing but entry 3 tells that the store never had it.
    with on_disk.show() as plain:

        def fetch(seq: int, timeout_s: float) -> bytes | None:
            return other if seq == 2 else plain.log.read(seq, timeout_s=timeout_s)

        with on_disk.show("cached", fetch=fetch) as cached:
            reason = stalled(cached, 2, 3, "rewritten")
            assert "log entry 3" in reason
            assert names(cached) == ["a", "other", "plate/v001/frame"]


def test_an_invalid_entry_that_cannot_be_read_again_is_not_judged(on_disk: Scribe) -> None:
    on_disk.publish("a")
    on_disk.publish("b")
    on_disk.publish("c")
    once: set[str] = set()

    def reads(key: str, true: bytes | None) -> bytes | None:
        if key == layout.log_key(SHOW, 2) and true is not None:
            if key in once:
                raise Unavailable("the store is down")
            once.add(key)
            return flipped(true)
        return true

    with on_disk.show(library=FaultyLibrary(on_disk.library, reads)) as show:
        stalled(show, 1, 2, "unavailable")


def test_unsigned_bytes_that_change_from_read_to_read_are_not_settled(on_disk: Scribe) -> None:
    begun(on_disk)
    on_disk.publish("b")
    on_disk.add(b"junk")
    on_disk.publish("c")
    noise = random.Random(7)
    damaged = True

    def reads(key: str, true: bytes | None) -> bytes | None:
        if damaged and key == layout.log_key(SHOW, 2) and true is not None:
            return flipped(true, noise.randrange(10_000))
        return true

    with on_disk.show(library=FaultyLibrary(on_disk.library, reads)) as show:
        assert "differently" in stalled(show, 1, 2, "unavailable")
        damaged = False
        good(show, 4)
        assert [status(show, seq) for seq in (2, 3, 4)] == ["applied", "noop", "applied"]


# A store that was rewritten is noticed, and nothing more is applied.


@pytest.mark.parametrize("replacement", [lambda _: b"junk", flipped], ids=["junk", "flipped"])
def test_an_applied_entry_that_was_replaced_stalls_at_the_next(
    scribe: Scribe, show: Show, replacement: Callable[[bytes], bytes]
) -> None:
    scribe.publish("a")
    scribe.publish("b")
    good(show, 2)
    whole = scribe.stored(2)
    scribe.overwrite(2, replacement(whole))
    # Somebody who has only seen the new bytes publishes on top of them.
    scribe.prev = Digest.of(scribe.stored(2))
    scribe.publish("c")
    reason = stalled(show, 2, 3, "rewritten")
    assert "the log was rewritten" in reason
    assert str(Digest.of(whole)) in reason
    assert names(show) == ["a", "b"]
    # Restoring the old bytes does not make the new history ours.
    scribe.overwrite(2, whole)
    assert "another history" in stalled(show, 2, 3, "rewritten")


def test_a_replaced_entry_before_an_unsigned_one_is_noticed_too(on_disk: Scribe) -> None:
    on_disk.publish("a")
    on_disk.publish("b")
    with on_disk.show() as show:
        good(show, 2)
        whole = on_disk.stored(2)
        on_disk.overwrite(2, b"rotten")
        on_disk.add(b"junk")
        on_disk.publish("c")
        assert "the log was rewritten" in stalled(show, 2, 3, "rewritten")
        on_disk.overwrite(2, whole)
        good(show, 4)


def test_a_rotten_entry_that_a_good_one_vouches_for_waits_for_its_repair(on_disk: Scribe) -> None:
    for name in ("a", "b", "c"):
        on_disk.publish(name)
    whole = on_disk.stored(2)
    on_disk.overwrite(2, flipped(whole))
    with on_disk.show() as show:
        assert "damaged" in stalled(show, 1, 3, "rewritten")
        on_disk.overwrite(2, whole)
        good(show, 3)
        assert [status(show, seq) for seq in (1, 2, 3)] == ["applied"] * 3


def test_the_log_of_another_library_is_not_followed(on_disk: Scribe) -> None:
    from manifest.entry import genesis_prev

    on_disk.prev = genesis_prev("0" * 32, SHOW)
    on_disk.publish("a")
    with on_disk.show() as show:
        assert "another library" in stalled(show, 0, 1, "rewritten")


def test_a_signed_entry_that_chains_elsewhere_is_never_skipped(on_disk: Scribe) -> None:
    begun(on_disk)
    on_disk.add(on_disk.entry([put("b")], prev=Digest.of(b"elsewhere")))
    on_disk.publish("c")
    with on_disk.show() as show:
        assert "another history" in stalled(show, 1, 2, "rewritten")


# Two replicas that met different faults end in the same state.


class LongLog(NamedTuple):
    scribe: Scribe
    statuses: list[str | None]
    rows: dict[str, list[tuple[Any, ...]]]


@pytest.fixture(scope="module")
def long_log(tmp_path_factory: pytest.TempPathFactory) -> LongLog:
    """A log with every kind of entry, and the replica that met no fault."""
    from manifest.identity import write_identity

    root = tmp_path_factory.mktemp("long")
    (root / "library").mkdir()
    library = Library.open((root / "library").as_uri())
    write_identity(library)
    scribe = Scribe(library, root / "replicas")
    begun(scribe)
    number = 0
    for group in ([tampered], [over_what_is_there], [replayed, not_json], [through_a_file, empty, of_an_unknown_key],
                  [of_a_later_number, into_a_version], [hostile("../evil")], [empty, empty, empty]):  # fmt: skip
        for bad in group:
            scribe.add(bad(scribe))
        for _ in range(2):
            number += 1
            scribe.publish(f"folder{number % 3}/file{number}")
    with scribe.show() as show:
        good(show, scribe.seq)
        return LongLog(scribe, [status(show, seq) for seq in range(1, scribe.seq + 1)], dump(show))


class Faults:
    """A schedule: what each successive read of a key meets, until it is used up."""

    def __init__(self, schedule: list[tuple[int, str]], seed: int) -> None:
        self.left: dict[int, list[str]] = {}
        for seq, fault in schedule:
            self.left.setdefault(seq, []).append(fault)
        self.noise = random.Random(seed)

    def meet(self, seq: int, true: bytes | None) -> bytes | None:
        waiting = self.left.get(seq)
        if not waiting:
            return true
        fault = waiting.pop()
        if fault == "down":
            raise Unavailable(f"entry {seq}: the store is down")
        if fault == "absent" or true is None:
            return None
        if fault == "flip":
            return flipped(true, self.noise.randrange(1 << 20)) if true else true
        assert fault == "garble"
        return self.noise.randbytes(self.noise.randrange(1, 300))


FAULTS = st.lists(
    st.tuples(st.integers(1, 30), st.sampled_from(["down", "absent", "flip", "garble"])), max_size=60
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(central=FAULTS, changes=FAULTS, cached=FAULTS, seed=st.integers(0, 1 << 30))
@pytest.mark.timeout(300)
def test_replicas_that_met_different_faults_hold_the_same_rows(
    long_log: LongLog,
    tmp_path_factory: pytest.TempPathFactory,
    central: list[tuple[int, str]],
    changes: list[tuple[int, str]],
    cached: list[tuple[int, str]],
    seed: int,
) -> None:
    scribe = long_log.scribe
    in_store, in_changes, in_cache = Faults(central, seed), Faults(changes, seed), Faults(cached, seed)
    number_of: dict[str, int] = {}

    def reads(key: str, true: bytes | None) -> bytes | None:
        if "/log/" in key:
            return in_store.meet(layout.seq_of(key), true)
        return in_changes.meet(number_of.setdefault(key, len(number_of) + 1), true)

    class Lists(FaultyLibrary):
        def list(self, prefix: str, *, after: str | None = None, timeout_s: float = 30.0) -> Iterator[tuple[str, int]]:
            in_changes.meet(30, None)
            return self.inner.list(prefix, after=after, timeout_s=timeout_s)

    library = Lists(scribe.library, reads)
    scribe.folder = tmp_path_factory.mktemp("replica")
    with scribe.show("central", library=library) as central_show:

        def fetch(seq: int, timeout_s: float) -> bytes | None:
            return in_cache.meet(seq, central_show.log.read(seq, timeout_s=timeout_s))

        with scribe.show("replica", library=library, fetch=fetch) as show:
            for turn in range(300):
                progress = show.follower.advance(thorough=turn % 3 == 0)
                head = progress.head
                assert [status(show, seq) for seq in range(1, head + 1)] == long_log.statuses[:head]
                if head == scribe.seq:
                    break
            else:
                pytest.fail(f"the replica did not recover: {progress}")
            assert dump(show) == long_log.rows
