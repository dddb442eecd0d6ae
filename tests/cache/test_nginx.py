"""The real nginx, as `damfs site setup` configures it, between the cache and real stores."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import trio

from cache.sources.central import CentralSource
from cache.sources.protocol import ObjectRef
from cache.sources.site import SiteCache, SiteSource
from manifest.digest import Digest
from manifest.errors import AccessDenied, NotFound, Unavailable
from manifest.identity import write_identity
from manifest.layout import chunk_key, log_key
from manifest.library import Library
from tests.cache.contents import KIB, MIB, SHOW, FaultySource, central, open_sample, opened, put, read_all, sample
from tests.counting import counting
from tests.harness import wait_until
from tests.nginx import nginx
from tests.proxy import Mode
from tests.stores import Server, canned_server, private_bucket, rclone_server

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

    from tests.counting import CountingProxy
    from tests.nginx import Nginx

HTML = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>"


@pytest.fixture(scope="module")
def private_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A store that checks every signature."""
    with rclone_server(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture(scope="module")
def library(private_server: Server) -> Library:
    """A library in a private bucket."""
    made = Library.open(f"s3://{private_bucket(private_server)}/dam", endpoint=private_server.endpoint)
    write_identity(made)
    return made


@pytest.fixture(scope="module")
def store(library: Library) -> Iterator[CountingProxy]:
    """What stands between nginx and the store, and counts."""
    with counting(library) as made:
        yield made


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, library: Library, store: CountingProxy) -> Iterator[Nginx]:
    with nginx(tmp_path_factory.mktemp("site"), library, store=store.url) as made:
        yield made


@pytest.fixture
def site(library: Library, running: Nginx, store: CountingProxy) -> SiteCache:
    """The site cache as a workstation sees it; the store's requests are counted from here on."""
    store.mode = Mode.PASS
    store.forget()
    return SiteCache(library, running.url)


def status_of(site: SiteCache, library: Library, key: str, expires_s: int = 600) -> tuple[int, str]:
    """The status, and whether it came from the cache."""
    reply = site.ask(library.sign(key, expires_s=expires_s), 20)
    return reply.status, reply.headers.get("x-cache-status", "")


def one_chunk(library: Library, seed: int, size: int = 100_000) -> tuple[str, bytes]:
    made = put(library, sample(seed, size, chunk_bytes=size * 2))
    return chunk_key(SHOW, made.recipe[0][0]), made.data


def test_a_second_request_is_a_hit_whoever_has_signed_it(
    site: SiteCache, library: Library, store: CountingProxy
) -> None:
    key, data = one_chunk(library, 1)
    assert site.get(key) == data
    assert status_of(site, library, key, 601) == (200, "HIT")
    assert site.get(key) == data
    assert sum(store.paths(key).values()) == 1


def test_a_signature_that_has_expired_gets_nothing_from_the_store_and_is_not_kept(
    site: SiteCache, library: Library
) -> None:
    key, data = one_chunk(library, 2)
    late = library.sign(key, expires_s=1)
    time.sleep(2.1)
    assert site.ask(late, 20).status in (400, 403)
    assert site.get(key) == data
    assert site.ask(late, 20).status == 200  # what is cached is answered: so the configuration says who may ask


@pytest.mark.parametrize(
    "change",
    [
        lambda target: target.partition("?")[0],
        lambda target: target + "&partNumber=1",
        lambda target: target.replace("/shows/", "/shows/../shows/"),
        lambda target: target.replace("/shows/", "/%73hows/"),
        lambda target: target.replace("/dam/", "/other/"),
        lambda target: target.replace("/chunks/", "/secrets/"),
        lambda _: "/",
    ],
)
def test_what_is_no_signed_request_of_this_library_is_refused_without_asking_the_store(
    change: object, site: SiteCache, library: Library, store: CountingProxy
) -> None:
    key, _ = one_chunk(library, 3)
    reply = site.ask(change(library.sign(key, expires_s=600)), 20)  # type: ignore[operator]
    assert (reply.status, reply.code) == (403, "")
    assert not store.requests


@pytest.mark.parametrize("method", ["PUT", "DELETE", "POST", "HEAD", "PROPFIND"])
def test_nothing_but_get_passes(method: str, site: SiteCache, library: Library, store: CountingProxy) -> None:
    key, _ = one_chunk(library, 4)
    assert site.ask(library.sign(key, expires_s=600), 20, method=method).status == 405
    assert not store.requests


