"""How Prometheus sees what the sources did. State: none; docs/METRICS.md describes each metric."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.core import Metric

    from cache.sources.measured import Numbers

STATES = ("closed", "open", "half-open")


def source_metrics(sources: Mapping[str, Numbers]) -> Iterator[Metric]:
    """The metrics of all sources, by name."""
    requests = CounterMetricFamily("damfs_source_requests", "Requests to a source.", labels=["source"])
    in_flight = GaugeMetricFamily("damfs_source_in_flight", "Requests under way.", labels=["source"])
    breaker = GaugeMetricFamily("damfs_source_breaker", "1 for the breaker's state.", labels=["source", "state"])
    opened = CounterMetricFamily("damfs_source_breaker_opened", "How often the breaker opened.", labels=["source"])
    retries = CounterMetricFamily("damfs_source_retries", "Requests made again.", labels=["source"])
    delayed = CounterMetricFamily(
        "damfs_source_retries_delayed", "Retries that waited for the budget.", labels=["source"]
    )
    hedges = CounterMetricFamily("damfs_source_hedges", "Second requests for what was late.",
                                 labels=["source", "result"])  # fmt: skip
    slow = CounterMetricFamily("damfs_source_slow", "Fetches for which a source was slow.",
                               labels=["source", "result"])  # fmt: skip
    for name, numbers in sources.items():
        requests.add_metric([name], numbers.requests)
        in_flight.add_metric([name], numbers.in_flight)
        for state in STATES:
            breaker.add_metric([name, state], float(numbers.breaker == state))
        opened.add_metric([name], numbers.opened)
        retries.add_metric([name], numbers.retries)
        delayed.add_metric([name], numbers.retries_delayed)
        hedges.add_metric([name, "sent"], numbers.hedges_sent)
        hedges.add_metric([name, "won"], numbers.hedges_won)
        slow.add_metric([name, "relieved"], numbers.relieved)
        slow.add_metric([name, "kept"], numbers.not_relieved)
    yield from (requests, in_flight, breaker, opened, retries, delayed, hedges, slow)
