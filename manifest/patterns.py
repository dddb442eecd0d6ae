"""How people name an image sequence: ``plate.####.exr``, ``plate.%04d.exr``, ``plate.$F4.exr``, ``skin.<UDIM>.tx``.

State: none. In the place of the number stands one of: ``#`` (alone four digits, several: so many), ``@`` (so many
digits), ``%d`` or ``%04d``, ``$F`` or ``$F4``, ``<UDIM>`` or ``%(UDIM)d`` (four digits). A number is padded with zeros
to those digits, and has more where it needs more. One of the frames names its sequence, too; then the padding is not
looked at.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from manifest import sequences
from manifest.errors import UsageError

_NUMBER = re.compile(r"#+|@+|%(?:0?([1-9]))?d|\$F([1-9])?|<UDIM>|%\(UDIM\)d")
_DIGITS = re.compile(r"-?[0-9]{1,18}")
_UDIM_DIGITS = 4


class Pattern(NamedTuple):
    """The names of a sequence: what stands before the number and behind it; ``digits`` None: however it is padded."""

    prefix: str
    suffix: str
    digits: int | None

    def number(self, name: str) -> int | None:
        """The frame that a name is; None when it is none of the sequence."""
        if len(name) <= len(self.prefix) + len(self.suffix):
            return None
        if not (name.startswith(self.prefix) and name.endswith(self.suffix)):
            return None
        text = name[len(self.prefix) : len(name) - len(self.suffix)]
        if not _DIGITS.fullmatch(text):
            return None
        number = int(text)
        return number if self.digits is None or text == f"{number:0{self.digits}d}" else None


def parse(name: str) -> Pattern:
    """The pattern that a name is. Raises UsageError for one with several numbers to fill in, or with none at all."""
    found = list(_NUMBER.finditer(name))
    if len(found) > 1:
        raise UsageError(f"{name}: {' and '.join(match[0] for match in found)} both stand for a number: expected one")
    if found:
        match = found[0]
        return Pattern(name[: match.start()], name[match.end() :], _digits(match))
    frame = sequences.parse(name)
    if frame is None:
        raise UsageError(f"{name} names no sequence: expected plate.####.exr, plate.%04d.exr, or one of its frames")
    return Pattern(frame.prefix, frame.suffix, None)


def _digits(match: re.Match[str]) -> int:
    text = match[0]
    if text in ("#", "<UDIM>", "%(UDIM)d"):
        return _UDIM_DIGITS
    if text[0] in "#@":
        return len(text)
    return int(match[1] or match[2] or 1)
