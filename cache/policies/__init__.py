"""What is evicted first: one module per policy, behind one protocol. ``POLICIES`` has them by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cache.policies.lru import Lru
from cache.policies.s3fifo import S3Fifo
from cache.policies.sequences import Sequences
from cache.policies.sieve import Sieve

if TYPE_CHECKING:
    from cache.index import Index
    from cache.policies.protocol import Policy

DEFAULT = Sequences.name
"""The winner of docs/POLICIES.md."""
POLICIES: dict[str, type[Lru | Sieve | S3Fifo | Sequences]] = {
    policy.name: policy for policy in (Lru, Sieve, S3Fifo, Sequences)
}


def make(name: str, index: Index) -> Policy:
    """The policy of this name, with its indexes made and those of the others dropped. Blocks; may raise sqlite3.Error.

    With a million objects it takes seconds when another one was in use before.
    """
    wanted = POLICIES[name].indexes
    others = {found for policy in POLICIES.values() for found in policy.indexes} - wanted.keys()
    index.arrange(
        [(f"DROP INDEX IF EXISTS {other}", ()) for other in sorted(others)]
        + [(f"CREATE INDEX IF NOT EXISTS {found} ON {columns}", ()) for found, columns in wanted.items()]
    )
    return POLICIES[name](index)
