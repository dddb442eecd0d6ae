"""Publishing: exactly once, whatever the store answers and whoever else publishes; and what is refused, and why."""

from __future__ import annotations

import os
import random
import secrets
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manifest import layout
from manifest.commit import Publish, commit
from manifest.digest import Digest
from manifest.errors import (
    AccessDenied,
    Conflict,
    FormatError,
    OutcomeUnknown,
    TransportError,
    TrustError,
    Unavailable,
)
from manifest.identity import write_identity
from manifest.library import Library
from manifest.post import Link
from manifest.trust import PinnedKeys, SigningKey
from tests.harness import drilled
from tests.manifest.logs import SHOW, FaultyLibrary, Scribe, file, names, put, remove

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from manifest.changeset import Op
    from manifest.show import Show
    from tests import stores

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def scribe(library: Library, tmp_path: Path) -> Scribe:
    return Scribe(library, tmp_path / "replicas")


@pytest.fixture
def on_disk(file_library: Library, tmp_path: Path) -> Scribe:
    return Scribe(file_library, tmp_path / "replicas")


def publish_of(ops: Sequence[Op], publish_id: str = "", author: str = "ann") -> Publish:
    return Publish(SHOW, publish_id or secrets.token_hex(16), author, "a message", "", ops)


def no_sleep(_seconds: float) -> None:
    pass


def run(show: Show, scribe: Scribe, publish: Publish, *, attempts: int = 64) -> int:
    return commit(show.follower, scribe.key, publish, attempts=attempts, deadline_s=30, sleep=no_sleep)


def log_of(scribe: Scribe) -> dict[int, bytes]:
    prefix = layout.log_prefix(SHOW)
    return {layout.seq_of(key): scribe.library.get(key) for key, _ in scribe.library.list(prefix)}


def places_of(scribe: Scribe, publish_id: str) -> list[int]:
    """The numbers of all entries in the store with this publish id."""
    entries = [scribe.trust.verify(stored)[0] for stored in log_of(scribe).values() if stored.startswith(b"{")]
    return sorted(entry.seq for entry in entries if entry.publish_id == publish_id)


def status(show: Show, seq: int) -> str | None:
    info = show.writer.revision(seq)
    return None if info is None else info.status


# The way it should be.


def test_a_publish_is_the_next_revision_and_applied_here(scribe: Scribe) -> None:
    with scribe.show() as show:
        assert run(show, scribe, publish_of([put("a")])) == 1
        assert run(show, scribe, publish_of([put("b"), put("c")])) == 2
        assert names(show) == ["a", "b", "c"]
        with scribe.show("another") as other:
            assert other.follower.advance().head == 2
            assert names(other) == ["a", "b", "c"]


def test_a_replica_that_is_behind_catches_up_first(scribe: Scribe) -> None:
    for number in range(5):
        scribe.publish(f"f{number}")
    with scribe.show() as show:
        assert run(show, scribe, publish_of([put("a")])) == 6


def test_the_same_publish_again_is_its_revision(scribe: Scribe) -> None:
    publish = publish_of([put("a")])
    with scribe.show() as show, scribe.show("another") as other:
        assert run(show, scribe, publish) == 1
        run(show, scribe, publish_of([put("b")]))
        assert run(show, scribe, publish) == 1
        assert run(other, scribe, publish) == 1
    assert sorted(log_of(scribe)) == [1, 2]


def test_the_same_id_with_another_change_is_a_conflict(on_disk: Scribe) -> None:
    with on_disk.show() as show:
        run(show, on_disk, publish_of([put("a")], "e" * 32))
        with pytest.raises(Conflict, match="is taken: ann"):
            run(show, on_disk, publish_of([put("b")], "e" * 32))
    assert sorted(log_of(on_disk)) == [1]


def test_the_changeset_is_durable_before_the_entry_is_there(on_disk: Scribe) -> None:
    seen: list[str] = []

    class Watched(FaultyLibrary):
        def put(self, key: str, data: bytes | bytearray | memoryview, *, timeout_s: float = 30.0) -> None:
            seen.append("put " + key.split("/")[2])
            self.inner.put(key, data, timeout_s=timeout_s)

        def create(self, key: str, data: bytes, *, timeout_s: float = 30.0) -> None:
            seen.append("create " + key.split("/")[2])
            self.inner.create(key, data, timeout_s=timeout_s)

        def sync(self) -> None:
            seen.append("sync")
            self.inner.sync()

    with on_disk.show(library=Watched(on_disk.library, lambda _key, true: true)) as show:
        run(show, on_disk, publish_of([put("a")]))
    assert seen[:2] == ["put changes", "sync"]
    assert seen[-1] == "create log"


