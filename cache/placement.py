"""Placement: on which of several shelves a content belongs.

Weighted rendezvous hashing: every shelf draws a number for a content, and the nearest one has it. So contents are
spread in proportion to the weights; a shelf that goes takes no more than its own with it, and one that comes, or grows,
takes from the others only what is now its own. Nothing is kept of where anything is. Source: Schindelhauer, Schomaker:
Weighted distributed hash tables (2005), the logarithmic method.

State: none.
"""

from __future__ import annotations

import math
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cache.shelf import Shelf

_BITS = 64


def nearest(shelves: Sequence[Shelf], tenant: str, content: bytes) -> list[Shelf]:
    """The shelves for a content, the one where it belongs first; each counts for as many bytes as it may hold."""
    key = tenant.encode() + b"\0" + content
    return sorted(shelves, key=lambda shelf: distance(shelf.name, shelf.capacity.size_bytes, key))


def distance(name: bytes, weight: float, key: bytes) -> float:
    """How far ``key`` is from a shelf: exponentially distributed, at a rate of ``weight``, above 0."""
    drawn = int.from_bytes(blake2b(key, digest_size=_BITS // 8, key=name).digest(), "little")
    return -math.log((drawn + 0.5) / 2**_BITS) / weight