def test_who_may_not_ask_gets_nothing_of_what_is_cached_either(library: Library, tmp_path: Path) -> None:
    key, data = one_chunk(library, 5)
    with nginx(tmp_path, library, allow=("127.0.0.1", "192.0.2.0/24")) as open_to_us:
        assert SiteCache(library, open_to_us.url).get(key) == data
    with nginx(tmp_path, library, allow=("192.0.2.0/24",)) as closed:  # with the same cache
        assert [path for path in closed.kept() if data in path.read_bytes()]
        with pytest.raises(AccessDenied, match="does not let this machine in"):
            SiteCache(library, closed.url).get(key)


def test_a_missing_object_is_absent_and_there_as_soon_as_it_is_put(
    site: SiteCache, library: Library, store: CountingProxy
) -> None:
    made = sample(6, 1000)
    key = chunk_key(SHOW, made.recipe[0][0])
    for _ in range(2):
        with pytest.raises(NotFound):
            site.get(key)
    put(library, made)
    wait_until(lambda: status_of(site, library, key)[0] == 200, "the object")
    assert site.get(key) == made.data


def test_the_end_of_a_log_is_asked_for_once_a_second_and_a_new_entry_is_seen_within_two(
    site: SiteCache, library: Library, store: CountingProxy
) -> None:
    key = log_key(SHOW, 1)
    begun = time.monotonic()
    asked = 0
    while time.monotonic() < begun + 3.5:
        with pytest.raises(NotFound):
            site.get(key)
        asked += 1
        time.sleep(0.02)
    # Every second of the clock once; under load a second may pass without any.
    assert 1 <= store.paths(key)[store_path(library, key)] <= time.monotonic() - begun + 2
    assert asked > 5
    library.create(key, b"an entry")
    put_at = time.monotonic()
    wait_until(lambda: status_of(site, library, key)[0] == 200, "the entry")
    assert time.monotonic() - put_at < 10  # two seconds, and what a busy machine adds
    assert site.get(key) == b"an entry"
    store.forget()
    time.sleep(2)
    assert site.get(key) == b"an entry"
    assert not store.requests  # an entry is kept for good


def store_path(library: Library, key: str) -> str:
    return library.sign(key, expires_s=60).partition("?")[0]


def test_what_is_cached_is_there_while_the_store_is_not(
    site: SiteCache, library: Library, store: CountingProxy
) -> None:
    key, data = one_chunk(library, 7)
    assert site.get(key) == data
    store.mode = Mode.REFUSE
    assert site.get(key) == data
    with pytest.raises(Unavailable, match="502"):
        site.get(one_chunk(library, 8)[0])
    store.mode = Mode.PASS
    assert site.get(one_chunk(library, 8)[0])


def test_while_the_store_is_away_nobody_is_told_for_long_that_nothing_is_new(
    site: SiteCache, library: Library, store: CountingProxy
) -> None:
    key = log_key("gemini", 1)
    with pytest.raises(NotFound):
        site.get(key)
    store.mode = Mode.REFUSE
    wait_until(lambda: status_of(site, library, key)[0] == 502, "the store to be missed")


def test_a_page_of_somebody_else_is_not_kept(library: Library, tmp_path: Path) -> None:
    """A portal, or a proxy in between, that answers everything with 200 and a page."""
    key, data = one_chunk(library, 9)
    portal = threading.Event()

    def answer(connection: socket.socket, _: bytes) -> None:
        portal.set()
        connection.sendall(HTML)

    with canned_server(answer) as url, nginx(tmp_path, library, store=url) as wrong:
        site = SiteCache(library, wrong.url)
        for wanted in (key, log_key(SHOW, 77)):
            assert site.get(wanted) == b"<html>"  # who asked finds out: nothing is trusted
            assert status_of(site, library, wanted) == (200, "MISS")
        assert portal.is_set()
        assert not [path for path in wrong.kept() if b"<html>" in path.read_bytes()]
    with nginx(tmp_path, library) as right:
        assert SiteCache(library, right.url).get(key) == data


async def test_damaged_bytes_in_the_site_cache_are_fetched_from_the_store_and_counted(
    library: Library, running: Nginx, site: SiteCache, tmp_path: Path, expects_log: pytest.LogCaptureFixture
) -> None:
    made = put(library, sample(10, 200_000, chunk_bytes=MIB))
    key = chunk_key(SHOW, made.recipe[0][0])
    assert await trio.to_thread.run_sync(site.get, key) == made.data
    [kept] = [path for path in running.kept() if made.data in path.read_bytes()]
    with kept.open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        file.write(b"damaged")
    source, last = SiteSource(site), central(library)
    async with opened(tmp_path / "cache", [source, last]) as cache:
        handle = await open_sample(cache, made)
        assert await read_all(handle) == made.data
        handle.release()
        assert cache.counters.verification_failures == {"site": 1}
        assert (source.status().fetches, source.status().errors, last.answered) == (1, 1, 1)
    assert "source site: DigestMismatch" in expects_log.text


