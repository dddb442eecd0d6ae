"""`damfs bench`: what it chooses, what it tells, and that it leaves nothing behind; on a real mount."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from manifest.errors import ConfigurationError, Unavailable
from tests.daemon.test_documents import sections
from tests.harness import REPOSITORY, Mount, Studio, process_lives, studio, wait_until
from tests.tools.test_library import error_of
from tools.bench import scratch
from tools.bench.loops import LOOPS
from tools.bench.workers import Pass, Workers

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE_BYTES = 9 * 1024 * 1024 + 12345
FRAME_BYTES = 300_000
FRAMES = [f"plate.{number:04d}.exr" for number in range(1001, 1005)]
NAMES = 60
QUICK = ("--seconds", "0.01")


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """A show with one of each, on one mount for all tests."""
    with studio(tmp_path_factory.mktemp("bench") / "studio") as user:
        user.run("init", user.url, "--show", "apollo")
        source = user.folder / "source"
        (source / "plate").mkdir(parents=True)
        (source / "names").mkdir()
        (source / "movie.mov").write_bytes(os.urandom(FILE_BYTES))
        for name in FRAMES:
            (source / "plate" / name).write_bytes(os.urandom(FRAME_BYTES))
        for number in range(NAMES):
            (source / "names" / f"{number}.txt").write_bytes(b"text")
        user.run("publish", source, "apollo:comp/v001")
        yield user.mount("--cache", user.folder / "disk/cache")
        assert leftovers(user) == []


@pytest.fixture(scope="module")
def first(mount: Mount) -> dict[str, Any]:
    """What the first run told, before anything was cached."""
    return bench(mount, "--cold")


def leftovers(user: Studio) -> list[Path]:
    return list((user.folder / "disk").rglob(f"{scratch.PREFIX}*"))


def bench(mount: Mount, *options: str | Path) -> dict[str, Any]:
    told = mount.studio.json("bench", mount.path, *QUICK, *options)
    assert isinstance(told, dict)
    assert leftovers(mount.studio) == []
    return told


def test_everything_is_measured_and_every_field_is_documented(first: dict[str, Any], mount: Mount) -> None:
    documented = sections("BENCH.md")
    subjects = {*first["file"], *first["frames"], *first["names"]}
    assert set(first) | set(first["figures"][0]) | subjects == documented["JSON"]
    measured = {(figure["operation"], figure["state"]) for figure in first["figures"]}
    assert {name for name, _ in measured} | {state for _, state in measured} == documented["What is measured"]
    assert len(measured) == len(first["figures"]) == 6 + 6 + 2 + 3
    for figure in first["figures"]:
        assert len(figure["ratios"]) == 5
        assert min(figure["mount"], figure["native"], *figure["ratios"]) > 0
        assert figure["daemon_cpu_s"] >= 0
    assert first["binding"] == mount.status()["binding"]


def test_it_chooses_the_largest_file_the_sequence_and_the_fullest_folder(first: dict[str, Any], mount: Mount) -> None:
    folder = mount.path / "apollo/comp/v001"
    assert first["file"]["path"] == str(folder / "movie.mov")
    assert (first["file"]["size"], first["file"]["measured_bytes"]) == (FILE_BYTES, FILE_BYTES)
    assert (first["frames"]["path"], first["frames"]["count"]) == (str(folder / "plate"), len(FRAMES))
    assert first["names"] == {"path": str(folder / "names"), "count": NAMES, "files": NAMES}


def test_what_is_not_cached_is_fetched_first_and_told(first: dict[str, Any], mount: Mount) -> None:
    assert first["file"]["warming_s"] > 0
    assert first["frames"]["warming_s"] > 0
    folder = mount.path / "apollo/comp/v001"
    for path in (folder / "movie.mov", *(folder / "plate" / name for name in FRAMES)):
        assert os.getxattr(path, "user.damfs.cached") == b"100"
    again = bench(mount)
    assert (again["file"]["warming_s"], again["frames"]["warming_s"]) == (0, 0)


def test_people_read_a_table(first: dict[str, Any], mount: Mount) -> None:
    shown = mount.studio.run("bench", mount.path, *QUICK)
    assert "sequential reads of 1 MiB\tfirst\t" in shown
    assert "movie.mov 9.0 MiB, was cached\n" in shown


def test_it_takes_the_users_paths_and_size(mount: Mount) -> None:
    folder = mount.path / "apollo/comp/v001"
    told = bench(
        mount, "--file", "apollo/comp/v001/movie.mov", "--frames", folder / "plate", "--names", folder, "--size", "2MiB"
    )
    assert told["file"]["measured_bytes"] == 2 * 1024 * 1024
    assert told["names"]["count"] == 3


@pytest.mark.parametrize(
    ("options", "code", "word"),
    [
        (("--file", "/etc/passwd"), 2, "not in the mount"),
        (("--file", "apollo/nothing"), 4, "does not exist"),
        (("--file", "apollo/comp"), 2, "at least 1 MiB"),
        (("--frames", "apollo/comp/v001/names"), 2, "128 KiB"),
        (("--show", "gemini"), 4, "gemini"),
        (("--size", "20%"), 2, "2GiB"),
        (("--scratch", "/proc"), 2, "another file system"),
    ],
)
def test_what_cannot_be_measured_says_why(mount: Mount, options: tuple[str, ...], code: int, word: str) -> None:
    assert word in error_of(mount.studio, "bench", mount.path, *options, code=code)


def test_an_empty_library_has_nothing_to_measure_with(user: Studio) -> None:
    mount = user.mount()
    assert "publish a file" in error_of(user, "bench", mount.path, code=4)


def test_where_nothing_is_mounted_nothing_is_measured(user: Studio) -> None:
    error_of(user, "bench", user.folder, code=4)


def test_a_cache_that_is_too_small_is_told(user: Studio) -> None:
    source = user.folder / "movie.mov"
    source.write_bytes(os.urandom(FILE_BYTES))
    user.run("publish", source, "apollo:comp/v001")
    mount = user.mount("--cache-size", "4MB")
    assert "too small" in error_of(user, "bench", mount.path, code=6)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_leaves_no_copies_and_no_readers(mount: Mount, number: signal.Signals) -> None:
    running = mount.studio.start("bench", mount.path, "--seconds", "60")
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    wait_until(children.read_text, "a reader", 60)
    readers = [int(pid) for pid in children.read_text().split()]
    assert len(leftovers(mount.studio)) == 1
    running.send_signal(number)
    _, errors = running.communicate(timeout=30)
    assert (running.returncode, errors) == (130, "")
    # One that was just being started ends by itself, since nobody speaks to it any more.
    wait_until(lambda: not any(process_lives(pid) for pid in readers), "the readers to end")


def test_the_next_run_removes_what_a_killed_one_left(mount: Mount) -> None:
    running = mount.studio.start("bench", mount.path, "--seconds", "60")
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    wait_until(children.read_text, "a reader", 60)
    readers = [int(pid) for pid in children.read_text().split()]
    running.kill()
    running.communicate(timeout=30)
    wait_until(lambda: not any(process_lives(pid) for pid in readers), "the readers to end")
    (left,) = leftovers(mount.studio)
    long_ago = time.time() - 2 * scratch.LEFT_OVER_S
    os.utime(left, (long_ago, long_ago))
    bench(mount)
    assert leftovers(mount.studio) == []


def test_a_folder_in_use_is_no_leftover(tmp_path: Path) -> None:
    used = tmp_path / f"{scratch.PREFIX}used"
    used.mkdir()
    os.utime(used, (0, 0))
    descriptor = os.open(used, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with scratch.scratch_folder(tmp_path) as folder:
        assert {used, folder} == set(tmp_path.iterdir())
    os.close(descriptor)
    assert [used] == list(tmp_path.iterdir())


def test_without_room_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--size"):
        scratch.require_room(tmp_path, 2**60)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_who_may_not_write_beside_the_cache_is_told_what_to_do() -> None:
    code = "import os, sys; from pathlib import Path; from tools.bench import scratch; os.setuid(65534)\n"
    code += "try:\n print(scratch.place_for(Path(sys.argv[1]), None))\nexcept Exception as error:\n print(error)"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        cache = Path(folder) / "cache"
        cache.mkdir(mode=0o700)
        done = subprocess.run(
            [sys.executable, "-c", code, cache], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=60
        )
    assert f"uid 65534 may not write to {folder}" in done.stdout
    assert "--scratch" in done.stdout


# ---------------------------------------------------------------------------- the loops


def job(loop: str, path: Path, **more: Any) -> dict[str, Any]:
    return {
        "loop": loop, "path": str(path), "folder": str(path.parent), "names": [path.name], "drop": True, "offset": 0,
        "length": path.stat().st_size, "deadline_s": 60, **more,
    }  # fmt: skip


def run(*jobs: dict[str, Any]) -> Pass:
    with Workers() as workers:
        return workers.prepare(jobs).run()


PAGES = FILE_BYTES // 4096


@pytest.mark.parametrize(
    ("loop", "count", "size"),
    [
        ("sequential", 10, FILE_BYTES),
        ("random_reads", PAGES, PAGES * 4096),
        ("mmap_sequential", 10, FILE_BYTES),
        ("mmap_random", PAGES, PAGES * 4096),
        ("frames", 1, FILE_BYTES),
    ],
)
def test_a_loop_reads_all_of_a_file(tmp_path: Path, loop: str, count: int, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(FILE_BYTES))
    done = run(job(loop, path))
    assert (done.count, done.bytes) == (count, size)
    assert done.seconds > 0


def test_every_loop_ends_at_its_deadline(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(FILE_BYTES))
    for loop in LOOPS:
        assert run(job(loop, path, deadline_s=0)).count > 0


def test_readers_at_once_are_counted_together(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(4 * 1024 * 1024))
    halves = [job("sequential", path, offset=offset, length=2 * 1024 * 1024) for offset in (0, 2 * 1024 * 1024)]
    assert run(*halves).bytes == 4 * 1024 * 1024


@pytest.mark.parametrize(
    ("loop", "word"), [("sequential", "early"), ("random_reads", "early"), ("mmap_sequential", "SIGBUS")]
)
def test_a_file_that_shrinks_is_an_error_and_no_figure(tmp_path: Path, loop: str, word: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(FILE_BYTES))
    with Workers() as workers:
        prepared = workers.prepare([job(loop, path)])
        os.truncate(path, 4096)
        with pytest.raises(Unavailable, match=word):
            prepared.run()


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    wanted = {**job("sequential", REPOSITORY / "README.md"), "path": str(tmp_path / "gone")}
    with Workers() as workers, pytest.raises(Unavailable, match="gone: No such file"):
        workers.prepare([wanted])


def test_the_daemons_cpu_time_is_null_when_it_cannot_be_read() -> None:
    from tools.bench.figures import Figure, cpu_s

    assert cpu_s(2**30) is None
    figure = Figure("stat", "warm", "stats", [2.0, 4.0], [1.0, 1.0])
    figure.count_daemon(1.0, 5.0, 5.5)
    assert figure.daemon_cpu_share == 0.5
    figure.count_daemon(1.0, 5.0, None)
    assert figure.to_json()["daemon_cpu_share"] is None
    assert json.dumps(figure.to_json())
