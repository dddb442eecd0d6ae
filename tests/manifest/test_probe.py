"""A store is proven before it becomes a library."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from manifest import layout
from manifest.errors import AccessDenied, ConfigurationError, NotFound, TransportError, Unavailable
from manifest.identity import create_library, read_identity
from manifest.library import Library
from manifest.probe import probe_store
from tests import stores


def test_a_store_that_honours_conditions_passes_and_nothing_stays(new_place: Library) -> None:
    new_place.make_root()
    probe_store(new_place)
    assert list(new_place.list(layout.PROBE)) == []
    if new_place.url.startswith("file:"):
        assert list(Path(new_place.url.removeprefix("file://")).iterdir()) == []


def test_a_store_that_ignores_conditions_is_refused_and_no_library_is_made(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    with stores.rclone_server(tmp_path) as server:
        library = Library.open("s3://bucket/dam", endpoint=server.endpoint)
        with pytest.raises(ConfigurationError, match=r"ignores conditional puts .*use a store that honours them"):
            create_library(library)
        with pytest.raises(NotFound):
            read_identity(library)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_store_that_looks_first_and_writes_then_is_found_by_the_race() -> None:
    """It refuses whoever comes later; those who come at once all win."""
    stored: dict[bytes, bytes] = {}

    def answer(connection: socket.socket, request: bytes) -> None:
        method, target = request.split(b" ")[:2]
        status = b"200 OK"
        if method == b"PUT" and target in stored:
            status = b"412 Precondition Failed"
        elif method == b"PUT":
            time.sleep(0.1)
            stored[target] = request.partition(b"\r\n\r\n")[2] or connection.recv(100)
        payload = stored[target] if method == b"GET" else b""
        connection.sendall(
            b'HTTP/1.1 %s\r\nETag: "x"\r\nLast-Modified: Fri, 20 Nov 2026 10:30:54 GMT\r\nConnection: close\r\n'
            b"Content-Length: %d\r\n\r\n%s" % (status, len(payload), payload)
        )

    with stores.canned_server(answer) as url:
        library = Library.open("s3://bucket/dam", endpoint=url)
        with pytest.raises(ConfigurationError, match="writers were told that they created one object"):
            probe_store(library, racers=4, rounds=1)


@pytest.mark.parametrize(
    ("url", "endpoint", "expected"),
    [
        ("file:///nonexistent/library", None, Unavailable),
        ("s3://bucket/dam", "http://127.0.0.1:1", Unavailable),
        ("s3://no-such-bucket/dam", "moto", Unavailable),
    ],
)
def test_a_store_that_cannot_be_asked_is_not_called_bad(
    url: str, endpoint: str | None, expected: type[TransportError], s3_server: stores.Server
) -> None:
    library = Library.open(url, endpoint=s3_server.endpoint if endpoint == "moto" else endpoint)
    with pytest.raises(expected):
        probe_store(library)


def test_a_store_that_may_only_be_read_says_so() -> None:
    def answer(connection: socket.socket, _: bytes) -> None:
        body = b"<Error><Code>AccessDenied</Code></Error>"
        connection.sendall(
            b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )

    with stores.canned_server(answer) as url, pytest.raises(AccessDenied, match="check the credentials"):
        probe_store(Library.open("s3://bucket/dam", endpoint=url))
