"""Frame ranges as people write them: ``1001-1100``, ``1-100x5``, ``1001,1005,1010-1020`` [fileseq].

State: none. fileseq expands a range while it reads it, so what is too long is refused before.
"""

from __future__ import annotations

import re

from daemon.wants import FRAMES_MAX
from manifest.errors import UsageError

_LENGTH_MAX = 64 * 1024
_PART = re.compile(r"\s*(-?[0-9]{1,9})(?:-(-?[0-9]{1,9})(?:(?:x([0-9]{1,9}))|[y:][1-9][0-9]{0,8})?)?\s*")
_EXAMPLES = "expected 1001-1100, 1-100x5 (every fifth), or a list of these with commas"


def parse_frames(text: str) -> list[int]:
    """The frames, sorted, each once. Raises UsageError."""
    parts = text.split(",") if len(text) <= _LENGTH_MAX else [""]
    total = 0
    for part in parts:
        found = _PART.fullmatch(part)
        if found is None or found[3] == "0":
            raise UsageError(f"--frames {text[:80]}: {part.strip()!r} is no range of frames: {_EXAMPLES}")
        total += abs(int(found[2] or found[1]) - int(found[1])) // int(found[3] or 1) + 1
        if total > FRAMES_MAX:
            raise UsageError(f"--frames {text[:80]}: these are more than {FRAMES_MAX:,} frames")
    from fileseq.exceptions import FileSeqException  # noqa: PLC0415 - most commands need none of it
    from fileseq.frameset import FrameSet  # noqa: PLC0415

    try:
        return sorted({int(frame) for frame in FrameSet(text)})
    except (FileSeqException, ValueError) as error:
        raise UsageError(f"--frames {text[:80]}: {error}") from error