def test_the_write_lock_is_free_during_the_upload_and_the_back_off(on_disk: Scribe) -> None:
    free: list[bool] = []

    def look() -> None:
        with show.follower.locked(time.monotonic() + 0.2):
            free.append(True)

    class Watched(FaultyLibrary):
        def put(self, key: str, data: bytes | bytearray | memoryview, *, timeout_s: float = 30.0) -> None:
            look()
            self.inner.put(key, data, timeout_s=timeout_s)

        def create(self, key: str, data: bytes, *, timeout_s: float = 30.0) -> None:
            if len(free) < 2:
                raise Unavailable("not now")
            self.inner.create(key, data, timeout_s=timeout_s)

    with on_disk.show(library=Watched(on_disk.library, lambda _key, true: true)) as show:
        commit(show.follower, on_disk.key, publish_of([put("a")]), sleep=lambda _: look())
    assert len(free) == 2


# What is refused.


def test_a_conflict_names_the_path_and_who_changed_it(scribe: Scribe) -> None:
    with scribe.show() as show, scribe.show("another") as other:
        run(show, scribe, publish_of([put("seq/a", file(b"1"))]))
        run(show, scribe, publish_of([put("seq/a", file(b"2"), over=file(b"1"))], author="bob"))
        run(show, scribe, publish_of([put("seq/b")], author="eve"))
        with pytest.raises(Conflict, match="last changed in revision 2 by bob") as caught:
            run(other, scribe, publish_of([put("seq/a", file(b"3"), over=file(b"1"))]))
        assert caught.value.path == "seq/a"
    assert sorted(log_of(scribe)) == [1, 2, 3]


def test_a_conflict_over_what_was_removed_says_who_did(on_disk: Scribe) -> None:
    with on_disk.show() as show:
        run(show, on_disk, publish_of([put("seq/a"), put("seq/b")]))
        run(show, on_disk, publish_of([remove("seq/a", file(b"seq/a"))], author="bob"))
        run(show, on_disk, publish_of([put("c")], author="eve"))
        with pytest.raises(Conflict, match="last changed in revision 2 by bob") as caught:
            run(show, on_disk, publish_of([remove("seq/a", file(b"seq/a"))]))
        assert caught.value.path == "seq/a"


def test_a_conflict_over_a_version_says_who_made_it(on_disk: Scribe) -> None:
    with on_disk.show() as show:
        run(show, on_disk, publish_of([put("plate/v001/a")], author="bob"))
        run(show, on_disk, publish_of([put("plate/latest", Link("v001"))], author="eve"))
        with pytest.raises(Conflict, match="last changed in revision 1 by bob"):
            run(show, on_disk, publish_of([put("plate/v001/b")]))


def test_a_rebase_over_other_paths_succeeds(on_disk: Scribe) -> None:
    with on_disk.show() as show:
        meanwhile = iter(range(3))

        class Busy(FaultyLibrary):
            def create(self, key: str, data: bytes, *, timeout_s: float = 30.0) -> None:
                if (number := next(meanwhile, None)) is not None:
                    run(show, on_disk, publish_of([put(f"theirs{number}")], author="bob"))
                self.inner.create(key, data, timeout_s=timeout_s)

        with on_disk.show("ours", library=Busy(on_disk.library, lambda _key, true: true)) as ours:
            assert run(ours, on_disk, publish_of([put("ours")])) == 4
            assert names(ours) == ["ours", "theirs0", "theirs1", "theirs2"]


def test_a_rebase_that_meets_the_same_path_is_a_conflict(on_disk: Scribe) -> None:
    with on_disk.show() as show:

        class Busy(FaultyLibrary):
            def create(self, key: str, data: bytes, *, timeout_s: float = 30.0) -> None:
                run(show, on_disk, publish_of([put("same", file(b"theirs"))], author="bob"))
                self.inner.create(key, data, timeout_s=timeout_s)

        with (
            on_disk.show("ours", library=Busy(on_disk.library, lambda _key, true: true)) as ours,
            pytest.raises(Conflict, match="revision 1 by bob"),
        ):
            run(ours, on_disk, publish_of([put("same")]))


@pytest.mark.parametrize("path", ["../evil", "/evil", "", "a\0b", "x" * 300, "a//b", "./a"])
def test_a_hostile_path_is_refused_before_anything_is_sent(on_disk: Scribe, path: str) -> None:
    with on_disk.show() as show, pytest.raises(FormatError):
        run(show, on_disk, publish_of([put(path)]))
    assert not [key for key, _ in on_disk.library.list(f"shows/{SHOW}/") if not key.endswith("show.json")]


