"""A show on a machine: its replica is made without the network, and has one writer at a time."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from manifest.errors import Busy, ConfigurationError, FormatError
from manifest.library import Library
from manifest.show import Show, WriteLock
from manifest.trust import PinnedKeys, SigningKey
from tests.manifest.logs import SHOW, Scribe, names

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).resolve().parent.parent.parent
HOLDER = """
import sys, time
from pathlib import Path
from manifest.show import WriteLock
with WriteLock(Path(sys.argv[1]), "the replica").held():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def on_disk(file_library: Library, tmp_path: Path) -> Scribe:
    return Scribe(file_library, tmp_path / "replicas")


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock ``tmp_path``/lock."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_replica_lies_below_its_librarys_id(on_disk: Scribe) -> None:
    with on_disk.show() as show:
        assert show.path == on_disk.folder / "replica" / on_disk.identity.id / f"{SHOW}.db"
        assert show.path.exists()
        assert show.path.with_suffix(".lock").exists()
        assert show.path.parent.stat().st_mode & 0o777 == 0o700


def test_a_show_opens_while_its_library_is_away_and_has_what_it_had(on_disk: Scribe) -> None:
    on_disk.publish("a")
    with on_disk.show() as show:
        show.follower.advance()
    shutil.rmtree(on_disk.library.url.removeprefix("file://"))
    with on_disk.show() as show:
        progress = show.follower.advance()
        assert (progress.head, progress.reachable) == (1, False)
        assert names(show) == ["a"]


def test_a_reader_lives_beside_the_writer_and_sees_what_it_commits(on_disk: Scribe) -> None:
    with on_disk.show() as show:
        reader = show.reader()
        try:
            assert reader.head == 0
            on_disk.publish("a")
            show.follower.advance()
            assert reader.head == 1
            assert reader.resolve("a", 1) is not None
        finally:
            reader.close()


def test_a_replica_made_under_another_trust_is_made_anew(on_disk: Scribe, caplog: pytest.LogCaptureFixture) -> None:
    on_disk.publish("a")
    with on_disk.show() as show:
        show.follower.advance()
    ours = on_disk.trust
    on_disk.trust = PinnedKeys(on_disk.identity.id, [SigningKey.generate().public])
    with on_disk.show() as show:
        progress = show.follower.advance()
        assert progress.head == 0
        assert progress.stalled is not None
        assert progress.stalled.kind == "invalid"
    on_disk.trust = ours
    with on_disk.show() as show:
        assert show.follower.advance().head == 1
    assert "made under another trust" in caplog.text


def test_a_replica_that_was_replaced_while_it_is_open_is_not_written(on_disk: Scribe) -> None:
    on_disk.publish("a")
    with on_disk.show() as old:
        old.follower.advance()
        on_disk.trust = PinnedKeys(on_disk.identity.id, [on_disk.key.public, SigningKey.generate().public])
        with on_disk.show() as new:
            on_disk.publish("b")
            with pytest.raises(ConfigurationError, match="not the file it was"):
                old.follower.advance()
            assert new.follower.advance().head == 2


def test_a_show_by_no_show_name_is_refused(on_disk: Scribe) -> None:
    with pytest.raises(FormatError):
        Show.open(on_disk.library, on_disk.identity, on_disk.trust, "../apollo", on_disk.folder)


def test_a_folder_that_cannot_be_made_is_a_configuration_error(on_disk: Scribe, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be made"):
        Show.open(on_disk.library, on_disk.identity, on_disk.trust, SHOW, tmp_path / "file")


# The lock.


@pytest.mark.alone
def test_a_second_process_waits_no_longer_than_its_deadline_and_names_the_holder(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    lock = WriteLock(tmp_path / "lock", "the replica")
    begun = time.monotonic()
    with pytest.raises(Busy, match=f"by process {holder.pid}"), lock.held(begun + 0.3):
        pass
    assert time.monotonic() - begun < 5
    lock.close()


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    lock = WriteLock(tmp_path / "lock", "the replica")
    holder.send_signal(signal.SIGKILL)
    with lock.held(time.monotonic() + 10):
        pass
    lock.close()


def test_threads_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    lock = WriteLock(tmp_path / "lock", "the replica")
    held = threading.Event()
    done = threading.Event()

    def hold() -> None:
        with lock.held():
            held.set()
            done.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    with pytest.raises(Busy, match="this process"), lock.held(time.monotonic() + 0.1):
        pass
    done.set()
    with lock.held(time.monotonic() + 10):
        pass
    thread.join()
    lock.close()


def test_two_open_shows_on_one_replica_take_turns(on_disk: Scribe) -> None:
    with on_disk.show() as one, on_disk.show() as two:
        for number in range(6):
            on_disk.publish(f"f{number}")
            show = (one, two)[number % 2]
            assert show.follower.advance().head == number + 1
        assert names(one) == names(two)


def test_advance_reports_a_busy_replica(on_disk: Scribe) -> None:
    with on_disk.show() as one, on_disk.show() as two, one.follower.locked(), pytest.raises(Busy):
        two.follower.advance(deadline=time.monotonic() + 0.1)
