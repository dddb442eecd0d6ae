"""A daemon is killed with -9, at any moment, and a successor takes its mount over: no application sees an error."""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import random
import select
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.harness import drilled, process_lives, wait_until
from tests.vfs import clients
from tests.vfs.mounted import Mounted, is_mounted, mounted
from tests.vfs.publisher import CHUNK_BYTES, Change, Folder, Link, Publisher
from vfs.kernel import wire

DATA = random.Random(5).randbytes(2 * CHUNK_BYTES + 4321)
OTHER = random.Random(6).randbytes(CHUNK_BYTES + 99)


@pytest.fixture
def mount(tmp_path: Path, by_kernel: str) -> Iterator[Mounted]:
    """A mount whose runner may be killed."""
    with mounted(tmp_path, flags=[by_kernel], keep=True, deadline_s=drilled(50, 7200)) as made:
        yield made
        assert made.stop() == 0
        assert not is_mounted(made.path)


def exists(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def open_lent(mount: Mounted, path: Path) -> int:
    """A descriptor of a file that the kernel reads by itself."""
    path.read_bytes()
    deadline = time.monotonic() + 10
    while True:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        before = mount.command(do="kernel")["lent"]
        if before:
            return fd
        os.close(fd)
        assert time.monotonic() < deadline, "the file is never lent"
        time.sleep(0.05)


def backing_ids(mount: Mounted) -> list[int]:
    """The backing ids that the kernel still has; they are closed by this."""
    assert mount.kept is not None
    device = mount.kept.descriptors["fuse"]
    with opened(Path(__file__)) as some:
        newest: int = fcntl.ioctl(device, wire.BACKING_OPEN, bytearray(wire.BACKING_MAP.pack(some, 0, 0)))
    found = []
    for one in range(1, newest + 1):
        try:
            fcntl.ioctl(device, wire.BACKING_CLOSE, struct.pack("I", one))
        except FileNotFoundError:
            continue
        found.append(one)
    assert found[-1:] == [newest], "ids are given in order"
    return found[:-1]


def nothing_is_open(mount: Mounted) -> None:
    """What was closed is known to be: a RELEASE comes some time after the close."""
    wait_until(lambda: mount.command(do="kernel")["inodes"] == 0, "all files to be closed")
    seen = mount.command(do="kernel")
    assert (seen["handles"], seen["lent"], seen["waiting"]) == (0, 0, 0)


def in_background(script: str, *args: str | Path) -> subprocess.Popen[str]:
    """A program whose calls may block; it has begun."""
    process = subprocess.Popen(
        ["/usr/bin/python3", "-I", "-c", f"print('begun', flush=True)\nimport os, sys\n{script}", *map(str, args)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def result(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    return out.strip()


def test_names_attributes_and_bytes_are_the_same(mount: Mounted) -> None:
    mount.publish({"d/a": DATA, "d/sub/b": b"1", "d/l": Link("a"), "d/empty": Folder(0o711)})
    root = mount.path / "apollo"
    names = ["", "d", "d/a", "d/sub", "d/sub/b", "d/l", "d/empty", "../apollo@1/d/a"]
    before = [(root / name).lstat() for name in names]
    mount.succeed()
    assert [(root / name).lstat() for name in names] == before
    assert sorted(os.listdir(root / "d")) == ["a", "empty", "l", "sub"]
    assert (root / "d/l").read_bytes() == DATA
    assert len(os.listxattr(root / "d/a")) > 2
    assert mount.command(do="kernel")["handover"]["count"] == 1


@pytest.mark.drill
def test_a_mount_changes_hands_many_times(mount: Mounted) -> None:
    """By a kill, or in an orderly way."""
    mount.publish({"d/a": DATA, "d/b": OTHER})
    lent = open_lent(mount, mount.path / "apollo/d/b")
    with opened(mount.path / "apollo/d/a") as fd, open(lent, "rb", buffering=0) as b:
        for count in range(1, drilled(5, 100)):
            mount.succeed(kill=count % 2 == 0)
            assert os.pread(fd, len(DATA), 0) == DATA
            assert os.pread(b.fileno(), len(OTHER), 0) == OTHER
            assert mount.command(do="kernel")["handover"]["count"] == count


def test_what_is_published_between_two_daemons_is_seen(mount: Mounted) -> None:
    mount.publish({"d/a": b"old", "d/gone": b"1", "d/l": Link("a"), "sub/x": b"1", "deep/er/f": b"1"})
    root = mount.path / "apollo"
    assert (root / "d/a").read_bytes() == b"old"
    assert os.readlink(root / "d/l") == "a"
    assert not exists(root / "d/new")
    for name in ("d", "sub", "deep/er"):
        os.listdir(root / name)
        (root / name).stat()
    mount.kill()
    mount.show().publish({"d/a": b"newer", "d/gone": None, "d/new": b"2", "d/l": Link("new")})
    mount.show().publish({"sub/x": None, "sub": None, "deep/er/f": b"22"})
    assert (root / "d/a").stat().st_size == 3, "the kernel answers by itself"
    mount.start()
    mount.advance()
    assert (root / "d/a").read_bytes() == b"newer"
    assert os.readlink(root / "d/l") == "new"
    assert [exists(root / name) for name in ("d/new", "d/gone", "sub", "sub/x")] == [True, False, False, False]
    assert sorted(os.listdir(root / "d")) == ["a", "l", "new"]
    assert (root / "deep/er/f").stat().st_size == 2
    assert (root / "deep/er").stat().st_mtime_ns == (mount.path / "apollo@3/deep/er").stat().st_mtime_ns


def test_notices_that_were_not_sent_are_sent_by_the_successor(mount: Mounted) -> None:
    mount.publish({"d/a": b"old", "d/gone": b"1", "d/l": Link("a")})
    root = mount.path / "apollo"
    assert (root / "d/a").stat().st_size == 3
    assert [exists(root / name) for name in ("d/new", "d/gone", "d/l")] == [False, True, True]
    mount.command(do="hold notices")
    mount.publish({"d/a": b"newer", "d/gone": None, "d/new": b"1", "d/l": Link("new")}, settle=False)
    assert (root / "d/a").stat().st_size == 3
    assert not exists(root / "d/new")
    mount.succeed()
    mount.advance()
    assert (root / "d/a").stat().st_size == 5
    assert [exists(root / name) for name in ("d/new", "d/gone", "d/l")] == [True, False, True]
    assert os.readlink(root / "d/l") == "new"


def test_a_daemon_that_dies_when_it_has_told_everything_does_not_tell_it_again(mount: Mounted) -> None:
    mount.publish({"d/a": b"old"})
    assert (mount.path / "apollo/d/a").stat().st_size == 3
    mount.command(do="die", point="told")
    mount.show().publish({"d/a": b"newer"})
    with pytest.raises(AssertionError, match="the runner is gone"):
        mount.advance()
    mount.succeed()
    assert (mount.path / "apollo/d/a").stat().st_size == 5


def test_a_listing_goes_on_at_its_revision(mount: Mounted) -> None:
    post = mount.show().post_of(b"1")
    names = [f"n{n:04d}" for n in range(3000)]
    mount.publish({f"d/{name}": post for name in names})
    with os.scandir(mount.path / "apollo/d") as listing, os.scandir(mount.path) as shows:
        seen = [next(listing).name for _ in range(5)]
        mount.kill()
        mount.show().publish({f"d/{name}": None for name in names[::2]} | {"d/zz": post})
        mount.start()
        mount.advance()
        seen += [next(listing).name for _ in range(1500)]
        mount.publish({"d/n0001": None})
        mount.succeed()
        seen += [entry.name for entry in listing]
        assert [entry.name for entry in shows] == ["apollo"]
    assert seen == names
    assert sorted(os.listdir(mount.path / "apollo/d")) == [*names[3::2], "zz"]


def test_a_file_that_the_kernel_reads_stays_readable_and_can_be_opened_again(mount: Mounted) -> None:
    mount.publish({"d/a": DATA, "d/same": DATA})
    path = mount.path / "apollo/d/a"
    fd = open_lent(mount, path)
    try:
        with mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
            mount.kill()
            assert os.pread(fd, len(DATA), 0) == DATA, "while there is no daemon"
            assert mapped[:] == DATA
            mount.start()
            wait_until(lambda: mount.command(do="kernel")["lent"] == 1, "the predecessor's id to be taken up")
            with opened(path) as again, opened(path.with_name("same")) as same:
                for one in (fd, again, same):
                    assert os.pread(one, len(DATA), 0) == DATA
                os.posix_fadvise(again, 0, 0, os.POSIX_FADV_WILLNEED)
                mount.succeed()
                assert os.pread(again, len(DATA), 0) == DATA
                with opened(path) as third:
                    assert os.pread(third, 100, 0) == DATA[:100]
    finally:
        os.close(fd)
    nothing_is_open(mount)
    assert backing_ids(mount) == []
    assert path.read_bytes() == DATA


def test_a_mapping_alone_keeps_the_way_of_reading(mount: Mounted) -> None:
    """Of a file that is closed, by either way, over a hand-over, while it is opened anew."""
    mount.publish({"d/a": DATA, "d/b": OTHER})
    lent = open_lent(mount, mount.path / "apollo/d/a")
    with opened(mount.path / "apollo/d/b") as fd, mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ) as cached:
        kernels = mmap.mmap(lent, 0, mmap.MAP_SHARED, mmap.PROT_READ)
        os.close(lent)
        mount.succeed()
        for _ in range(3):
            assert (mount.path / "apollo/d/a").read_bytes() == DATA
            assert (mount.path / "apollo/d/b").read_bytes() == OTHER
        assert (kernels[:], cached[:]) == (DATA, OTHER)
        kernels.close()
    nothing_is_open(mount)
    assert backing_ids(mount) == []


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "left"])
@pytest.mark.parametrize("way", [os.O_RDONLY, os.O_DIRECT], ids=["buffered", "direct"])
def test_a_read_in_flight_is_answered_by_the_successor(mount: Mounted, way: int, kill: bool) -> None:
    mount.publish({"d/a": DATA})
    mount.command(do="stall", show="apollo")
    script = """
import mmap
buffer = mmap.mmap(-1, 8192)
fd = os.open(sys.argv[1], int(sys.argv[2]))
count = os.preadv(fd, [buffer], 1 << 20)
print(count, buffer[:].hex())
"""
    reader = in_background(script, mount.path / "apollo/d/a", str(way))
    wait_until(lambda: mount.command(do="kernel")["waiting"], "the read to wait")
    mount.succeed(kill=kill)
    assert result(reader) == f"8192 {DATA[1 << 20 : (1 << 20) + 8192].hex()}"
    nothing_is_open(mount)


def test_a_reader_that_is_killed_while_there_is_no_daemon_goes_when_there_is_one(mount: Mounted) -> None:
    """It cannot go before; the source of the bytes that it waits for still answers nothing."""
    mount.publish({"d/a": DATA})
    mount.command(do="stall", show="apollo")
    script = """
import mmap
os.preadv(os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT), [mmap.mmap(-1, 8192)], 0)
"""
    readers = [in_background(script, mount.path / "apollo/d/a") for _ in range(2)]
    wait_until(lambda: mount.command(do="kernel")["waiting"] == 2, "the reads to wait")
    mount.kill()
    for reader in readers:
        reader.kill()
    mount.flags += ["stall=apollo", "deadline=30"]
    mount.start()
    started = time.monotonic()
    for reader in readers:
        reader.communicate(timeout=20)
    assert time.monotonic() - started < 3
    nothing_is_open(mount)


def test_an_open_in_flight_is_answered_by_the_successor(mount: Mounted) -> None:
    mount.publish({"d/a": DATA})
    mount.command(do="hold opens")
    script = "print(len(open(sys.argv[1], 'rb').read()))"
    readers = [in_background(script, mount.path / "apollo/d/a") for _ in range(3)]
    wait_until(lambda: mount.command(do="kernel")["waiting"] == 3, "the opens to wait")
    mount.succeed()
    assert [result(reader) for reader in readers] == [str(len(DATA))] * 3
    nothing_is_open(mount)


def test_a_look_up_in_flight_is_answered_by_the_successor(mount: Mounted) -> None:
    mount.publish({"d/a": DATA})
    mount.command(do="hold look-ups")
    looker = in_background("print(os.stat(sys.argv[1]).st_size)", mount.path / "apollo/d/a")
    time.sleep(0.2)
    mount.succeed()
    assert result(looker) == str(len(DATA))


KILLS = [("kernel", point) for point in ("lent", "opened", "replied", "released", "taken back")]
KILLS += [("us", point) for point in ("opened", "replied", "released")]


@pytest.mark.parametrize(("reader", "point"), KILLS)
def test_a_kill_at_any_step_of_an_open_or_a_close_is_not_seen(mount: Mounted, reader: str, point: str) -> None:
    """Of a file that the kernel reads, or that is read through us."""
    mount.publish({"d/a": DATA})
    path = mount.path / "apollo/d/a"
    if reader == "kernel":
        os.close(open_lent(mount, path))
        nothing_is_open(mount)
    mount.command(do="die", point=point)
    script = """
fd = os.open(sys.argv[1], os.O_RDONLY)
first = os.pread(fd, 10, 5)
os.close(fd)
print(first.hex())
"""
    process = in_background(script, path)
    wait_until(lambda: not process_lives(mount.pid), "the runner to die")
    mount.succeed()
    assert result(process) == DATA[5:15].hex()
    with opened(path) as fd:
        assert os.pread(fd, len(DATA), 0) == DATA
    nothing_is_open(mount)
    assert backing_ids(mount) == []
    assert path.read_bytes() == DATA


def test_a_notices_process_that_is_stuck_holds_nobody_up(mount: Mounted) -> None:
    """It is stopped with notices to write, its daemon is killed, a successor serves; then it goes on and ends."""
    mount.publish({"d/a": b"old"})
    assert (mount.path / "apollo/d/a").stat().st_size == 3
    writer = mount.command(do="kernel")["notices_pid"]
    os.kill(writer, signal.SIGSTOP)
    try:
        mount.publish({"d/a": b"newer"}, settle=False)
        started = time.monotonic()
        mount.succeed()
        mount.publish({"d/a": b"newest"})
        assert (mount.path / "apollo/d/a").read_bytes() == b"newest"
        assert time.monotonic() - started < 10
    finally:
        os.kill(writer, signal.SIGCONT)
    wait_until(lambda: not process_lives(writer), "the old notices process to end")
    assert (mount.path / "apollo/d/a").read_bytes() == b"newest"


def test_a_notice_that_waits_in_the_kernel_holds_nobody_up(mount: Mounted) -> None:
    """It waits for a look-up that the killed daemon had read: the successor answers that one, and the notice ends."""
    mount.publish({"d/a": b"old", "d/b": b"1"})
    assert (mount.path / "apollo/d/a").stat().st_size == 3
    writer = mount.command(do="kernel")["notices_pid"]
    mount.command(do="hold look-ups")
    looker = in_background("print(os.stat(sys.argv[1]).st_size)", mount.path / "apollo/d/b")
    time.sleep(0.2)
    mount.publish({"d/a": b"newer"}, settle=False)
    state = Path(f"/proc/{writer}/stat")
    wait_until(lambda: state.read_text().rpartition(")")[2].split()[0] == "D", "the notice to wait")
    started = time.monotonic()
    mount.succeed()
    assert result(looker) == "1"
    mount.advance()
    assert (mount.path / "apollo/d/a").read_bytes() == b"newer"
    assert time.monotonic() - started < 10
    wait_until(lambda: not process_lives(writer), "the old notices process to end")


def test_a_notices_process_that_is_killed_is_started_again_and_nothing_is_lost(mount: Mounted) -> None:
    mount.publish({"d/a": b"0", "d/b": b"0"})
    for size in range(2, 6):
        assert (mount.path / "apollo/d/a").stat().st_size == size - 1
        before = mount.command(do="kernel")["notices_pid"]
        os.kill(before, signal.SIGKILL)
        mount.publish({"d/a": b"x" * size})
        assert (mount.path / "apollo/d/a").stat().st_size == size
        assert mount.command(do="kernel")["notices_pid"] != before


def test_a_successor_that_dies_has_a_successor(mount: Mounted) -> None:
    mount.publish({"d/a": DATA})
    with opened(mount.path / "apollo/d/a") as fd:
        mount.command(do="stall", show="apollo")
        reader = in_background("print(len(open(sys.argv[1], 'rb').read()))", mount.path / "apollo/d/a")
        wait_until(lambda: mount.command(do="kernel")["waiting"], "the read to wait")
        mount.kill()
        for delay_s in (0.05, 0.2, 0.3, 0.4, 0.5, 0.7):
            mount.start(wait=False)
            time.sleep(delay_s)
            mount.kill()
        mount.start()
        assert result(reader) == str(len(DATA))
        assert os.pread(fd, len(DATA), 0) == DATA
    nothing_is_open(mount)


def test_a_successor_of_another_mount_is_refused_and_leaves_this_one_alone(mount: Mounted, tmp_path: Path) -> None:
    mount.publish({"d/a": DATA})
    mount.kill()
    assert mount.kept is not None
    kept = mount.kept.descriptors
    place = tmp_path / "elsewhere"
    place.mkdir()
    (tmp_path / "other-state").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.vfs.runner", place, mount.library.url, tmp_path / "other-state", "kernel",
         f"fuse={kept['fuse']}", f"journal={kept['journal']}"],
        pass_fds=[kept["fuse"], kept["journal"]], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        timeout=30,
    )  # fmt: skip
    assert done.returncode != 0
    assert f"the mount to take over is {mount.path}, not {place}" in done.stderr
    assert is_mounted(mount.path)
    mount.start()
    assert (mount.path / "apollo/d/a").read_bytes() == DATA


