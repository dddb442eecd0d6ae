"""The site cache as a source: signed requests against real stores, and servers that answer as none should."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
import trio

from cache.sources.protocol import ObjectRef
from cache.sources.site import SiteCache, SiteSource
from manifest.digest import Digest
from manifest.errors import AccessDenied, ConfigurationError, FormatError, NotFound, Unavailable
from manifest.identity import write_identity
from manifest.layout import chunk_key
from manifest.library import Library
from tests.cache.contents import MIB, SHOW, put, sample
from tests.proxy import Mode, proxy
from tests.stores import canned_server, private_bucket, rclone_server

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.stores import Server

KEY = "shows/apollo/recipes/00"


@pytest.fixture(scope="module")
def private_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A store that checks every signature."""
    with rclone_server(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture
def private_library(private_server: Server) -> Library:
    """A library that nobody may read without a signature."""
    library = Library.open(f"s3://{private_bucket(private_server)}/dam", endpoint=private_server.endpoint)
    write_identity(library)
    return library


def endpoint_of(library: Library) -> str:
    assert library.endpoint is not None
    return library.endpoint


def answering(text: bytes) -> Callable[[socket.socket, bytes], None]:
    """A server that says this, whatever it is asked."""
    return lambda connection, _: connection.sendall(text)


def reply(status: str, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


NO_KEY = b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>"
NO_BUCKET = b"<?xml version='1.0'?><Error><Code>NoSuchBucket</Code></Error>"


def served_by(library: Library) -> tuple[str, int]:
    parts = urlsplit(endpoint_of(library))
    return str(parts.hostname), int(parts.port or 80)


async def test_objects_come_through_signed_requests_from_a_store_that_checks_them(private_library: Library) -> None:
    made = put(private_library, sample(1, MIB), recipe_object=True)
    site = SiteCache(private_library, endpoint_of(private_library))
    source = SiteSource(site)
    digest, length = made.recipe[0]
    deadline = trio.current_time() + 20
    assert bytes(await source.fetch(ObjectRef(SHOW, "chunk", digest, length), deadline)) == made.data[:length]
    assert await source.fetch(ObjectRef(SHOW, "recipe", made.content, None), deadline) == made.recipe.to_object()
    with pytest.raises(NotFound):
        await source.fetch(ObjectRef(SHOW, "chunk", Digest.of(b"none"), 4), deadline)
    with pytest.raises(FormatError):
        await source.fetch(ObjectRef(SHOW, "chunk", digest, length - 1), deadline)
    status = source.status()
    assert (status.name, status.fetches, status.errors) == ("site", 2, 2)
    assert status.url == site.url


def test_a_request_without_a_signature_is_refused_and_so_is_an_expired_one(private_library: Library) -> None:
    site = SiteCache(private_library, endpoint_of(private_library))
    target = private_library.sign("damfs.json", expires_s=1)
    assert site.ask(target, 10).status == 200
    assert site.ask(target.partition("?")[0], 10).status in (400, 403)
    time.sleep(2.1)
    assert site.ask(target, 10).status in (400, 403)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (reply("404 Not Found", NO_KEY), NotFound),
        (reply("404 Not Found", NO_BUCKET), Unavailable),
        (reply("404 Not Found", b"<html>nothing here</html>"), Unavailable),
        (reply("403 Forbidden", b"<Error><Code>AccessDenied</Code></Error>"), AccessDenied),
        (reply("401 Unauthorized", b""), AccessDenied),
        (reply("302 Found", b"", "Location: http://127.0.0.1:1/"), Unavailable),
        (reply("206 Partial Content", b"abc", "Content-Range: bytes 0-2/9"), Unavailable),
        (reply("304 Not Modified", b""), Unavailable),
        (reply("429 Too Many Requests", b""), Unavailable),
        (reply("500 Internal Server Error", b"<html>"), Unavailable),
        (reply("200 OK", b"\x1f\x8b", "Content-Encoding: gzip"), Unavailable),
        (reply("200 OK", b"0123456789A"), FormatError),
        (b"HTTP/1.1 200 OK\r\n\r\n" + bytes(11), FormatError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", Unavailable),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n", Unavailable),
        (b"HTTP/1.1 200 OK\r\nContent-Length: nine\r\n\r\n", Unavailable),
        (b"SSH-2.0-OpenSSH_9.2\r\n", Unavailable),
        (b"", Unavailable),
    ],
)
def test_each_answer_is_one_of_the_errors_of_a_source(
    answer: bytes, error: type[Exception], s3_library: Library
) -> None:
    with canned_server(answering(answer)) as url, pytest.raises(error):
        SiteCache(s3_library, url).get(KEY, timeout_s=5, bytes_max=10)


