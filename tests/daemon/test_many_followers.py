"""What many workstations that follow one show cost the central store, counted: by way of nginx, what one does.

The followers are the real ones (``manifest.follow``, with its schedule of looks, peeks and listings, over a real nginx
and a store that checks signatures); a thousand replicas on disk are left away, and threads are shared.
"""

from __future__ import annotations

import heapq
import random
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from cache.sources.site import SiteCache
from daemon.contact import ASK_TIMEOUT_S, PACE_S
from manifest.digest import Digest
from manifest.follow import Follower
from manifest.identity import list_shows, write_identity
from manifest.incoming import GAP_CHECK_S, PEEK_S, _Listing
from manifest.library import Library
from manifest.log import Log
from manifest.way import Way
from tests.counting import CountingProxy, address_of
from tests.manifest.logs import SHOW, Scribe
from tests.nginx import nginx
from tests.stores import private_bucket, rclone_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from manifest.changeset import ChangesetReader
    from manifest.entry import Entry

WORKSTATIONS = 1000
THREADS = 16
INTERVAL_S = 1.0
SECONDS = 4.0
PUBLISHES = 3
ENOUGH_S = 60.0


class Head:
    """In the place of a replica: knows what was applied last."""

    def __init__(self, scribe: Scribe) -> None:
        self.head = scribe.seq
        self.tip = scribe.prev

    def apply_entry(self, stored: bytes, entry: Entry, keyid: str, changeset: ChangesetReader) -> None:
        assert (entry.seq, entry.prev) == (self.head + 1, self.tip)
        assert keyid
        assert changeset
        self.head, self.tip = entry.seq, Digest.of(stored)


class Workstation:
    """Follows the show and lists the shows, as a daemon does that has been up for a while."""

    def __init__(self, library: Library, scribe: Scribe, site: SiteCache | None) -> None:
        self.library = library
        self.way = Way(site)
        self.head = Head(scribe)
        self.follower = Follower(Log(library, scribe.name, self.way), self.head, scribe.trust)  # type: ignore[arg-type]
        now = time.monotonic()
        self.lists_at = now + random.uniform(0, PACE_S)
        incoming = self.follower._incoming
        incoming._listing = _Listing(self.head.head, (), now + random.uniform(0, GAP_CHECK_S))
        incoming._peek_due = now + random.uniform(0, PEEK_S)

    def look(self) -> None:
        if time.monotonic() >= self.lists_at:
            assert list_shows(self.library, timeout_s=ASK_TIMEOUT_S, way=self.way, fresh=False) == [SHOW]
            self.lists_at = time.monotonic() + PACE_S
        progress = self.follower.advance(deadline=time.monotonic() + 30)
        assert progress.reachable
        assert progress.stalled is None


@dataclass
class Crowd:
    """Workstations that look again INTERVAL_S after they have looked, in a few threads."""

    members: list[Workstation]
    errors: list[BaseException] = field(default_factory=list)
    looks: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._due = [(random.uniform(0, INTERVAL_S), number) for number in range(len(self.members))]
        heapq.heapify(self._due)
        begun = time.monotonic()
        self._due = [(begun + at, number) for at, number in self._due]

    def run(self, threads: int) -> list[threading.Thread]:
        made = [threading.Thread(target=self._work) for _ in range(threads)]
        for thread in made:
            thread.start()
        return made

    def stop(self) -> None:
        self._over.set()

    @property
    def slowest(self) -> int:
        return min(member.head.head for member in self.members)

    def _work(self) -> None:
        try:
            while not self._over.is_set():
                with self._lock:
                    is_due = bool(self._due) and time.monotonic() >= self._due[0][0]
                    number = heapq.heappop(self._due)[1] if is_due else 0
                if not is_due:
                    time.sleep(0.005)
                    continue
                self.members[number].look()
                with self._lock:
                    self.looks += 1
                    heapq.heappush(self._due, (time.monotonic() + INTERVAL_S, number))
        except BaseException as error:
            self.errors.append(error)
            raise


@dataclass
class Place:
    """A store behind two counting proxies: what workstations ask it themselves, and what nginx asks it."""

    direct: CountingProxy
    by_site: CountingProxy
    library: Library
    scribe: Scribe


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    (tmp_path / "store").mkdir()
    with rclone_server(tmp_path / "store") as server:
        bucket = private_bucket(server)
        own = Library.open(f"s3://{bucket}/dam", endpoint=server.endpoint)
        write_identity(own)
        direct, by_site = CountingProxy(address_of(own)), CountingProxy(address_of(own))
        library = Library.open(f"s3://{bucket}/dam", endpoint=direct.url)
        try:
            yield Place(direct, by_site, library, Scribe(own, tmp_path))
        finally:
            direct.close()
            by_site.close()


def near_requests(way: Way) -> int:
    status = way.status()
    assert status is not None
    return status.near_requests


def follow(place: Place, members: list[Workstation], threads: int) -> tuple[Crowd, float]:
    """Have them follow for some seconds with a few publishes; how long it took until all of them had the last one."""
    place.direct.forget()
    place.by_site.forget()
    crowd = Crowd(members)
    begun = time.monotonic()
    running = crowd.run(threads)
    try:
        for number in range(PUBLISHES):
            time.sleep(SECONDS / (PUBLISHES + 1))
            place.scribe.publish(f"file{number}-{place.scribe.seq}")
        while not crowd.errors and (crowd.slowest < place.scribe.seq or time.monotonic() < begun + SECONDS):
            assert time.monotonic() < begun + ENOUGH_S, f"somebody is still at {crowd.slowest}"
            time.sleep(0.05)
    finally:
        crowd.stop()
        for thread in running:
            thread.join(ENOUGH_S)
    assert not crowd.errors
    return crowd, time.monotonic() - begun


def test_a_thousand_followers_cost_the_store_what_one_does(place: Place, tmp_path: Path) -> None:
    one, seconds = follow(place, [Workstation(place.library, place.scribe, None)], 1)
    cost_of_one = len(place.direct.requests)
    print(f"1: {one.looks} looks in {seconds:.1f} s: {cost_of_one} requests of the store")
    assert cost_of_one >= one.looks

    with nginx(tmp_path / "site", place.library, store=place.by_site.url) as running:
        site = SiteCache(place.library, running.url, connections=THREADS)
        members = [Workstation(place.library, place.scribe, site) for _ in range(WORKSTATIONS)]
        many, seconds = follow(place, members, THREADS)
        asked = place.by_site.paths()
        near = sum(near_requests(member.way) for member in members)
        print(f"{WORKSTATIONS}: {many.looks} looks, {near} requests in {seconds:.1f} s: {len(place.by_site.requests)} "
              f"of the store by way of nginx, {len(place.direct.requests)} directly")  # fmt: skip
        print(*asked.items(), sep="\n")
    assert many.looks >= WORKSTATIONS
    assert near > WORKSTATIONS * PUBLISHES
    # Each place in the log is asked for once a second at most, a listing every three; what is there, once.
    assert max(asked.values()) <= seconds + 2
    assert all(count == 1 for path, count in asked.items() if "/changes/" in path)
    assert sum(asked.values()) <= 4 * seconds + 4 * place.scribe.seq + 4
    assert len(place.direct.requests) <= near * 0.01
