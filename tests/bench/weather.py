"""What hedging and adaptive concurrency bring: fetches from a real S3 server over a wire with weather.

    python -m tests.bench.weather [--fetches 300]

Each kind of weather is measured with and without, one after the other, on the same objects. The wire is a TCP proxy in
this process that delays the beginning of answers, paces their bytes and ends connections. Printed are the seconds that
fetches took (the quickest, median, 95th and 99th percentile, longest), those that failed, the requests beyond one a
fetch, and the bytes that the wire carried beyond those that were wanted. docs/decisions/0031 has the figures and what
follows.
"""

from __future__ import annotations

import argparse
import math
import os
import random
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import trio

from cache.fetch import Verified
from cache.metrics import Counters
from cache.queue import Priority, Queue
from cache.sources import stack
from cache.sources.central import CentralSource
from cache.sources.measured import Numbers
from cache.sources.policy import Policy
from cache.sources.protocol import ObjectRef
from cache.window import Window
from manifest.digest import Digest
from manifest.errors import DamfsError
from manifest.identity import write_identity
from manifest.layout import chunk_key
from manifest.library import Library
from tests import stores

if TYPE_CHECKING:
    from collections.abc import Callable

    from cache.sources.chain import Chain

SHOW = "apollo"


@dataclass(frozen=True)
class Weather:
    """``delay_s`` is drawn for each answer, ``rate`` is of all connections together, in bytes a second."""

    name: str
    delay_s: Callable[[random.Random], float]
    rate: float = math.inf
    lost: float = 0.0
    """So many connections of all end in the middle of an answer."""


def _tail(rng: random.Random, usual: float, part: float, least: float, most: float) -> float:
    return rng.uniform(least, most) if rng.random() < part else rng.uniform(usual * 0.8, usual * 1.2)


WEATHERS = [
    Weather("calm: 5 ms", lambda _: 0.005),
    Weather("long tail: 10 ms, 3% of answers 300 to 900 ms", lambda rng: _tail(rng, 0.01, 0.03, 0.3, 0.9)),
    Weather("jitter: 5 to 100 ms", lambda rng: rng.uniform(0.005, 0.1)),
    Weather("loss: 20 ms, 2% wait 200 ms to 1.6 s for a retransmission", lambda rng: _tail(rng, 0.02, 0.02, 0.2, 1.6)),
    Weather("stalls: 10 ms, 1% of answers stall for 8 s", lambda rng: _tail(rng, 0.01, 0.01, 8, 8)),
    Weather("resets: 10 ms, 5% of answers cut off", lambda _: 0.01, lost=0.05),
]