async def test_a_site_cache_that_is_down_is_passed_by(
    library: Library, tmp_path: Path, expects_log: pytest.LogCaptureFixture
) -> None:
    made = put(library, sample(11, 100_000))
    with nginx(tmp_path / "site", library) as running:
        source = SiteSource(SiteCache(library, running.url))
        running.process.send_signal(signal.SIGTERM)
        await trio.to_thread.run_sync(running.process.wait, 20)
    async with opened(tmp_path / "cache", [source, central(library)]) as cache:
        handle = await open_sample(cache, made)
        assert await read_all(handle) == made.data
        handle.release()
    assert not source.status().healthy
    assert "source site: Unavailable" in expects_log.text


async def test_64_readers_of_a_cold_file_cost_one_fetch_a_chunk(
    library: Library, site: SiteCache, store: CountingProxy, tmp_path: Path
) -> None:
    made = put(library, sample(12, 2 * MIB, chunk_bytes=256 * KIB))
    async with opened(tmp_path / "cache", [SiteSource(site), CentralSource(library)]) as cache:
        whole: list[bytes] = []

        async def read() -> None:
            handle = await open_sample(cache, made)
            whole.append(await read_all(handle, deadline_s=60))
            handle.release()

        async with trio.open_nursery() as nursery:
            for _ in range(64):
                nursery.start_soon(read)
        assert whole == [made.data] * 64
    asked = store.paths("/chunks/")
    assert set(asked.values()) == {1}
    assert len(asked) == len(made.recipe)


async def test_50_workstations_reading_one_plate_cost_the_store_one_read_of_it(
    library: Library, running: Nginx, site: SiteCache, store: CountingProxy, tmp_path: Path
) -> None:
    """Each with a cache, connections and a store of its own, which it need not ask."""
    frames = [put(library, sample(100 + n, 192 * KIB, chunk_bytes=96 * KIB)) for n in range(4)]
    directly: list[FaultySource] = []

    async def workstation(number: int) -> None:
        last = central(library)
        directly.append(last)
        source = SiteSource(SiteCache(library, running.url, connections=2), limiter_threads=2)
        async with opened(tmp_path / f"{number}", [source, last], size_bytes=8 * MIB) as cache:
            for frame in frames:
                handle = await open_sample(cache, frame)
                assert await read_all(handle, deadline_s=100) == frame.data
                handle.release()
            assert source.status().fetches == sum(len(frame.recipe) for frame in frames)

    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(workstation, number)
    asked = store.paths("/chunks/")
    plate_bytes = sum(frame.size for frame in frames)
    assert sorted(asked) == sorted({store_path(library, chunk_key(SHOW, d)) for f in frames for d in digests(f)})
    assert set(asked.values()) == {1}
    assert plate_bytes <= store.answered_bytes < 1.1 * plate_bytes
    assert sum(len(last.asked) for last in directly) == 0


def digests(made: object) -> list[Digest]:
    recipe = made.recipe  # type: ignore[attr-defined]
    return [recipe[number][0] for number in range(len(recipe))]


def test_a_crowd_that_asks_for_one_object_at_once_costs_one_request(
    site: SiteCache, library: Library, store: CountingProxy
) -> None:
    key, data = one_chunk(library, 13, 2 * MIB)
    with ThreadPoolExecutor(32) as pool:
        assert all(answer == data for answer in pool.map(lambda _: site.get(key, timeout_s=60), range(64)))
    assert sum(store.paths(key).values()) == 1


async def test_a_source_asks_the_site_cache_for_recipes_too(site: SiteCache, library: Library) -> None:
    made = put(library, sample(14, MIB), recipe_object=True)
    ref = ObjectRef(SHOW, "recipe", made.content, None)
    assert await SiteSource(site).fetch(ref, trio.current_time() + 20) == made.recipe.to_object()


def test_moto_is_served_as_well(s3_library: Library, tmp_path: Path) -> None:
    key, data = one_chunk(s3_library, 15)
    with nginx(tmp_path, s3_library) as running:
        site = SiteCache(s3_library, running.url)
        assert (site.get(key), site.get(key)) == (data, data)
        assert status_of(site, s3_library, key) == (200, "HIT")
        with pytest.raises(NotFound):
            site.get(log_key(SHOW, 1))