def test_after_a_successor_the_mount_ends_as_any_other(mount: Mounted) -> None:
    mount.publish({"d/a": DATA})
    mount.succeed()
    assert (mount.path / "apollo/d/a").read_bytes() == DATA
    assert mount.command(do="unmount") == {}
    assert not is_mounted(mount.path)
    assert mount.stop() == 0
    assert mount.kept is not None
    wait_until(lambda: mount.kept is None or set(mount.kept.descriptors) <= {"cache-lock"}, "the descriptors to go")
    mount.start()
    assert (mount.path / "apollo/d/a").read_bytes() == DATA


# -- at random moments


class Story:
    """What is published meanwhile: folders of files that say what they are."""

    def __init__(self, publisher: Publisher, seed: int) -> None:
        self.publisher = publisher
        self.chance = random.Random(seed)
        self.files: dict[str, tuple[int, int]] = {}
        self._posts: dict[tuple[int, int], Any] = {}

    def post(self) -> tuple[tuple[int, int], Any]:
        """One of a few contents: small ones, and ones that the kernel may read."""
        number = self.chance.randrange(12)
        key = number, [100, 5000, 70_000, 300_000, CHUNK_BYTES + 1, 2_345_678][number % 6]
        if key not in self._posts:
            self._posts[key] = self.publisher.post_of(clients.content(*key))
        return key, self._posts[key]

    def change(self, count: int) -> dict[str, Change]:
        changes: dict[str, Change] = {}
        while len(changes) < count:
            name = f"d{self.chance.randrange(3)}/f{self.chance.randrange(20):02d}"
            if name in self.files and name not in changes and self.chance.random() < 0.3 and len(self.files) > 30:
                changes[name] = None
                del self.files[name]
            elif name not in changes:
                key, post = self.post()
                if key != self.files.get(name):
                    self.files[name], changes[name] = key, post
        return changes

    def is_told_by(self, root: Path) -> None:
        """The mount shows exactly this."""
        for folder in ("d0", "d1", "d2"):
            expected = {name[3:]: key for name, key in self.files.items() if name.startswith(folder)}
            assert sorted(os.listdir(root / folder)) == sorted(expected)
            for n in range(20):
                name = f"f{n:02d}"
                assert exists(root / folder / name) == (name in expected), name
            for name, (_, size) in expected.items():
                assert (root / folder / name).stat().st_size == size, name
        for name in self.chance.sample(sorted(self.files), 5):
            assert (root / name).read_bytes() == clients.content(*self.files[name])


