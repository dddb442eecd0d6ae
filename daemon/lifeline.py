"""How a supervisor learns at once that this process is dead, even when not all of it can die.

A killed process is not gone while one of its threads waits uninterruptibly in the kernel (for a disk that does not
answer, say): wait(2) tells nothing, no descriptor of the process is closed, and since Linux 6.15 its pidfd is silent
too (measured). But the other threads do end. So one thread has a table of descriptors of its own (unshare(2),
CLONE_FILES) which holds nothing but the end of a pipe: when the process is killed, the pipe ends.
"""

from __future__ import annotations

import ctypes
import logging
import os
import select
import signal
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from manifest.errors import Unavailable

if TYPE_CHECKING:
    from daemon.systemd import Notify

log = logging.getLogger(__name__)

CLONE_FILES = 0x400
UNSHARE_S = 5.0


def hand_to(notify: Notify) -> None:
    """Give the supervisor, if there is one, a pipe that ends with this process. Without it, it learns later."""
    if not notify.supervised:
        return
    reading = make()
    if reading is None:
        return
    try:
        notify.lifeline(reading)
    except Unavailable as error:
        log.warning("%s", error)
    finally:
        os.close(reading)


def make() -> int | None:
    """A pipe that ends with this process: the end that tells it, for the caller to give away and close."""
    reading, writing = os.pipe()
    alone = threading.Event()
    threading.Thread(target=_hold, args=(writing, alone), name="damfs-lifeline", daemon=True).start()
    is_held = alone.wait(UNSHARE_S)
    os.close(writing)  # ours; the thread has its own
    if is_held:
        return reading
    os.close(reading)
    log.warning("unshare(CLONE_FILES) failed: the supervisor sees a crash when the whole process is gone")
    return None


def _hold(kept: int, alone: threading.Event) -> None:
    """The thread: never returns once it holds ``kept``, and nothing else.

    It takes no signals: a handler would write to the descriptors of the others, which it does not have.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    if ctypes.CDLL(None).unshare(CLONE_FILES) != 0:
        return
    for name in os.listdir("/proc/thread-self/fd"):  # noqa: PTH208  names, not paths
        if int(name) != kept:
            with suppress(OSError):
                os.close(int(name))
    alone.set()
    while True:
        select.select([], [], [])
