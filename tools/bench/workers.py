"""The processes that run the loops of loops.py, and one timed pass of several of them at once.

State: one child process per reader, started when it is first needed, ended with the context. Rules: readers are
processes, since threads would share one interpreter; all of a pass are ready before the first of them begins; a pass
that does not come back within PASS_DEADLINE_S is an error, and its process is killed.
"""

from __future__ import annotations

import json
import selectors
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from manifest.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

PASS_DEADLINE_S = 700.0
"""Longer than the longest that a daemon lets a read wait for its bytes by default."""
_LINE_BYTES = 65536
_LOOPS = Path(__file__).with_name("loops.py")


@dataclass(frozen=True, slots=True)
class Pass:
    """What the readers of one pass did together, and the seconds from the first one's start to the last one's end."""

    seconds: float
    count: int
    bytes: int


class Worker:
    """One child process. Its stdin and stdout carry lines, and nothing is read ahead of need."""

    def __init__(self) -> None:
        command = [sys.executable, "-I", "-S", str(_LOOPS)]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, cwd="/")
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._to, self._from = self._child.stdin, self._child.stdout
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._from, selectors.EVENT_READ)

    def tell(self, line: str) -> None:
        try:
            self._to.write(line.encode() + b"\n")
        except BrokenPipeError:
            raise self._died() from None

    def hear(self, deadline: float) -> str:
        """The next line. Raises Unavailable when the process died, or says nothing until ``deadline``."""
        said = b""
        while not said.endswith(b"\n"):
            if not self._selector.select(max(0.0, deadline - time.monotonic())):
                raise Unavailable(
                    f"a reader did not come back within {PASS_DEADLINE_S:g} s: see `damfs status` and the daemon's log"
                )
            piece = self._from.read(_LINE_BYTES)
            if not piece:
                raise self._died()
            said += piece
        return said.decode().strip()

    def close(self) -> None:
        """End the process, whatever it does."""
        self._child.kill()
        self._child.wait()
        self._to.close()
        self._from.close()
        self._selector.close()

    def _died(self) -> Unavailable:
        code = self._child.wait()
        how = f"signal {-code}" if code < 0 else f"status {code}"
        return Unavailable(f"a reader ended with {how} in the middle: an I/O error under mmap does that (SIGBUS)")


class Workers:
    """Readers, as many as a pass wants."""

    def __init__(self) -> None:
        self._workers: list[Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.close()
        self._workers.clear()

    def prepare(self, jobs: Sequence[dict[str, Any]]) -> Prepared:
        """Have one reader for each job open what it needs. Raises Unavailable with what went wrong."""
        while len(self._workers) < len(jobs):
            self._workers.append(Worker())
        workers = self._workers[: len(jobs)]
        for worker, job in zip(workers, jobs, strict=True):
            worker.tell(json.dumps(job))
        deadline = time.monotonic() + PASS_DEADLINE_S
        for worker in workers:
            said = worker.hear(deadline)
            if said != "ready":
                raise Unavailable(str(json.loads(said)["error"]))
        return Prepared(workers)


class Prepared:
    """Readers that wait for the start."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers

    def run(self) -> Pass:
        """Let them all go, and wait for the last. Raises Unavailable with what went wrong."""
        for worker in self._workers:
            worker.tell("go")
        deadline = time.monotonic() + PASS_DEADLINE_S
        answers: list[dict[str, Any]] = [json.loads(worker.hear(deadline)) for worker in self._workers]
        for answer in answers:
            if "error" in answer:
                raise Unavailable(str(answer["error"]))
        seconds = max(answer["ended"] for answer in answers) - min(answer["began"] for answer in answers)
        return Pass(seconds, sum(answer["count"] for answer in answers), sum(answer["bytes"] for answer in answers))
