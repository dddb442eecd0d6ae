"""The proxy does to requests what it was told to, and nothing else."""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.harness import wait_until
from tests.proxy import FAULTS, NONE, Fault, Proxy, always, drawn, in_turn, kind_of, proxy
from tests.proxy.faults import Request
from tests.proxy.wire import Rate

BODY = random.Random(1).randbytes(300_000)
CHUNK = "/bucket/dam/shows/apollo/chunks/ab/abcd"


class Handler(BaseHTTPRequestHandler):
    """Answers every GET with BODY, and a PUT with the length of what came."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def do_PUT(self) -> None:
        said = b"%d" % len(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(said), said))

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A client that goes is what is tested."""


@pytest.fixture(scope="module")
def target() -> Iterator[tuple[str, int]]:
    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield "127.0.0.1", server.server_port
        server.shutdown()


@pytest.fixture
def wire(target: tuple[str, int]) -> Iterator[Proxy]:
    with proxy(target) as made:
        yield made


@contextmanager
def client(wire: Proxy, timeout_s: float = 30) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection("127.0.0.1", wire.port, timeout=timeout_s)
    try:
        yield connection
    finally:
        connection.close()


def get(connection: http.client.HTTPConnection, path: str = CHUNK) -> tuple[int, bytes]:
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_requests_are_passed_on_over_one_connection_and_counted_by_kind(wire: Proxy) -> None:
    with client(wire) as connection:
        assert get(connection) == (200, BODY)
        assert get(connection, "/bucket/dam/shows/apollo/log/00000000000000000001?signed=yes") == (200, BODY)
        connection.request("PUT", "/bucket/dam/damfs.json", BODY)
        assert connection.getresponse().read() == b"%d" % len(BODY)
    assert wire.connections == 1
    assert wire.asked == {"chunks": 1, "log": 1, "other": 1}
    expected = {"chunks": len(BODY), "log": len(BODY), "other": 6}
    wait_until(lambda: wire.sent_bytes == expected, "all to be counted")
    assert not wire.faults


@pytest.mark.parametrize("status", [403, 404, 416, 429, 500, 503])
@pytest.mark.parametrize("page", ["xml", "html"])
def test_a_status_is_answered_with_a_body_of_its_kind_and_the_connection_lives_on(
    wire: Proxy, status: int, page: str
) -> None:
    wire.plan = in_turn([Fault(status=status, page="xml" if page == "xml" else "html"), NONE])
    with client(wire) as connection:
        got, body = get(connection)
        assert got == status
        assert (b"<Code>" if page == "xml" else b"<html>") in body
        assert get(connection) == (200, BODY)
    assert wire.faults == {"chunks": 1}


@pytest.mark.parametrize("name", ["reset before", "reset in the middle"])
def test_a_reset_is_a_reset(wire: Proxy, name: str) -> None:
    wire.inject(FAULTS[name])
    with client(wire) as connection, pytest.raises((ConnectionResetError, http.client.RemoteDisconnected)):
        get(connection)


@pytest.mark.parametrize("name", ["silence", "stall in the middle"])
def test_a_stall_lasts_and_the_next_connection_is_served(wire: Proxy, name: str) -> None:
    wire.inject(FAULTS[name])
    with client(wire, timeout_s=0.3) as connection, pytest.raises(TimeoutError):
        get(connection)
    wire.calm()
    with client(wire) as connection:
        assert get(connection) == (200, BODY)


def test_a_truncated_body_ends_before_its_length(wire: Proxy) -> None:
    wire.inject(FAULTS["truncated"])
    with client(wire) as connection, pytest.raises(http.client.IncompleteRead) as caught:
        get(connection)
    assert caught.value.partial == BODY[: len(BODY) // 2]


def test_a_body_can_be_short_or_long_in_accordance_with_its_length(wire: Proxy) -> None:
    with client(wire) as connection:
        wire.inject(FAULTS["truncated, length agrees"])
        assert get(connection) == (200, BODY[: len(BODY) // 2])
        wire.inject(FAULTS["too long"])
        status, body = get(connection)
        assert (status, body[: len(BODY)], len(body)) == (200, BODY, len(BODY) + 7)


def test_one_byte_is_flipped(wire: Proxy) -> None:
    wire.inject(FAULTS["flipped"])
    with client(wire) as connection:
        _, body = get(connection)
    assert sum(a != b for a, b in zip(body, BODY, strict=True)) == 1


def test_latency_and_a_rate_take_their_time(wire: Proxy) -> None:
    wire.inject(Fault(latency_s=0.1, bytes_per_s=1_500_000))
    started = time.monotonic()
    with client(wire) as connection:
        assert get(connection) == (200, BODY)
    assert time.monotonic() - started > 0.1 + len(BODY) / 1_500_000 - 2 * Rate.BURST_S


def test_all_connections_share_the_total_rate(target: tuple[str, int]) -> None:
    def read(shared: Proxy) -> None:
        with client(shared) as connection:
            assert get(connection) == (200, BODY)

    with proxy(target, bytes_per_s=4_000_000) as wire:
        started = time.monotonic()
        readers = [threading.Thread(target=read, args=(wire,)) for _ in range(4)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(30)
        assert time.monotonic() - started > 4 * len(BODY) / 4_000_000 - 2 * Rate.BURST_S
        wait_until(lambda: wire.sent_bytes["chunks"] == 4 * len(BODY), "all to be counted")


def test_a_plan_is_about_the_kinds_that_it_names_and_the_same_for_a_seed(wire: Proxy) -> None:
    plan = drawn(0.5, [FAULTS["500"], FAULTS["404"]], "chunks")
    asked = [Request(n, "GET", CHUNK, "chunks") for n in range(50)]
    once, again = ([plan(one, random.Random(one.number)) for one in asked] for _ in range(2))
    assert once == again
    assert {one.status for one in once} == {None, 404, 500}
    assert always(FAULTS["500"], "chunks")(Request(0, "GET", "/", "other"), random.Random(0)) == NONE


def test_kinds_are_told_by_the_path() -> None:
    assert kind_of("/b/dam/shows/apollo/recipes/ab") == "recipes"
    assert kind_of("/b/dam/damfs.json") == "other"
    assert kind_of("/b/shows/apollo/show.json") == "other"


def test_a_closed_proxy_ends_what_hangs_in_it(target: tuple[str, int]) -> None:
    with proxy(target, plan=always(FAULTS["silence"])) as wire:
        waiting = socket.create_connection(("127.0.0.1", wire.port), timeout=30)
        waiting.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    with waiting, contextlib.suppress(ConnectionResetError):
        assert waiting.recv(1) == b""
