"""The loops that are timed, run by a process of its own: ``python -I -S loops.py`` reads jobs, one JSON line each.

A job says what is done with which path. The process opens and drops what is to be dropped, writes ``ready``, waits for
a line, works, and writes one JSON line: when it began and ended (CLOCK_MONOTONIC, which all processes share), how much
it did, and the bytes; or ``{"error"}``. Then it closes what it opened.

Rules: the same code, the same calls and the same buffers for a file in the mount and for a native one, so that whatever
the loop itself costs is on both sides. It costs little: calls, arguments and sums are chained inside the interpreter
(``sum(map(preadv, …))``) and no line of Python runs between two system calls, which is as fast as the same loop in C to
within a tenth. Standard library only, so that it starts at once.
"""

import json
import mmap
import os
import random
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cache
from itertools import repeat
from typing import Any

MIB = 1024 * 1024
PAGE_BYTES = 4096
BATCH_BYTES = 64 * MIB
BATCH = 1024
"""So many calls, or bytes, pass between two looks at the clock."""

Job = dict[str, Any]
Loop = Generator[tuple[int, int], None, None]
"""Prepares up to its first ``yield``; what follows is timed, up to its second, (things done, bytes); then it closes."""
READY = (0, 0)


def sequential(job: Job) -> Loop:
    """1 MiB preads from ``offset`` on, for ``length`` bytes."""
    with _opened(job) as descriptor:
        buffers = [bytearray(MIB)]
        offset, length = job["offset"], job["length"]
        done = 0
        yield READY
        deadline = _deadline(job)
        while done < length and (not done or time.monotonic() < deadline):
            wanted = min(BATCH_BYTES, length - done)
            got = sum(
                map(os.preadv, repeat(descriptor), repeat(buffers), range(offset + done, offset + done + wanted, MIB))
            )
            if got < wanted:
                raise EOFError(f"{got} of {wanted} bytes at {offset + done}")
            done += wanted  # the last read of a part may reach into the next one, which is not counted
        yield -(-done // MIB), done


def random_reads(job: Job) -> Loop:
    """Preads of one page each, every page of the file once, in a random order that is the same for every file."""
    with _opened(job) as descriptor:
        buffers = [bytearray(PAGE_BYTES)]
        offsets = _shuffled(job["length"] // PAGE_BYTES)
        done = 0
        yield READY
        deadline = _deadline(job)
        while done < len(offsets) and (not done or time.monotonic() < deadline):
            batch = offsets[done : done + BATCH]
            if sum(map(os.preadv, repeat(descriptor), repeat(buffers), batch)) < len(batch) * PAGE_BYTES:
                raise EOFError("fewer bytes than asked for")
            done += len(batch)
        yield done, done * PAGE_BYTES


def mmap_sequential(job: Job) -> Loop:
    """Copy the file out of a new mapping, 1 MiB after the other."""
    with _mapped(job) as (_, mapped):
        target = memoryview(bytearray(MIB))
        length = job["length"]
        done = 0
        yield READY
        deadline = _deadline(job)
        while done < length and (not done or time.monotonic() < deadline):
            for start in range(done, min(done + BATCH_BYTES, length), MIB):
                count = min(MIB, length - start)
                target[:count] = mapped[start : start + count]
                done += count
        yield -(-done // MIB), done


def mmap_random(job: Job) -> Loop:
    """Touch one byte of every page of a new mapping, in a random order that is the same for every file."""
    with _mapped(job) as (touch, _):
        offsets = _shuffled(job["length"] // PAGE_BYTES)
        done = 0
        yield READY
        deadline = _deadline(job)
        while done < len(offsets) and (not done or time.monotonic() < deadline):
            batch = offsets[done : done + BATCH]
            deque(map(touch, batch), maxlen=0)
            done += len(batch)
        yield done, done * PAGE_BYTES


def frames(job: Job) -> Loop:
    """Open, fstat, read to the end and close one file after the other, as players do."""
    names: list[str] = job["names"]
    if job["drop"]:
        for name in names:
            with _opened({"path": name, "drop": True}):
                pass
    buffers = [bytearray(MIB)]
    done = read = 0
    yield READY
    deadline = _deadline(job)
    for name in names:
        descriptor = os.open(name, os.O_RDONLY)
        try:
            size = os.fstat(descriptor).st_size
            got = sum(map(os.preadv, repeat(descriptor), repeat(buffers), range(0, size, MIB)))
        finally:
            os.close(descriptor)
        if got != size:
            raise EOFError(f"{name}: {got} of {size} bytes")
        done += 1
        read += got
        if time.monotonic() >= deadline:
            break
    yield done, read


def stats(job: Job) -> Loop:
    """Stat the names of a folder, again and again."""
    names: list[str] = job["names"]
    done = 0
    yield READY
    deadline = _deadline(job)
    while not done or time.monotonic() < deadline:
        for start in range(0, len(names), BATCH):
            batch = names[start : start + BATCH]
            deque(map(os.stat, batch), maxlen=0)
            done += len(batch)
            if time.monotonic() >= deadline:
                break
    yield done, 0


def lists(job: Job) -> Loop:
    """List a folder, again and again; what is counted is names."""
    done = 0
    yield READY
    deadline = _deadline(job)
    while not done or time.monotonic() < deadline:
        done += len(os.listdir())  # noqa: PTH208 - less of Python around it
    yield done, 0


LOOPS: dict[str, Callable[[Job], Loop]] = {
    loop.__name__: loop for loop in (sequential, random_reads, mmap_sequential, mmap_random, frames, stats, lists)
}


def _deadline(job: Job) -> float:
    return time.monotonic() + float(job["deadline_s"])


@cache
def _shuffled(pages: int) -> Sequence[int]:
    offsets = [page * PAGE_BYTES for page in range(pages)]
    random.Random(1).shuffle(offsets)  # noqa: S311 - no secret
    return offsets


@contextmanager
def _opened(job: Job) -> Iterator[int]:
    """The job's file, after its pages were dropped from the page cache where the job says so."""
    descriptor = os.open(job["path"], os.O_RDONLY)
    try:
        if job["drop"]:
            os.posix_fadvise(descriptor, job.get("offset", 0), job.get("length", 0), os.POSIX_FADV_DONTNEED)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _mapped(job: Job) -> Iterator[tuple[Callable[[int], int], memoryview]]:
    """The file mapped afresh: what touches a byte of it, and its bytes."""
    with _opened(job) as descriptor, mmap.mmap(descriptor, job["length"], prot=mmap.PROT_READ) as mapping:
        view = memoryview(mapping)
        try:
            yield mapping.__getitem__, view
        finally:
            view.release()


def _do(job: Job) -> None:
    if "folder" in job:
        os.chdir(job["folder"])
    try:
        with closing(LOOPS[job["loop"]](job)) as loop:
            next(loop)
            _say("ready")
            if not sys.stdin.readline():
                sys.exit()
            began = time.monotonic()
            count, read = next(loop)
            ended = time.monotonic()
            _say(json.dumps({"began": began, "ended": ended, "count": count, "bytes": read}))
    finally:
        os.chdir("/")  # nobody's unmount waits for us


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Do jobs until stdin ends. An interrupt of the terminal is for the command, which then closes our stdin."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin:
        try:
            _do(json.loads(line))
        except OSError as error:
            _say(json.dumps({"error": f"{error.filename or 'reading'}: {error.strerror or error}"}))
        except EOFError as error:
            _say(json.dumps({"error": f"a read ended early: {error}"}))


if __name__ == "__main__":
    main()
