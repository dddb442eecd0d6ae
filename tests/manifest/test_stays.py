"""What is no fault of the log: a damaged replica, a machine that fails, a newer format. A replica stays where it is."""

from __future__ import annotations

import base64
import secrets
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import zstandard
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]  # exported there without __all__

from manifest import canonical, changeset, incoming, layout
from manifest.commit import Publish, commit
from manifest.digest import Digest
from manifest.entry import PAYLOAD_TYPE
from manifest.errors import ConfigurationError, DigestMismatch, NewerFormat, ReplicaDamaged
from manifest.post import File, Link
from manifest.trust import SigningKey
from tests.manifest import builders
from tests.manifest.logs import SHOW, Scribe, dump, file, flipped, names, put

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from manifest.changeset import Op
    from manifest.library import Library
    from manifest.show import Show


@pytest.fixture
def scribe(file_library: Library, tmp_path: Path) -> Scribe:
    return Scribe(file_library, tmp_path / "replicas")


def publish(show: Show, scribe: Scribe, *ops: Op) -> int:
    wanted = Publish(SHOW, secrets.token_hex(16), "ann", "", "", ops)
    return commit(show.follower, scribe.key, wanted, deadline_s=30, sleep=lambda _seconds: None)


# A damaged replica.


DAMAGES = {
    "a file without digest": "UPDATE entries SET digest = NULL WHERE name = 'a'",
    "a digest that is too short": "UPDATE entries SET digest = x'00' WHERE name = 'a'",
    "another digest": "UPDATE entries SET digest = zeroblob(32) WHERE name = 'a'",
    "a digest that is text": "UPDATE entries SET digest = 'text' WHERE name = 'a'",
    "a file without content": "UPDATE entries SET content = NULL WHERE name = 'a'",
    "another content": "UPDATE entries SET content = zeroblob(32) WHERE name = 'a'",
    "a size that its chunks do not have": "UPDATE entries SET size = size + 1 WHERE name = 'a'",
    "a mode that no file has": "UPDATE entries SET mode = 4095 WHERE name = 'a'",
    "a time before 1970": "UPDATE entries SET mtime_ns = -1 WHERE name = 'a'",
    "a number that is text": "UPDATE entries SET mtime_ns = 'text' WHERE name = 'a'",
    "a kind that is none": "UPDATE entries SET kind = 7 WHERE name = 'a'",
    "a recipe that is gone": "DELETE FROM contents",
    "half a recipe": "UPDATE contents SET recipe = x'00'",
    "a recipe that is text": "UPDATE contents SET recipe = 'text'",
    "a link without target": "UPDATE entries SET target = NULL WHERE name = 'link'",
    "a target that is no text": "UPDATE entries SET target = CAST(x'ff' AS TEXT) WHERE name = 'link'",
    "a table that is gone": "DROP TABLE touched",
    "a head without digest": "UPDATE revisions SET entry_digest = x''",
}


def damaged(show: Show, statement: str) -> None:
    with closing(sqlite3.connect(show.path, isolation_level=None)) as connection:
        assert connection.execute(statement).rowcount != 0


ONE = file(b"a")
SEVERAL = builders.file(b"several" * 500)
"""Of one chunk a row says all, whatever became of the recipe; of several chunks it does not."""


def begun(scribe: Scribe, a: File = ONE) -> None:
    """Entry 1."""
    scribe.add(scribe.entry([put("a", a), put("link", Link("a"))]))