def test_a_key_that_our_own_readers_do_not_trust_publishes_nothing(on_disk: Scribe) -> None:
    with on_disk.show() as show, pytest.raises(TrustError):
        commit(show.follower, SigningKey.generate(), publish_of([put("a")]))
    assert not log_of(on_disk)


def test_nothing_is_published_behind_a_gap(scribe: Scribe) -> None:
    for name in ("a", "b", "c"):
        scribe.publish(name)
    second, third = scribe.lose(2), scribe.lose(3)
    with scribe.show() as show:
        # The gap comes when the log was listed just now.
        assert show.follower.advance().head == 1
        scribe.overwrite(3, third)
        with pytest.raises(Unavailable, match="log entry 2 is missing"):
            run(show, scribe, publish_of([put("d")]))
        assert sorted(log_of(scribe)) == [1, 3]
        scribe.overwrite(2, second)
        assert run(show, scribe, publish_of([put("d")])) == 4


def test_nothing_is_published_while_a_changeset_is_missing(on_disk: Scribe) -> None:
    on_disk.publish("a")
    entry, _ = on_disk.trust.verify(on_disk.stored(1))
    on_disk.library.delete(layout.change_key(SHOW, entry.change))
    with on_disk.show() as show, pytest.raises(Unavailable, match="changeset"):
        run(show, on_disk, publish_of([put("d")]))


def test_nothing_is_published_on_a_rewritten_log(on_disk: Scribe) -> None:
    on_disk.publish("a")
    with on_disk.show() as show:
        show.follower.advance()
        on_disk.overwrite(1, b"junk")
        with pytest.raises(Unavailable):
            run(show, on_disk, publish_of([put("b")]), attempts=3)
        on_disk.prev = Digest.of(b"junk")
        on_disk.publish("c")
        with pytest.raises(TrustError, match="rewritten"):
            run(show, on_disk, publish_of([put("b")]))
    assert sorted(log_of(on_disk)) == [1, 2]


@pytest.mark.parametrize("bad", [[b"junk"], [b"", b"junk", b"{}"]], ids=["one", "three"])
def test_a_publish_chains_to_bad_entries_and_so_settles_them(scribe: Scribe, bad: list[bytes]) -> None:
    scribe.publish("a")
    for stored in bad:
        scribe.add(stored)
    with scribe.show() as show:
        assert run(show, scribe, publish_of([put("b")])) == len(bad) + 2
        assert names(show) == ["a", "b"]
        assert status(show, 2) == "noop"


def test_an_entry_of_ours_that_breaks_a_rule_is_said_to_be_a_no_op(on_disk: Scribe) -> None:
    publish = publish_of([put("a", file(b"other"))], "f" * 32)
    on_disk.publish("a")
    # A publisher that did not check: our entry lies in the log, and no reader applies it.
    on_disk.add(on_disk.entry(publish.ops, publish_id=publish.publish_id))
    with on_disk.show() as show:
        with pytest.raises(Conflict, match="log entry 2 holds this publish but breaks a rule"):
            run(show, on_disk, publish)
        run(show, on_disk, publish_of([put("b")]))
        with pytest.raises(Conflict):
            run(show, on_disk, publish)
    assert places_of(on_disk, publish.publish_id) == [2]


# The answers of a store.


class Liar(FaultyLibrary):
    """A library whose creates and reads of log entries meet the faults of a schedule, in turn.

    Creates: ``409`` nothing is written, and it says so wrongly; ``409 ours`` written, and it says it was there;
    ``before`` a time-out, nothing written; ``after`` a time-out, written; ``late`` a time-out, and it is written when
    the next request comes; ``denied``; ``fine``. Reads: ``down``, ``fine``.
    """

    def __init__(self, inner: Library, creates: list[str], reads: list[str]) -> None:
        super().__init__(inner, self._read_fault)
        self.create_faults = list(creates)
        self.read_faults = list(reads)
        self.late: tuple[str, bytes] | None = None

    def create(self, key: str, data: bytes, *, timeout_s: float = 30.0) -> None:
        self.arrive()
        fault = self.create_faults.pop(0) if self.create_faults else "fine"
        if fault in ("fine", "after", "409 ours"):
            self.inner.create(key, data, timeout_s=timeout_s)
        if fault == "late":
            self.late = (key, data)
        if fault == "denied":
            raise AccessDenied("403")
        if fault.startswith("409"):
            raise Conflict("409")
        if fault != "fine":
            raise Unavailable("no answer in time" if fault != "500" else "the store answered 500")

    def arrive(self) -> None:
        """What was on its way arrives now, and loses when something lies there."""
        if self.late is not None:
            with suppress(Conflict):
                self.inner.create(*self.late)
            self.late = None

    def _read_fault(self, key: str, true: bytes | None) -> bytes | None:
        if "/log/" in key:
            fault = self.read_faults.pop(0) if self.read_faults else "fine"
            if fault == "down":
                raise Unavailable("the store answered 503")
        return true


