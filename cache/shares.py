"""Whose contents go first: what shows have above their quotas, then shows of low priority, of normal, of high.

State: none. Within a scope the policy of eviction (``policies/``) has its order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cache.limits import Priority

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cache.accounts import Held
    from cache.limits import Limits


class Scope(NamedTuple):
    """The shows of ``tenants``, or with ``is_rest`` all others."""

    tenants: frozenset[str] = frozenset()
    is_rest: bool = True

    @property
    def condition(self) -> str:
        """As SQL, ``tenants`` to be filled in. ``+``: the scan keeps to the policy's order, whatever indexes say."""
        if not self.tenants:
            return "1" if self.is_rest else "0"
        return f"+tenant {'NOT ' if self.is_rest else ''}IN ({','.join('?' * len(self.tenants))})"


EVERYTHING = Scope()


def over_quota(held: Mapping[str, Held], limits: Limits) -> Iterator[tuple[Scope, int]]:
    """Each show that has more than its quota, and the bytes that it is to lose: down to the low water mark of it."""
    for tenant, show in limits.shows.items():
        has = held.get(tenant)
        if has is not None and show.quota_bytes is not None and has.bytes > show.quota_bytes:
            yield Scope(frozenset((tenant,)), is_rest=False), has.bytes - int(show.quota_bytes * limits.low_water)


def in_turn(held: Mapping[str, Held], limits: Limits) -> Iterator[Scope]:
    """Whose contents are to go, one scope after the other: those of low priority, all but those of high, and all."""
    low = frozenset(tenant for tenant, show in limits.shows.items() if show.priority is Priority.LOW)
    high = frozenset(tenant for tenant, show in limits.shows.items() if show.priority is Priority.HIGH)
    if any(tenant in low for tenant in held):
        yield Scope(low, is_rest=False)
    if any(tenant in high for tenant in held):
        yield Scope(high)
    yield EVERYTHING
