"""Sizes as people write them: ``200GB``, ``1.5TiB``, ``20%``.

Decimal units (kB, MB, GB, TB, PB) count in thousands, binary ones (KiB, MiB, GiB, TiB, PiB) in 1024; a bare
number is bytes; a percentage is of the disk that holds the folder in question.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from manifest.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

_PREFIXES = "kmgtp"
_PATTERN = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*(%|b|[kmgtp]i?b?)?", re.IGNORECASE)
BYTES_MAX = 2**60


@dataclass(frozen=True, slots=True)
class Size:
    """A number of bytes, or a share of a disk. Exactly one of ``bytes`` and ``percent`` is set."""

    text: str
    bytes: int | None = None
    percent: float | None = None

    def __str__(self) -> str:
        return self.text

    def resolve(self, folder: Path) -> int:
        """The bytes that this size means for ``folder`` (or its nearest ancestor that exists). Raises OSError."""
        if self.bytes is not None:
            return self.bytes
        assert self.percent is not None
        while not folder.exists() and folder.parent != folder:
            folder = folder.parent
        disk = os.statvfs(folder)
        return int(disk.f_blocks * disk.f_frsize * self.percent / 100)


def parse_size(text: str) -> Size:
    """Read a size. Raises ConfigurationError, which says how sizes are written."""
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        raise ConfigurationError(f"{text!r} is no size: write for example 200GB, 1.5TiB or 20%")
    number, unit = Decimal(match[1]), (match[2] or "b").lower()
    if unit == "%":
        if not 0 < number <= 95:
            raise ConfigurationError(f"{text!r} is no size: a share of the disk lies between 0% and 95%")
        return Size(text.strip(), percent=float(number))
    scale = 1
    if unit != "b":
        scale = (1024 if "i" in unit else 1000) ** (_PREFIXES.index(unit[0]) + 1)
    count = int(number * scale)
    if not 0 < count <= BYTES_MAX:
        raise ConfigurationError(f"{text!r} is no size: expected more than 0 bytes and at most 1 EiB")
    return Size(text.strip(), bytes=count)
