"""The log: one line a message, to stderr.

Under systemd (``$JOURNAL_STREAM``) a line begins with its priority, as sd-daemon(3) describes, and the journal adds the
time; elsewhere it begins with the UTC time. A traceback's lines are lines of their own. Control characters, which a
hostile file name could hold, are escaped.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from typing import TextIO

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), 127, *range(0x80, 0xA0))}
_THIRD_PARTIES = ("hypercorn", "botocore", "boto3", "urllib3", "pyfuse3")
LINES_MAX = 200
"""The most lines of one traceback."""


class LineFormatter(logging.Formatter):
    """Every line complete in itself: priority or time, level, logger, text."""

    def __init__(self, *, journal: bool) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        head = self._head(record)
        lines = [record.getMessage()]
        if record.exc_info and record.exc_info[0] is not None:
            trace = "".join(traceback.format_exception(*record.exc_info)).splitlines()
            lines += [f"| {line}" for line in trace[-LINES_MAX:]]
        return "\n".join(head + line.translate(_ESCAPES) for line in lines)

    def _head(self, record: logging.LogRecord) -> str:
        if self._journal:
            return f"<{_PRIORITIES.get(record.levelno, 6)}>{record.name}: "
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        return f"{moment}.{int(record.msecs):03d}Z {record.levelname:<7} {record.name}: "


def level_of(verbosity: int) -> int:
    """-1 and below (``-q``): errors and warnings; 0: also what happens; 1 and above (``-v``): everything."""
    return logging.WARNING if verbosity < 0 else logging.INFO if verbosity == 0 else logging.DEBUG


def set_up(verbosity: int = 0, stream: TextIO | None = None) -> None:
    """Send all logging of this process to ``stream`` (default: stderr)."""
    stream = sys.stderr if stream is None else stream
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter(journal=bool(os.environ.get("JOURNAL_STREAM"))))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level_of(verbosity))
    for name in _THIRD_PARTIES:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
