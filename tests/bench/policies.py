"""Policies of eviction compared on made-up traces of a studio: the code of the cache itself, on an index in memory.

python -m tests.bench.policies [TRACE …]

``cache/simulate.py`` says what a replay does.

``Belady`` knows the future: what is used again last goes first, and what comes and is used again later than
everything else is not put in at all. It has the whole size, without water marks. With files of different sizes that
is no optimum (which is NP-hard to find), and the best that is known to be quick.
"""

from __future__ import annotations

import argparse
import heapq
import math
from statistics import mean
from typing import TYPE_CHECKING

from cache.limits import HIGH_WATER, LOW_WATER
from cache.policies import POLICIES
from cache.simulate import Rates, simulate
from tests.bench import traces

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cache.trace import Reference

TENANT = "apollo"
MARKS = HIGH_WATER, LOW_WATER
SHARES = (0.1, 0.3, 0.6)
"""Sizes of the cache, as parts of all that a trace reads."""


def belady(trace: Sequence[Reference], size_bytes: int) -> Rates:
    """See the module."""
    following = [math.inf] * len(trace)
    seen: dict[int, int] = {}
    for i in reversed(range(len(trace))):
        following[i] = seen.get(trace[i].file, math.inf)
        seen[trace[i].file] = i
    here: dict[int, float] = {}
    by_next: list[tuple[float, int, int]] = []  # as of when it was pushed: what here says counts
    used_bytes = hits = hit_bytes = 0
    for i, access in enumerate(trace):
        is_hit = access.file in here
        hits += is_hit
        hit_bytes += is_hit * access.size_bytes
        if not is_hit:
            if following[i] == math.inf or access.size_bytes > size_bytes:
                continue
            used_bytes += access.size_bytes
        here[access.file] = following[i]
        heapq.heappush(by_next, (-following[i], access.file, access.size_bytes))
        while used_bytes > size_bytes:
            negated, file, size = heapq.heappop(by_next)
            if here.get(file) == -negated:
                del here[file]
                used_bytes -= size
    return Rates(hits / len(trace), hit_bytes / sum(access.size_bytes for access in trace))


def compare(name: str) -> list[tuple[float, dict[str, Rates]]]:
    """For each size of the cache, what Belady and each policy give on a trace."""
    trace = traces.make(name)
    total = sum({access.file: access.size_bytes for access in trace}.values())
    return [
        (
            share,
            {policy: simulate(policy, trace, int(total * share), marks=MARKS) for policy in POLICIES}
            | {"Belady": belady(trace, int(total * share))},
        )
        for share in SHARES
    ]


def main() -> None:
    """Print the table of docs/POLICIES.md."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.policies")
    parser.add_argument("traces", nargs="*", choices=[[], *traces.TRACES], metavar="TRACE")
    names = parser.parse_args().traces or list(traces.TRACES)
    columns = [*POLICIES, "Belady"]
    found: list[dict[str, Rates]] = []
    print(f"| trace | cache | {' | '.join(columns)} |")
    print(f"|---|---:|{'---:|' * len(columns)}")
    for name in names:
        for share, rates in compare(name):
            found.append(rates)
            _print_row(f"{name} | {share * 100:.0f}%", [rates[column] for column in columns])
    means = [
        Rates(mean(rates[column].opens for rates in found), mean(rates[column].bytes for rates in found))
        for column in columns
    ]
    _print_row("mean | ", means)


def _print_row(head: str, rates: Sequence[Rates]) -> None:
    cells = [f"{each.bytes * 100:.1f} ({each.opens * 100:.1f})" for each in rates]
    print(f"| {head} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