@pytest.mark.parametrize("fault", ["409", "409 ours", "before", "after", "500", "late"])
def test_a_lying_answer_to_the_create_changes_nothing(scribe: Scribe, fault: str) -> None:
    liar = Liar(scribe.library, [fault], [])
    publish = publish_of([put("a")])
    with scribe.show(library=liar) as show:
        assert run(show, scribe, publish) == 1
    liar.arrive()
    assert places_of(scribe, publish.publish_id) == [1]


def test_a_store_that_always_answers_409_leaves_the_outcome_unknown(on_disk: Scribe) -> None:
    publish = publish_of([put("a")])
    with on_disk.show(library=Liar(on_disk.library, ["409"] * 100, [])) as show, pytest.raises(OutcomeUnknown):
        run(show, on_disk, publish)
    with on_disk.show() as show:
        assert run(show, on_disk, publish) == 1


def test_a_write_that_cannot_be_read_back_is_unknown_and_found_by_the_next_run(on_disk: Scribe) -> None:
    publish = publish_of([put("a")])
    liar = Liar(on_disk.library, ["after"], [])

    class Silent(Liar):
        def list(self, prefix: str, *, after: str | None = None, timeout_s: float = 30.0) -> Iterator[tuple[str, int]]:
            if not self.create_faults:
                raise Unavailable("down")
            return self.inner.list(prefix, after=after, timeout_s=timeout_s)

        def _read_fault(self, _key: str, true: bytes | None) -> bytes | None:
            if not self.create_faults:
                raise Unavailable("down")
            return true

    liar = Silent(on_disk.library, ["after"], [])
    with on_disk.show(library=liar) as show, pytest.raises(OutcomeUnknown, match="publish the same again"):
        run(show, on_disk, publish)
    with on_disk.show() as show:
        assert run(show, on_disk, publish) == 1
    assert places_of(on_disk, publish.publish_id) == [1]


def test_a_library_that_is_down_all_the_time_has_certainly_published_nothing(on_disk: Scribe) -> None:
    class Down(FaultyLibrary):
        def put(self, *_: object, **__: object) -> None:
            raise Unavailable("down")

    with (
        on_disk.show(library=Down(on_disk.library, lambda _key, true: true)) as show,
        pytest.raises(Unavailable) as caught,
    ):
        run(show, on_disk, publish_of([put("a")]))
    assert not isinstance(caught.value, OutcomeUnknown)


def test_credentials_that_may_not_publish_are_said_to_be_that(on_disk: Scribe) -> None:
    with on_disk.show(library=Liar(on_disk.library, ["denied"] * 9, [])) as show, pytest.raises(AccessDenied):
        run(show, on_disk, publish_of([put("a")]))
    assert not log_of(on_disk)


@pytest.mark.drill
@settings(max_examples=drilled(40, 2000), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    creates=st.lists(
        st.sampled_from(["409", "409 ours", "before", "after", "500", "late", "denied", "fine"]), max_size=12
    ),
    reads=st.lists(st.sampled_from(["down", "fine", "fine"]), max_size=40),
    rivals=st.sets(st.integers(0, 8), max_size=4),
    attempts=st.integers(1, 12),
)
@pytest.mark.timeout(300)
def test_whatever_the_store_answers_a_publish_happens_once_and_is_reported_truly(
    tmp_path_factory: pytest.TempPathFactory, creates: list[str], reads: list[str], rivals: set[int], attempts: int
) -> None:
    root = tmp_path_factory.mktemp("studio")
    (root / "library").mkdir()
    library = Library.open((root / "library").as_uri())
    write_identity(library)
    scribe = Scribe(library, root / "replicas")
    publish = publish_of([put("ours")])
    turn = iter(range(1000))

    class Contended(Liar):
        def create(self, key: str, data: bytes, *, timeout_s: float = 30.0) -> None:
            number = next(turn)
            if number in rivals:
                run(rival, scribe, publish_of([put(f"rival{number}")]))
            super().create(key, data, timeout_s=timeout_s)

    liar = Contended(library, creates, reads)
    with scribe.show("rival") as rival, scribe.show("ours", library=liar) as ours:
        try:
            revision: int | None = run(ours, scribe, publish, attempts=attempts)
            said = "done"
        except OutcomeUnknown:
            revision, said = None, "unknown"
        except (TransportError, Conflict):
            revision, said = None, "failed"
        liar.arrive()
        if said == "failed":
            assert not places_of(scribe, publish.publish_id)
        again = run(rival, scribe, publish)
        assert revision in (None, again)
        assert places_of(scribe, publish.publish_id) == [again]
        assert status(rival, again) == "applied"