@contextmanager
def crowd(root: Path, count: int) -> Iterator[Callable[[], list[dict[str, int]]]]:
    """Processes that use the mount; what is yielded ends them and says what they did. One error is a failure."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-I", clients.__file__, root, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for n in range(count)
    ]

    def end() -> list[dict[str, int]]:
        found = []
        for process in processes:
            out, _ = process.communicate(timeout=20)
            said = json.loads(out.splitlines()[-1])
            assert process.returncode == 0, said.get("trace", f"ended by {process.returncode}")
            found.append(said)
        return found

    try:
        for process in processes:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], 20)[0]
        yield end
    finally:
        for process in processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


@pytest.mark.drill
def test_kills_at_random_moments_are_not_seen(mount: Mounted) -> None:
    chance = random.Random(drilled(1, time.time_ns()))
    story = Story(mount.show(), chance.randrange(1000))
    mount.publish(story.change(60))
    rounds = drilled(6, 500)
    ways: Counter[str] = Counter()
    with crowd(mount.path / "apollo", 3) as end:
        for _ in range(rounds):
            time.sleep(chance.random() * 0.4)
            mount.publish(story.change(chance.randrange(1, 8)), settle=chance.random() < 0.5)
            ways.update(mount.command(do="kernel")["ways"])
            time.sleep(chance.random() * 0.05)
            mount.kill()
            if chance.random() < 0.5:
                story.publisher.publish(story.change(3))
            while chance.random() < 0.3:
                mount.start(wait=False)
                time.sleep(chance.random())
                mount.kill()
            mount.start()
            mount.advance()
            story.is_told_by(mount.path / "apollo")
        done = end()
    assert all(sum(one.values()) > rounds for one in done), done
    assert min(ways["passthrough"], ways["cached"]) > rounds, ways
    nothing_is_open(mount)
    assert backing_ids(mount) == []