def test_not_more_than_one_byte_too_many_is_read(s3_library: Library) -> None:
    sent = threading.Event()

    def endless(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(bytes(65536))
            sent.set()

    with canned_server(endless) as url:
        begun = time.monotonic()
        with pytest.raises(FormatError):
            SiteCache(s3_library, url).get(KEY, timeout_s=60, bytes_max=10)
        assert sent.wait(10)
        assert time.monotonic() - begun < 30


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\nX-Slow: ", HEAD], ids=["nothing", "headers", "body"])
def test_an_answer_that_drips_ends_at_the_deadline(said: bytes, s3_library: Library) -> None:
    ended = threading.Event()

    def drip(connection: socket.socket, _: bytes) -> None:
        try:
            connection.sendall(said)
            while True:
                time.sleep(0.02)
                if said:
                    connection.sendall(b"a")
                elif ended.wait(20):
                    return
        finally:
            ended.set()

    with canned_server(drip) as url:
        begun = time.monotonic()
        with pytest.raises(Unavailable, match="in time"):
            SiteCache(s3_library, url).get(KEY, timeout_s=0.5, bytes_max=2000)
        assert 0.4 < time.monotonic() - begun < 15  # by far less than the drip would take
        ended.set()


def test_deadlines_count_after_the_machine_had_no_thread_to_watch_over_them(
    s3_library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()

    def drip(connection: socket.socket, _: bytes) -> None:
        try:
            connection.sendall(HEAD)
            while not ended.wait(0.02):
                connection.sendall(b"a")
        finally:
            ended.set()

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with canned_server(drip) as url:
        site = SiteCache(s3_library, url)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(Unavailable, match="can't start new thread"):
                site.get(KEY, timeout_s=0.5, bytes_max=2000)
        with pytest.raises(Unavailable, match="in time"):
            site.get(KEY, timeout_s=0.5, bytes_max=2000)
        ended.set()


def test_a_tls_handshake_that_never_ends_is_left_at_the_deadline(s3_library: Library) -> None:
    def drip(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"\x16\x03\x03\x40\x00")  # a record of 16 KiB
        while True:
            time.sleep(0.02)
            connection.sendall(b"\x00")

    with canned_server(drip) as url:
        begun = time.monotonic()
        with pytest.raises(Unavailable):
            SiteCache(s3_library, url.replace("http:", "https:"), connect_timeout_s=5).get(KEY, timeout_s=0.5)
        assert time.monotonic() - begun < 15


def test_a_site_that_is_down_is_unavailable_at_once_and_used_again_when_it_is_back(s3_library: Library) -> None:
    made = put(s3_library, sample(2, 1000))
    digest, length = made.recipe[0]
    with proxy(served_by(s3_library)) as site_proxy:
        # The proxy has another port than the store, which the signature covers; moto does not look at it.
        site = SiteCache(s3_library, site_proxy.url)
        key = chunk_key(SHOW, digest)
        assert site.get(key, bytes_max=length) == made.data
        site_proxy.mode = Mode.REFUSE
        with pytest.raises(Unavailable):
            site.get(key, timeout_s=5)
        site_proxy.mode = Mode.PASS
        assert site.get(key, timeout_s=20) == made.data


def test_one_connection_serves_one_request_after_the_other(private_library: Library) -> None:
    made = put(private_library, sample(2, MIB))
    with proxy(served_by(private_library)) as site_proxy:
        site = SiteCache(private_library, site_proxy.url)
        for number in range(len(made.recipe)):
            digest, length = made.recipe[number]
            with pytest.raises(AccessDenied):  # signed for another port: an error's body is read to its end as well
                site.get(chunk_key(SHOW, digest), bytes_max=length)
        assert site_proxy.connections == 1


def test_a_connection_that_the_server_closed_meanwhile_costs_no_error(s3_library: Library) -> None:
    connections = []

    def once(connection: socket.socket, _: bytes) -> None:
        connections.append(connection)
        connection.sendall(reply("200 OK", b"bytes"))
        connection.recv(65536)  # the next request comes, and nobody answers it

    with canned_server(once) as url:
        site = SiteCache(s3_library, url)
        assert site.get(KEY, timeout_s=10) == b"bytes"
        assert site.get(KEY, timeout_s=10) == b"bytes"
        assert len(connections) == 2


@pytest.mark.parametrize("url", ["http://site/dam", "ftp://site", "site:8080", "https://user@site"])
def test_what_is_no_site_cache_is_refused(url: str, s3_library: Library) -> None:
    with pytest.raises(ConfigurationError, match="no site cache"):
        SiteCache(s3_library, url)


def test_a_library_in_a_folder_has_no_site_cache(file_library: Library) -> None:
    with pytest.raises(ConfigurationError, match="before an S3 store"):
        SiteCache(file_library, "http://site")
    with pytest.raises(ConfigurationError, match="cannot be signed"):
        file_library.sign("damfs.json", expires_s=60)


def test_certificates_are_read_when_the_site_cache_is_set_up(s3_library: Library, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"site\.ca"):
        SiteCache(s3_library, "https://site", ca=tmp_path / "missing.pem")
    with pytest.raises(ConfigurationError, match=r"site\.cert"):
        SiteCache(s3_library, "https://site", cert=tmp_path / "missing.pem")
    with pytest.raises(ConfigurationError, match="for https"):
        SiteCache(s3_library, "http://site", cert=tmp_path / "missing.pem")
