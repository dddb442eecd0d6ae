"""What every task and every thread is doing, on request (SIGUSR1).

Tasks are logged from the event loop. Threads are written by ``faulthandler`` from the signal itself, so that they are
shown even when the loop no longer turns.
"""

from __future__ import annotations

import faulthandler
import linecache
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

TASKS_MAX = 5000
"""A dump shows at most so many tasks: a mount may have 4,096 readers waiting."""


def register_threads() -> None:
    """Write all thread stacks to stderr on SIGUSR1. Call it after the loop's own handler is in place (it is kept)."""
    try:
        faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True, chain=True)
    except (OSError, ValueError, AttributeError) as error:  # stderr is no file, as under a test runner
        log.debug("no thread dumps on SIGUSR1: %s", error)


def task_lines() -> Iterator[str]:
    """The tree of tasks with their stacks, innermost call last. Called from inside ``trio.run``."""
    root = trio.lowlevel.current_root_task()
    pending = [(root, 0)] if root else []
    count = 0
    while pending:
        task, depth = pending.pop()
        count += 1
        if count > TASKS_MAX:
            yield f"… and more: only the first {TASKS_MAX} tasks are shown"
            return
        indent = "  " * depth
        yield f"{indent}task {task.name}"
        for frame, line in task.iter_await_frames():
            code = frame.f_code
            source = linecache.getline(code.co_filename, line).strip()
            yield f"{indent}  {Path(code.co_filename).name}:{line} {code.co_name}: {source}"
        for nursery in task.child_nurseries:
            pending += [(child, depth + 1) for child in nursery.child_tasks]


def log_tasks() -> None:
    """Write the tree of tasks to the log, one frame a line."""
    log.warning("tasks, as asked for with SIGUSR1:")
    for line in task_lines():
        log.warning("%s", line)
    log.warning("end of tasks; statistics: %s", trio.lowlevel.current_statistics())
