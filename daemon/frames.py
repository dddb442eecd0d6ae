"""Image sequences of a folder, and what of each is here: for ``damfs explain``.

State: ``Sequences`` sums up names as they are told, in any order. Rule: what is told of it is bounded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from manifest import sequences

SEQUENCES_MAX = 200
RANGES_MAX = 16
_PLACEHOLDER = re.compile(r"#+|@+|%0?[0-9]*d|<UDIM>", re.IGNORECASE)

Pattern = tuple[str, str]
"""What stands before the number of a frame, and behind it."""


def pattern_of(name: str) -> Pattern | None:
    """The frames that ``plate.####.exr``, ``plate.%04d.exr``, ``plate.@@@@.exr`` or ``skin.<UDIM>.tx`` stands for."""
    found = _PLACEHOLDER.search(name)
    return None if found is None else (name[: found.start()], name[found.end() :])


@dataclass(slots=True)
class _Frames:
    """One sequence: of its frames' numbers which are here, which are not, and the digits of the shortest number."""

    here: list[int] = field(default_factory=list)
    absent: list[int] = field(default_factory=list)
    digits: int = 99
    size_bytes: int = 0
    here_bytes: int = 0


class Sequences:
    """See the module. ``wanted``: only this sequence counts."""

    def __init__(self, wanted: Pattern | None = None) -> None:
        self._wanted = wanted
        self._found: dict[Pattern, _Frames] = {}

    def takes(self, name: str) -> bool:
        """Whether a file of this name counts."""
        frame = sequences.parse(name)
        return self._wanted is None or (frame is not None and (frame.prefix, frame.suffix) == self._wanted)

    def add(self, name: str, size_bytes: int, here_bytes: int) -> None:
        """A file; one that is no frame is a sequence by itself."""
        frame = sequences.parse(name)
        key = (name, "") if frame is None else (frame.prefix, frame.suffix)
        found = self._found.setdefault(key, _Frames())
        found.size_bytes += size_bytes
        found.here_bytes += here_bytes
        number = 0 if frame is None else frame.number
        (found.here if here_bytes >= size_bytes else found.absent).append(number)
        found.digits = 0 if frame is None else min(found.digits, len(name) - len(frame.prefix) - len(frame.suffix))

    def to_json(self) -> dict[str, Any]:
        """The sequences by name, at most SEQUENCES_MAX, and how many more there are."""
        names = sorted(self._found)
        told = [_told(key, self._found[key]) for key in names[:SEQUENCES_MAX]]
        return {"sequences": told, "sequences_more": len(names) - len(told)}


def _told(key: Pattern, found: _Frames) -> dict[str, Any]:
    numbers = sorted([*found.here, *found.absent])
    is_sequence = len(numbers) > 1
    prefix, suffix = key
    if found.digits:
        name = prefix + ("#" * found.digits if is_sequence else str(numbers[0]).zfill(found.digits)) + suffix
    else:
        name = prefix
    absent = _ranges(found.absent)
    return {
        "name": name,
        "files": len(numbers),
        "first": numbers[0] if is_sequence else None,
        "last": numbers[-1] if is_sequence else None,
        "gaps": numbers[-1] - numbers[0] + 1 - len(set(numbers)) if is_sequence else 0,
        "size_bytes": found.size_bytes,
        "here_bytes": found.here_bytes,
        "percent": found.here_bytes * 100 // found.size_bytes if found.size_bytes else 100,
        "whole": len(found.here),
        "absent": absent[:RANGES_MAX] if is_sequence else [],
        "absent_more": max(0, len(absent) - RANGES_MAX) if is_sequence else 0,
    }


def _ranges(numbers: list[int]) -> list[tuple[int, int]]:
    """Runs of consecutive numbers, each as its first and its last."""
    found: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found
