"""Files in, chunks up: every byte once, in bounded memory, and the first error ends it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from manifest import layout
from manifest.digest import EMPTY_DIGEST, Digest
from manifest.errors import AccessDenied, SourceChanged, Unavailable
from manifest.library import Library
from tools.publish.blocks import BLOCK_BYTES_MAX, BLOCKS_MAX, MIB, Blocks, Stopped
from tools.publish.chunk import HEADER_BYTES
from tools.publish.pipeline import Finished, Pipeline
from tools.publish.upload import Uploader
from tools.publish.walk import SourceFile, walk

if TYPE_CHECKING:
    from collections.abc import Callable

SHOW = "apollo"


def noise(count: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(count)


class Counter:
    """Counts what a run says is done."""

    def __init__(self) -> None:
        self.done = 0
        self.lock = threading.Lock()

    def advance(self, count: int = 1) -> None:
        with self.lock:
            self.done += count


def files(folder: Path) -> list[SourceFile]:
    return [item for item in walk([folder], "p") if isinstance(item, SourceFile)]


def run(library: Library, folder: Path, uploader: Uploader | None = None, **sizes: int) -> dict[str, Finished]:
    uploader = uploader or Uploader(library, SHOW, deadline_s=5)
    return {done.item.path: done for done in Pipeline(uploader, Counter(), **sizes).run(files(folder))}


def stored(library: Library, finished: Finished) -> bytes:
    assert finished.recipe is not None
    recipe = finished.recipe
    return b"".join(library.get(layout.chunk_key(SHOW, recipe[index].digest)) for index in range(len(recipe)))


def test_what_was_uploaded_is_what_was_read_whatever_the_size(library: Library, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    sizes = [0, 1, 65536, MIB, MIB + 1, 5 * MIB + 3, BLOCK_BYTES_MAX, BLOCK_BYTES_MAX + 17, 3 * BLOCK_BYTES_MAX + 5]
    for size in sizes:
        (source / f"{size}.mov").write_bytes(noise(size, size))
    found = run(library, source)
    assert len(found) == len(sizes)
    for size in sizes:
        finished = found[f"p/{size}.mov"]
        assert finished.recipe is not None
        assert stored(library, finished) == noise(size, size)
        assert finished.digest == Digest.of(noise(size, size))
        assert finished.recipe.size == finished.fingerprint.size == size
        if size > MIB:
            assert finished.recipe[0].length == HEADER_BYTES
    assert found["p/0.mov"].digest == EMPTY_DIGEST


def test_a_file_for_random_reads_is_cut_small(file_library: Library, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/cache.vdb").write_bytes(noise(8 * MIB))
    finished = run(file_library, tmp_path / "source")["p/cache.vdb"]
    assert finished.recipe is not None
    assert len(finished.recipe) > 16
    assert max(finished.recipe[i].length for i in range(len(finished.recipe))) <= MIB
    assert stored(file_library, finished) == noise(8 * MIB)


def test_equal_files_are_uploaded_once(file_library: Library, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for number in range(20):
        (tmp_path / f"source/{number}.dpx").write_bytes(noise(3 * MIB))
    uploader = Uploader(file_library, SHOW)
    assert len(run(file_library, tmp_path / "source", uploader)) == 20
    assert uploader.counts.size_bytes == 3 * MIB
    assert uploader.counts.present_bytes == 19 * 3 * MIB


def test_a_chunk_that_is_there_with_another_size_is_put_again(file_library: Library, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    data = noise(1000)
    (tmp_path / "source/a").write_bytes(data)
    key = layout.chunk_key(SHOW, Digest.of(data))
    file_library.put(key, data[:500])
    run(file_library, tmp_path / "source")
    assert file_library.get(key) == data


def test_what_only_a_comparison_needs_is_hashed_and_not_uploaded(file_library: Library, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/a").write_bytes(noise(40 * MIB))
    counter = Counter()
    (finished,) = Pipeline(None, counter).run(files(tmp_path / "source"))
    assert finished.digest == Digest.of(noise(40 * MIB))
    assert finished.recipe is None
    assert counter.done == 40 * MIB
    assert not list(file_library.list("shows/"))


class Faulty(Library):
    """A real library that fails as it is told: ``fault`` is called before each put."""

    fault: Callable[[str], None]

    def put(self, key: str, data: bytes | bytearray | memoryview, *, timeout_s: float = 30.0) -> None:
        self.fault(key)
        super().put(key, data, timeout_s=timeout_s)


def faulty(library: Library, fault: Callable[[str], None]) -> Faulty:
    made = Faulty.open(library.url)
    assert isinstance(made, Faulty)
    made.fault = fault
    return made


def test_an_upload_that_fails_for_a_while_is_tried_again(file_library: Library, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for number in range(8):
        (tmp_path / f"source/{number}").write_bytes(noise(100_000, number))
    failed: set[str] = set()

    def fail_first(key: str) -> None:
        if key not in failed:
            failed.add(key)
            raise Unavailable("not now")

    found = run(faulty(file_library, fail_first), tmp_path / "source")
    assert len(failed) == 8
    for number in range(8):
        assert stored(file_library, found[f"p/{number}"]) == noise(100_000, number)


def test_an_upload_that_is_denied_ends_the_run_at_once(file_library: Library, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for number in range(50):
        (tmp_path / f"source/{number}").write_bytes(noise(2 * MIB, number))

    def deny(_key: str) -> None:
        raise AccessDenied("no")

    started = time.monotonic()
    threads = threading.active_count()
    with pytest.raises(AccessDenied):
        run(faulty(file_library, deny), tmp_path / "source")
    assert time.monotonic() - started < 10
    assert threading.active_count() == threads


def test_a_store_that_stays_away_ends_the_run_at_its_deadline(file_library: Library, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/a").write_bytes(b"1")

    def away(_key: str) -> None:
        raise Unavailable("away")

    broken = faulty(file_library, away)
    with pytest.raises(Unavailable):
        run(broken, tmp_path / "source", Uploader(broken, SHOW, deadline_s=0.5))


def test_a_source_that_is_being_written_ends_the_run(file_library: Library, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for number in range(10):
        (tmp_path / f"source/{number}").write_bytes(noise(100_000, number))
    with (tmp_path / "source/7").open("r+b"), pytest.raises(SourceChanged, match="source/7 is open for writing"):
        run(file_library, tmp_path / "source")


def test_a_block_that_a_failed_request_may_still_read_is_not_used_again() -> None:
    blocks = Blocks(64 * MIB)
    spoilt = blocks.get(MIB)
    buffer = spoilt.buffer
    spoilt.spoil()
    spoilt.release()
    assert blocks.get(MIB).buffer is not buffer


def test_a_released_block_is_used_again_and_the_budget_is_kept() -> None:
    blocks = Blocks(64 * MIB)
    first, second = blocks.get(30 * MIB), blocks.get(30 * MIB)
    first.hold()
    first.release()
    got: list[object] = []
    waiter = threading.Thread(target=lambda: got.append(blocks.get(1).buffer))
    waiter.start()
    time.sleep(0.1)
    assert not got
    second.release()
    waiter.join(5)
    assert len(got) == 1
    first.release()
    assert blocks.get(BLOCK_BYTES_MAX).buffer in (first.buffer, second.buffer)


def test_small_files_are_not_read_ahead_by_the_thousand() -> None:
    blocks = Blocks(64 * MIB)
    out = [blocks.get(1) for _ in range(BLOCKS_MAX)]
    got: list[object] = []
    waiter = threading.Thread(target=lambda: got.append(blocks.get(1)))
    waiter.start()
    time.sleep(0.1)
    assert not got
    out[0].release()
    waiter.join(5)
    assert len(got) == 1


def test_those_who_wait_for_a_block_are_told_to_stop() -> None:
    blocks = Blocks(BLOCK_BYTES_MAX)
    blocks.get(BLOCK_BYTES_MAX)
    stopped: list[bool] = []

    def wait() -> None:
        try:
            blocks.get(BLOCK_BYTES_MAX)
        except Stopped:
            stopped.append(True)

    waiters = [threading.Thread(target=wait) for _ in range(3)]
    for waiter in waiters:
        waiter.start()
    blocks.stop()
    for waiter in waiters:
        waiter.join(5)
    assert len(stopped) == 3


def test_memory_stays_within_the_budget_however_large_the_file(file_library: Library, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with (tmp_path / "source/long.mov").open("wb") as file:
        for number in range(40):
            file.write(noise(16 * MIB, number))
    script = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from tests.tools.test_publish_pipeline import run\nfrom manifest.library import Library\n"
        "library = Library.open(sys.argv[1])\n"
        "run(library, Path(sys.argv[2]) / 'nothing')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "run(library, Path(sys.argv[2]) / 'source')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    (tmp_path / "nothing/").mkdir()
    (tmp_path / "nothing/a").write_bytes(b"1")
    done = subprocess.run(
        [sys.executable, "-c", script, file_library.url, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=55,
        check=True,
    )
    assert int(done.stdout) < 300 * 1024  # KiB


def test_an_upload_keeps_to_its_bandwidth(file_library: Library) -> None:
    uploader = Uploader(file_library, SHOW, rate=4 * MIB)
    begin = time.monotonic()
    for number in range(6):
        uploader.object(f"shows/{SHOW}/chunks/{number}", noise(MIB, number))
    assert time.monotonic() - begin >= 0.7  # half a second is saved up, and the last one begins when nothing is owed
    assert uploader.object(f"shows/{SHOW}/chunks/0", noise(MIB, 0)) is False


def test_an_upload_that_waits_for_the_bandwidth_can_be_ended(file_library: Library) -> None:
    uploader = Uploader(file_library, SHOW, rate=1)
    uploader.object(f"shows/{SHOW}/chunks/0", noise(MIB, 0))
    threading.Timer(0.2, uploader.stop).start()
    with pytest.raises(Unavailable):
        uploader.object(f"shows/{SHOW}/chunks/1", noise(MIB, 1))


def test_a_slow_bandwidth_is_no_reason_to_give_up_what_failed_once(file_library: Library) -> None:
    failures = [Unavailable("once")]

    def fault(_: str) -> None:
        if failures:
            raise failures.pop()

    uploader = Uploader(faulty(file_library, fault), SHOW, deadline_s=0.5, rate=2 * MIB)
    assert uploader.object(f"shows/{SHOW}/chunks/0", noise(2 * MIB, 0))
