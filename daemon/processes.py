"""What is asked of the kernel about processes: a name that ``ps`` shows, and whose children orphans become."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36


def set_name(name: str) -> None:
    """What ``ps -o comm`` and ``top`` call this process; at most 15 bytes. For people alone."""
    _prctl(PR_SET_NAME, ctypes.c_char_p(name.encode()))


def adopt_orphans() -> None:
    """Descendants whose parents end become children of this process, so that it learns how they end.

    Source: prctl(2), PR_SET_CHILD_SUBREAPER.
    """
    _prctl(PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1))


def parent_of(pid: int) -> int | None:
    """The parent of a process; None when there is no such process."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None


def bury_orphans(known: set[int]) -> None:
    """Reap the ended children that nobody here waits for: what ended daemons have left. Never waits."""
    passed = os.WEXITED | os.WNOHANG | os.WNOWAIT
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitid(os.P_ALL, 0, passed)) is not None and found.si_pid not in known:
            os.waitid(os.P_PID, found.si_pid, os.WEXITED | os.WNOHANG)


def _prctl(option: int, value: ctypes.c_char_p | ctypes.c_ulong) -> None:
    zero = ctypes.c_ulong(0)
    ctypes.CDLL(None).prctl(option, value, zero, zero, zero)