# Many publishers.


class Publishers:
    """Processes of ``tests.manifest.publisher`` and what they said."""

    def __init__(self, scribe: Scribe, folder: Path, environment: dict[str, str]) -> None:
        folder.mkdir()
        self.scribe = scribe
        self.folder = folder
        self.environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
        scribe.key.save(folder / "key")
        assert isinstance(scribe.trust, PinnedKeys)
        (folder / "trust").write_bytes(scribe.trust.to_bytes())

    def start(self, name: str, replicas: str, *what: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.manifest.publisher", self.scribe.library.url, str(self.folder / replicas),
             str(self.folder / "key"), str(self.folder / "trust"), name, *what],
            env=self.environment, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip


@pytest.mark.drill
@pytest.mark.timeout(240)
@pytest.mark.parametrize("library", ["file", "s3"], indirect=True)
def test_of_eight_processes_some_killed_each_reported_publish_is_in_the_log_once(
    scribe: Scribe, tmp_path: Path, s3_server: stores.Server
) -> None:
    count = 5
    publishers = Publishers(scribe, tmp_path / "publishers", {"AWS_ENDPOINT_URL_S3": s3_server.endpoint})
    chance = random.Random()
    # Half of them share a replica and its lock, as the publishers of one machine do.
    processes = [
        publishers.start(f"p{number}", "shared" if number % 2 else f"own{number}", str(count)) for number in range(8)
    ]
    try:
        victims = processes[:4]
        said: list[str] = [""] * len(processes)
        last = {victim: chance.randint(1, 2 * count - 2) for victim in victims}
        readers = [
            threading.Thread(target=_read, args=(process, said, at, last.get(process)))
            for at, process in enumerate(processes)
        ]
        for thread in readers:
            thread.start()
        for thread in readers:
            thread.join()
        endings = [process.wait(120) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert all(ending == 0 for ending in endings[4:]), said
    assert -9 in endings[:4]
    lines = [line.split() for text in said for line in text.splitlines()]
    done = {publish_id: int(revision) for word, publish_id, revision in lines if word == "done"}
    begun = {publish_id: path for word, publish_id, path in lines if word == "begin"}
    assert len(done) >= 4 * count
    with scribe.show() as show:
        progress = show.follower.advance(thorough=True)
        assert progress.stalled is None
        assert progress.complete
        entries = {seq: scribe.trust.verify(stored)[0] for seq, stored in log_of(scribe).items()}
        for publish_id, revision in done.items():
            assert [seq for seq, entry in entries.items() if entry.publish_id == publish_id] == [revision]
            assert status(show, revision) == "applied"
        # Who does not know what became of a publish runs it again, and then it is there once.
        for publish_id in begun.keys() - done.keys():
            publish = publish_of([put(begun[publish_id])], publish_id)
            revision = run(show, scribe, publish)
            assert places_of(scribe, publish_id) == [revision]
        assert names(show) == sorted(begun.values())


def _read(process: subprocess.Popen[str], said: list[str], at: int, last: int | None) -> None:
    """Take up what it says. Behind its ``last`` line, so in the middle of its work, it is ended with -9."""
    assert process.stdout is not None
    assert process.stderr is not None
    for number, line in enumerate(process.stdout, 1):
        said[at] += line
        if number == last:
            time.sleep(random.random() * 0.02)
            process.kill()
    if process.wait() > 0:
        said[at] += process.stderr.read()
    process.stdout.close()
    process.stderr.close()


def test_threads_of_one_process_publish_one_after_the_other(on_disk: Scribe) -> None:
    with on_disk.show() as show:
        revisions: list[int] = []

        def publish(number: int) -> None:
            revisions.append(commit(show.follower, on_disk.key, publish_of([put(f"f{number}")])))

        threads = [threading.Thread(target=publish, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(revisions) == list(range(1, 9))