def over_all(scribe: Scribe, a: File = ONE) -> bytes:
    """An entry over all that entry 1 has."""
    return scribe.entry([put("a", file(b"new"), over=a), put("link", Link("b"), over=Link("a"))])


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_never_an_invalid_entry_and_is_gone_when_the_replica_is_opened_again(
    scribe: Scribe, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    a = SEVERAL if "recipe" in damage else ONE
    begun(scribe, a)
    with scribe.show("whole") as whole:
        assert whole.follower.advance().head == 1
        with scribe.show("damaged") as show:
            show.follower.advance()
            damaged(show, DAMAGES[damage])
            scribe.add(over_all(scribe, a))
            scribe.publish("b")
            for _ in range(2):
                with pytest.raises(ReplicaDamaged, match="damaged"):
                    show.follower.advance()
        assert "is built anew" in caplog.text
        with scribe.show("damaged") as show:
            assert show.follower.advance().head == 3
            assert whole.follower.advance().head == 3
            assert dump(show) == dump(whole)
            assert names(show) == ["a", "b"]


def test_an_entry_that_a_constraint_refuses_is_damage_and_no_invalid_entry(
    scribe: Scribe, caplog: pytest.LogCaptureFixture
) -> None:
    scribe.publish("a")
    scribe.publish("b")
    with scribe.show() as show:
        show.follower.advance()
        damaged(show, "INSERT INTO touched VALUES (0, 3)")
        scribe.publish("c")
        with pytest.raises(ReplicaDamaged, match="UNIQUE"):
            show.follower.advance()
    with scribe.show() as show:
        assert show.follower.advance().head == 3
    assert "is built anew" in caplog.text


def test_pages_of_garbage_are_damage_whenever_they_are_met(scribe: Scribe, caplog: pytest.LogCaptureFixture) -> None:
    scribe.add(scribe.entry([put(f"d/{number:04}") for number in range(2000)]))
    with scribe.show("whole") as whole:
        whole.follower.advance()
        whole.writer._execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        stored = whole.path.read_bytes()
        numbers = range(2000)
        scribe.add(scribe.entry([put(f"d/{n:04}", file(b"new"), over=file(b"d/%04d" % n)) for n in numbers]))
        scribe.publish("e")
        assert whole.follower.advance().head == 3
        for page in range(1, len(stored) // 4096, 9):
            name = f"garbage-{page}"
            with scribe.show(name) as show:
                path = show.path
            path.write_bytes(stored[: page * 4096] + b"\xa5" * 4096 + stored[(page + 1) * 4096 :])
            with scribe.show(name) as show:
                try:
                    assert show.follower.advance().head in (1, 3)
                except ReplicaDamaged:
                    assert not path.exists()
                else:
                    assert all(info.status == "applied" for info in show.writer.revisions(1, 9))
            with scribe.show(name) as show:
                if show.writer.head == 0:
                    assert show.follower.advance().head == 3
                    assert dump(show) == dump(whole)
    assert "is built anew" in caplog.text


def test_a_reader_keeps_what_it_has_when_its_replica_is_dropped(
    scribe: Scribe, caplog: pytest.LogCaptureFixture
) -> None:
    begun(scribe)
    with scribe.show() as show, closing(show.reader()) as reader:
        show.follower.advance()
        damaged(show, DAMAGES["a file without digest"])
        scribe.add(over_all(scribe))
        with pytest.raises(ReplicaDamaged):
            show.follower.advance()
        assert [row.name for row in reader.list(0, 1)] == ["a", "link"]
    assert "is built anew" in caplog.text


def test_a_publish_on_a_damaged_replica_is_refused_and_goes_through_when_it_is_run_again(
    scribe: Scribe, caplog: pytest.LogCaptureFixture
) -> None:
    begun(scribe)
    op = put("a", file(b"new"), over=file(b"a"))
    with scribe.show() as show:
        show.follower.advance()
        damaged(show, DAMAGES["a file without digest"])
        with pytest.raises(ReplicaDamaged):
            publish(show, scribe, op)
    with scribe.show() as show:
        assert publish(show, scribe, op) == 2
    assert "is built anew" in caplog.text


def test_a_closed_replica_is_our_bug_and_no_damage(scribe: Scribe) -> None:
    show = scribe.show()
    show.writer.close()
    with pytest.raises(sqlite3.ProgrammingError):
        show.follower.advance()
    assert show.path.exists()


# A machine that fails.


def test_a_signature_that_cannot_be_checked_is_no_wrong_one(scribe: Scribe, monkeypatch: pytest.MonkeyPatch) -> None:
    scribe.publish("a")
    scribe.publish("b")

    def fails(*_: object) -> None:
        raise VerificationError("why") from MemoryError()

    with scribe.show() as show:
        with monkeypatch.context() as patched:
            patched.setattr(SSlibKey, "verify_signature", fails)
            with pytest.raises(ConfigurationError, match="cannot be checked on this machine"):
                show.follower.advance()
        assert show.follower.advance().head == 2
        assert names(show) == ["a", "b"]


@pytest.mark.parametrize("error", [MemoryError, RecursionError])
def test_no_memory_is_no_invalid_entry(scribe: Scribe, monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    scribe.publish("a")
    scribe.publish("b")

    def fails(*_: object) -> None:
        raise error

    with scribe.show() as show:
        for place, name in ((changeset, "parse_lines"), (changeset, "_parse_header"), (incoming, "judge")):
            with monkeypatch.context() as patched:
                patched.setattr(place, name, fails)
                with pytest.raises(error):
                    show.follower.advance()
        assert show.follower.advance().head == 2
        assert names(show) == ["a", "b"]


def test_a_changeset_that_cannot_be_unpacked_a_second_time_is_waited_for(
    scribe: Scribe, monkeypatch: pytest.MonkeyPatch
) -> None:
    scribe.publish("a")

    def fails(_compressed: bytes) -> Iterator[bytes]:
        raise DigestMismatch("Allocation error")

    with scribe.show() as show:
        with monkeypatch.context() as patched:
            patched.setattr(changeset, "_blocks", fails)
            stall = show.follower.advance().stalled
            assert stall is not None
            assert (stall.kind, stall.seq) == ("unavailable", 1)
        assert show.follower.advance().head == 1


# A newer format.


def signed(scribe: Scribe, payload: bytes, payload_type: str = PAYLOAD_TYPE, key: SigningKey | None = None) -> bytes:
    """Any payload of any type in an envelope with a good signature."""
    key = key or scribe.key
    signature = {"keyid": key.keyid, "sig": base64.b64encode(key.sign(payload_type, payload)).decode()}
    return canonical.encode(
        {"payload": base64.b64encode(payload).decode(), "payloadType": payload_type, "signatures": [signature]}
    )


def of_a_newer_entry(scribe: Scribe, **fields: Any) -> bytes:
    return signed(scribe, canonical.encode({"_type": "damfs.entry/2", "prev": [str(scribe.prev)]}), **fields)


def of_a_much_newer_entry(scribe: Scribe, **fields: Any) -> bytes:
    return signed(scribe, canonical.encode({"_type": "damfs.entry/10"}), **fields)


def of_another_payload_type(scribe: Scribe, **fields: Any) -> bytes:
    return signed(scribe, b"\x00 anything", "application/vnd.damfs.entry+cbor", **fields)


def of_a_newer_changeset(scribe: Scribe, **fields: Any) -> bytes:
    plain = canonical.encode({"_type": "damfs.change/2", "more": "fields"}) + b"\nanything\n"
    change = Digest.of(plain)
    scribe.library.put(layout.change_key(SHOW, change), zstandard.compress(plain))
    return scribe.entry([put("unused")], change=change, **fields)


NEWER = [of_a_newer_entry, of_a_much_newer_entry, of_another_payload_type, of_a_newer_changeset]


@pytest.mark.parametrize("newer", NEWER, ids=lambda newer: newer.__name__)
def test_what_a_trusted_key_has_signed_in_a_newer_format_stalls_the_show(
    scribe: Scribe, newer: Callable[[Scribe], bytes]
) -> None:
    scribe.publish("a")
    with scribe.show() as show:
        for stored in (newer(scribe), b""):
            if stored:
                scribe.add(stored)
            else:
                scribe.publish("b")
            progress = show.follower.advance(thorough=True)
            assert progress.stalled is not None
            assert (progress.head, progress.stalled.seq, progress.stalled.kind) == (1, 2, "newer")
            assert "a newer damfs is needed" in progress.stalled.reason
            with pytest.raises(NewerFormat, match="nothing is published"):
                publish(show, scribe, put("c"))
        assert scribe.seq == 3
        assert show.log.read(4) is None
        assert names(show) == ["a"]


@pytest.mark.parametrize("newer", NEWER, ids=lambda newer: newer.__name__)
def test_a_newer_format_that_no_trusted_key_has_signed_is_invalid(scribe: Scribe, newer: Callable[..., bytes]) -> None:
    scribe.publish("a")
    scribe.add(newer(scribe, key=SigningKey.generate()))
    scribe.add(flipped(newer(scribe), 3000))
    scribe.publish("b")
    with scribe.show() as show:
        progress = show.follower.advance()
        assert (progress.head, progress.stalled) == (4, None)
        assert names(show) == ["a", "b"]


def test_an_older_or_senseless_number_is_invalid(scribe: Scribe) -> None:
    for kind in ("damfs.entry/0", "damfs.entry/02", "damfs.entry/", "damfs.change/2", "other/2", 2, None):
        scribe.add(signed(scribe, canonical.encode({"_type": kind})))
    scribe.publish("b")
    with scribe.show() as show:
        assert show.follower.advance().head == 8
        assert names(show) == ["b"]


def test_invalid_entries_before_a_newer_one_stay_pending(scribe: Scribe) -> None:
    scribe.publish("a")
    scribe.add(b"no entry")
    scribe.add(of_a_newer_entry(scribe))
    with scribe.show() as show:
        stall = show.follower.advance().stalled
        assert stall is not None
        assert (stall.seq, stall.kind, show.writer.head) == (3, "newer", 1)
        assert [pending.seq for pending in show.follower.pending] == [2]


def test_a_newer_entry_behind_a_gap_makes_it_a_gap(scribe: Scribe) -> None:
    scribe.publish("a")
    scribe.publish("b")
    scribe.add(of_a_newer_entry(scribe))
    scribe.lose(2)
    with scribe.show() as show:
        stall = show.follower.advance(thorough=True).stalled
        assert stall is not None
        assert (stall.seq, stall.kind) == (2, "unavailable")


def test_a_cache_that_hands_out_a_newer_entry_is_not_believed(scribe: Scribe) -> None:
    scribe.publish("a")
    elsewhere = of_a_newer_entry(scribe)
    with scribe.show(fetch=lambda seq, _timeout_s: elsewhere if seq == 1 else None) as show:
        assert show.follower.advance().head == 1