class Wire:
    """A TCP proxy with weather. ``sent_bytes`` counts what it carried back."""

    def __init__(self, target: tuple[str, int], weather: Weather) -> None:
        self._target = target
        self._weather = weather
        self._rng = random.Random(7)
        self._free_at = 0.0
        self.sent_bytes = 0

    async def serve(self, *, task_status: trio.TaskStatus[int]) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=256)
        task_status.started(listeners[0].socket.getsockname()[1])
        await trio.serve_listeners(self._handle, listeners)

    async def _handle(self, client: trio.SocketStream) -> None:
        try:
            async with client, await trio.open_tcp_stream(*self._target) as server, trio.open_nursery() as nursery:
                asked = [False]
                nursery.start_soon(self._forth, client, server, asked, nursery.cancel_scope)
                await self._back(server, client, asked)
                nursery.cancel_scope.cancel()
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def _forth(
        self, client: trio.SocketStream, server: trio.SocketStream, asked: list[bool], scope: trio.CancelScope
    ) -> None:
        async for data in client:
            asked[0] = True
            await server.send_all(data)
        scope.cancel()

    async def _back(self, server: trio.SocketStream, client: trio.SocketStream, asked: list[bool]) -> None:
        while data := await server.receive_some(64 * 1024):
            if asked[0]:
                asked[0] = False
                await trio.sleep(self._weather.delay_s(self._rng))
                if self._rng.random() < self._weather.lost:
                    await client.send_all(data[: len(data) // 2])
                    return
            if self._weather.rate < math.inf:
                self._free_at = max(self._free_at, trio.current_time()) + len(data) / self._weather.rate
                await trio.sleep_until(self._free_at)
            self.sent_bytes += len(data)
            await client.send_all(data)


@dataclass
class Result:
    """What came of a run of fetches."""

    seconds: list[float]
    failed: int
    requests: int
    sent_bytes: int
    total_s: float

    def line(self, fetches: int, size: int) -> str:
        ordered = sorted(self.seconds) or [math.nan]

        def at(part: float) -> float:
            return ordered[min(len(ordered) - 1, int(part * len(ordered)))]

        extra, bytes_extra = self.requests / fetches - 1, self.sent_bytes / (fetches * size) - 1
        return (
            f"{ordered[0]:8.3f} {at(0.5):8.3f} {at(0.95):8.3f} {at(0.99):8.3f} {ordered[-1]:8.3f} "
            f"{self.failed:6d} {extra:8.1%} {bytes_extra:8.1%} {self.total_s:8.2f}"
        )


async def fetch_all(
    endpoint: str, bucket: str, refs: list[ObjectRef], weather: Weather, policy: Policy, readers: int, deadline_s: float
) -> Result:
    """Fetch each object once, ``readers`` at a time."""
    parts = urlsplit(endpoint)
    assert parts.hostname
    assert parts.port
    wire, numbers = Wire((parts.hostname, parts.port), weather), dict[str, Numbers]()
    result, waiting = Result([], 0, 0, 0, 0.0), list(reversed(refs))

    queue = Queue(256 * 1024 * 1024, window=Window(policy.requests_max, policy.prompt_s))

    async def read(chain: Chain) -> None:
        while waiting:
            ref, begun = waiting.pop(), trio.current_time()
            turn = queue.enter(ref.length or 0, Priority.DEMAND)
            try:
                with trio.fail_at(begun + deadline_s):
                    await turn.begun.wait()
                    await chain.fetch(ref, begun + deadline_s)
                result.seconds.append(trio.current_time() - begun)
            except (DamfsError, trio.TooSlowError):
                result.failed += 1
            finally:
                queue.leave(turn)

    def observe(name: str, length: int | None, seconds: float, *, is_good: bool) -> None:
        assert name == "central"
        queue.answered(length, seconds, is_good=is_good)

    async with trio.open_nursery() as nursery:
        port: int = await nursery.start(wire.serve)
        library = Library.open(f"s3://{bucket}/dam", endpoint=f"http://127.0.0.1:{port}")
        chain = stack.chain(
            [CentralSource(library)],
            policy,
            verified=partial(Verified, counters=Counters(), limiter=trio.CapacityLimiter(4)),
            numbers=numbers,
            observe=observe,
        )
        nursery.start_soon(chain.run)
        begun = trio.current_time()
        async with trio.open_nursery() as readers_nursery:
            for _ in range(readers):
                readers_nursery.start_soon(read, chain)
        result.total_s = trio.current_time() - begun
        nursery.cancel_scope.cancel()
    result.requests, result.sent_bytes = numbers["central"].requests, wire.sent_bytes
    return result


def publish(endpoint: str, bucket: str, count: int, size: int) -> list[ObjectRef]:
    library, rng = Library.open(f"s3://{bucket}/dam", endpoint=endpoint), random.Random(1)
    write_identity(library)
    refs = []
    for _ in range(count):
        data = rng.randbytes(size)
        refs.append(ObjectRef(SHOW, "chunk", Digest.of(data), size))
        library.put(chunk_key(SHOW, refs[-1].digest), data)
    return refs


COLUMNS = ("first", "p50", "p95", "p99", "max", "failed", "requests", "bytes", "total")
HEAD = " " * 44 + " ".join(f"{name:>{6 if name == 'failed' else 8}}" for name in COLUMNS)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fetches", type=int, default=300)
    parser.add_argument("--lines", action="store_true", help="Thin lines only.")
    arguments = parser.parse_args()
    fetches = arguments.fetches
    for name, value in stores.ENVIRONMENT.items():
        os.environ[name] = value
    size, usual = 128 * 1024, Policy()
    with stores.moto_server() as server:
        bucket = server.new_bucket()
        refs = publish(server.endpoint, bucket, fetches, size)
        print(f"{fetches} fetches of {size // 1024} KiB, 4 at a time, 30 s each; with and without hedging\n{HEAD}")
        for weather in [] if arguments.lines else WEATHERS:
            print(weather.name)
            for name, policy in (("without", replace(usual, hedges_max=0.0)), ("hedged at p95, 5%", usual)):
                result = trio.run(fetch_all, server.endpoint, bucket, refs, weather, policy, 4, 30.0)
                print(f"  {name:42} {result.line(fetches, size)}", flush=True)
        bucket = server.new_bucket()
        chunks = publish(server.endpoint, bucket, 48, 1024 * 1024)
        print(f"\n48 chunks of 1 MiB wanted at once, 12 s each; with and without adaptive concurrency\n{HEAD}")
        lines = [
            *(Weather(f"a line of {rate:g} MB/s, 20 ms", lambda _: 0.02, rate=rate * 1e6) for rate in (1, 2, 5, 50)),
            Weather("no more than 1 MB/s for each connection", lambda _: 1.0),
        ]
        for weather in lines:
            print(weather.name)
            for name, policy in (("16 at a time", replace(usual, prompt_s=math.inf)), ("as the line carries", usual)):
                result = trio.run(fetch_all, server.endpoint, bucket, chunks, weather, policy, 48, 12.0)
                print(f"  {name:42} {result.line(48, 1024 * 1024)}", flush=True)


if __name__ == "__main__":
    main()
