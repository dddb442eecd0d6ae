"""Which files the kernel reads by itself: never an error or a wrong byte, whatever is opened, filled and evicted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache.handle import CachedObject
from tests.harness import drilled, wait_until
from tests.vfs import clients
from tests.vfs.mounted import REPOSITORY, Mounted, mounted
from tests.vfs.publisher import CHUNK_BYTES
from vfs.kernel.passthrough import NONE, Passthrough

CACHE_BYTES = 12_000_000
"""The kernel is lent files of up to a quarter of it; all files together are some three times as large."""
SIZES = [5_000, 70_000, 300_000, CHUNK_BYTES + 1, 2_345_678, 2_900_000, 3_500_000]
CONTENTS = 14
NAMES = [(show, f"f{n}") for show in ("apollo", "zulu") for n in range(9)]
"""Few contents under many names: several inodes have the same bytes, in one show and in two."""

names = st.integers(0, len(NAMES) - 1)
places = st.integers(0, 2**22)
counts = st.sampled_from([1, 4096, 100_000, CHUNK_BYTES, 4 * CHUNK_BYTES])
some = st.integers(0, 7)
ADVICE = [os.POSIX_FADV_DONTNEED, os.POSIX_FADV_WILLNEED, os.POSIX_FADV_RANDOM, os.POSIX_FADV_SEQUENTIAL]
OPS = st.one_of(
    st.tuples(st.just("open"), names, st.integers(0, 9)),
    st.tuples(st.just("open"), names, st.integers(0, 9)),
    st.tuples(st.just("read"), some, places, counts),
    st.tuples(st.just("read"), some, places, counts),
    st.tuples(st.just("advise"), some, st.sampled_from(ADVICE)),
    st.tuples(st.just("map"), some, st.booleans()),
    st.tuples(st.just("look"), some, places, counts),
    st.tuples(st.just("forget"), some),
    st.tuples(st.just("close"), some),
    st.tuples(st.just("close"), some),
    st.tuples(st.just("unmap"), some),
    st.tuples(st.just("fill"), names, st.booleans()),
    st.tuples(st.just("fill"), names, st.booleans()),
    st.tuples(st.just("publish"), names, st.integers(0, CONTENTS - 1)),
    st.tuples(st.just("rest")),
    st.tuples(st.just("hand over"), st.integers(0, 3)),
)
OPEN_MAX = MAPPED_MAX = 8
DONE_WITHOUT_HANDOVER_MAX = 80
"""Chance may choose too few of them: 50 examples have at least 500 operations."""


class Show:
    """A mount, the process that uses it, and what that has open."""

    def __init__(self, mount: Mounted) -> None:
        self.mount = mount
        self.ways: Counter[str] = Counter()
        self.handovers = 0
        self.done_since_handover = 0
        self.used_max = 0
        self.now: dict[int, int] = {}
        self._numbers = 0
        self._posts: dict[tuple[str, int], Any] = {}
        for show in ("apollo", "zulu"):
            mount.publish({path: self._post(show, n) for n, (of, path) in enumerate(NAMES) if of == show}, show)
        self.now = {n: n % CONTENTS for n in range(len(NAMES))}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.vfs.puppet"], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.files: list[int] = []
        self.maps: list[int] = []

    def _post(self, show: str, number: int) -> Any:
        number %= CONTENTS
        key = show, number
        if key not in self._posts:
            data = clients.content(number, SIZES[number % len(SIZES)])
            self._posts[key] = self.mount.show(show).post_of(data)
        return self._posts[key]

    def path(self, name: int) -> Path:
        show, file = NAMES[name]
        return self.mount.path / show / file

    def tell(self, **command: Any) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(command).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self.process.stdout.readline()
        assert answer, f"{command}: ended by {self.process.wait(10)}"
        assert json.loads(answer) == {}, command

    def do(self, what: str, *args: int) -> None:
        getattr(self, "do_" + what.replace(" ", "_"))(*args)
        self.done_since_handover += 1
        if self.done_since_handover >= DONE_WITHOUT_HANDOVER_MAX:
            self.do_hand_over(0)

    def do_open(self, name: int, kind: int) -> None:
        if len(self.files) < OPEN_MAX:
            self._numbers += 1
            self.tell(do="open", file=self._numbers, path=str(self.path(name)), direct=kind == 0)
            self.files.append(self._numbers)

    def do_read(self, which: int, offset: int, size: int) -> None:
        if self.files:
            self.tell(
                do="read", file=self.files[which % len(self.files)], offset=offset, size=size + 4095 & ~4095
            )  # as O_DIRECT wants it

    def do_advise(self, which: int, advice: int) -> None:
        if self.files:
            self.tell(do="advise", file=self.files[which % len(self.files)], advice=advice)

    def do_map(self, which: int, shared: bool) -> None:
        if self.files and len(self.maps) < MAPPED_MAX:
            self._numbers += 1
            self.tell(do="map", file=self.files[which % len(self.files)], into=self._numbers, shared=bool(shared))
            self.maps.append(self._numbers)

    def do_look(self, which: int, offset: int, size: int) -> None:
        if self.maps:
            self.tell(do="look", at=self.maps[which % len(self.maps)], offset=offset, size=size)

    def do_forget(self, which: int) -> None:
        if self.maps:
            self.tell(do="forget", at=self.maps[which % len(self.maps)])

    def do_close(self, which: int) -> None:
        if self.files:
            self.tell(do="close", file=self.files.pop(which % len(self.files)))

    def do_unmap(self, which: int) -> None:
        if self.maps:
            self.tell(do="unmap", at=self.maps.pop(which % len(self.maps)))

    def do_fill(self, name: int, rest: bool) -> None:
        """Have a file complete in the cache, if it fits, and others evicted; then it may be lent."""
        number = self.now[name]
        assert self.path(name).read_bytes() == clients.content(number, SIZES[number % len(SIZES)])
        if rest:
            self.do_rest()
            self.do_open(name, 1)

    def do_publish(self, name: int, number: int) -> None:
        if self.now[name] != number:
            show, file = NAMES[name]
            self.mount.publish({file: self._post(show, number)}, show)
            self.now[name] = number

    def do_rest(self) -> None:
        """The cache becomes sure of what it has, and evicts."""
        time.sleep(0.05)
        self.used_max = max(self.used_max, self.mount.command(do="cached")["used_bytes"])

    def do_hand_over(self, chance: int) -> None:
        if chance == 0 and self.handovers < drilled(6, 10**6):
            self.count_ways()
            self.mount.succeed()
            self.handovers += 1
            self.done_since_handover = 0

    def count_ways(self) -> None:
        """They are counted from the beginning in each process."""
        self.ways.update(self.mount.command(do="kernel")["ways"])

    def end_example(self) -> None:
        while self.files:
            self.do_close(0)
        while self.maps:
            self.do_unmap(0)
        wait_until(lambda: self.mount.command(do="kernel")["inodes"] == 0, "all files to be closed")
        seen = self.mount.command(do="kernel")
        assert (seen["lent"], seen["handles"]) == (0, 0)

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@contextmanager
def shown(folder: Path) -> Iterator[Show]:
    flags = ["kernel", f"cache={CACHE_BYTES}"]
    with mounted(folder, flags=flags, keep=True, deadline_s=drilled(50, 7200)) as mount:
        show = Show(mount)
        try:
            yield show
        finally:
            show.close()


@pytest.mark.drill
def test_no_use_of_files_sees_an_error_or_a_wrong_byte(tmp_path: Path, by_kernel: str) -> None:
    with shown(tmp_path) as show:

        @settings(max_examples=drilled(50, 3000), deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(OPS, min_size=10, max_size=60))
        def use(ops: list[tuple[Any, ...]]) -> None:
            for what, *args in ops:
                show.do(what, *args)
            show.end_example()

        use()
        show.count_ways()
        assert min(show.ways["passthrough"], show.ways["cached"]) > 20, "only one of the two ways was taken"
        assert show.handovers > 1
        assert show.used_max > CACHE_BYTES / 2
        assert "ERROR" not in show.mount.log.read_text()


# -- the rule itself, against a kernel of a few lines


class Kernel:
    """What fs/fuse does: a registry of backing ids, and one way of reading for each inode that is open."""

    def __init__(self) -> None:
        self.newest = 0
        self.ids: set[int] = set()
        self.open: dict[int, list[int]] = {}

    def lend(self, _fd: int) -> int:
        self.newest += 1
        self.ids.add(self.newest)
        return self.newest

    def take_back(self, backing_id: int) -> None:
        self.ids.remove(backing_id)

    def opened(self, ino: int, backing_id: int) -> None:
        assert backing_id == NONE or backing_id in self.ids, "EIO: no such backing id"
        ways = self.open.setdefault(ino, [])
        assert all(way == backing_id for way in ways), "EIO: an inode is open in two ways"
        ways.append(backing_id)

    def released(self, ino: int) -> None:
        self.open[ino].pop()


class Cached:
    """A cached object: lent or not as ``may`` says, and held or not."""

    held: ClassVar[Counter[int]] = Counter()

    def __init__(self, content: int, *, may: bool) -> None:
        self.content = content
        self.may = may

    def backing(self) -> int | None:
        return 100 + self.content if self.may else None

    def was_lent(self) -> None:
        pass

    def hold(self) -> Cached:
        Cached.held[self.content] += 1
        return self

    def release(self) -> None:
        Cached.held[self.content] -= 1


STEP = st.tuples(
    st.sampled_from(["open", "open", "close", "close", "fail", "hand over", "hold"]),
    st.integers(0, 5),
    st.integers(0, 2),
    st.booleans(),
)


@settings(max_examples=drilled(300, 20_000), deadline=None)
@given(st.lists(STEP, max_size=60))
def test_an_inode_has_one_way_of_reading_and_ids_are_given_back_once(steps: list[tuple[str, int, int, bool]]) -> None:
    Cached.held.clear()
    kernel = Kernel()
    rule = Passthrough(kernel.lend, kernel.take_back)
    handles: dict[int, tuple[int, int]] = {}
    for count, (what, ino, content, may) in enumerate(steps, 1):
        cached = cast("CachedObject", Cached(content, may=may))
        if what in ("open", "fail"):
            backing_id = rule.choose(ino, content, cached)
            if what == "open":
                rule.opened(ino, count)
                kernel.opened(ino, backing_id)
                handles[count] = ino, backing_id
            else:
                rule.settle(ino)
        elif what == "close" and handles:
            handle = sorted(handles)[ino % len(handles)]
            kernel.released(handles[handle][0])
            rule.released(handles[handle][0], handle)
            rule.released(handles.pop(handle)[0], handle)  # as it may come twice
        elif what == "hand over":
            rule = Passthrough(kernel.lend, kernel.take_back)
            Cached.held.clear()
            for handle, (of, backing_id) in handles.items():
                rule.adopt(of, handle, backing_id)
        elif what == "hold":
            for backing_id, _ in rule.not_held():
                rule.hold(backing_id, cast("CachedObject", Cached(content, may=True).hold()))
        in_use = {backing_id for _, backing_id in handles.values()} - {NONE}
        assert kernel.ids == in_use
        assert rule.lent == len(in_use)
        assert all(rule.is_open(of) for of, _ in handles.values())
        assert sum(Cached.held.values()) == rule.lent - len(rule.not_held())
    rule.release_all()
    assert not any(Cached.held.values())


def test_a_file_that_cannot_be_lent_is_read_through_us(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(fd: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    rule = Passthrough(refuse, lambda _: None)
    for ino in (1, 2):
        assert rule.choose(ino, ino, cast("CachedObject", Cached(1, may=True))) == NONE
    assert len([line for line in caplog.messages if "they are read through damfs" in line]) == 1
