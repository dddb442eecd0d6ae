"""The control sockets, over the real server and the real client; only the daemon behind them is a stand-in."""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from cache.metrics import CacheStats
from daemon import client, control, paths, routing, serve
from daemon.client import Client
from daemon.peercred import Peer, peer_of
from daemon.serve import Server, listen_tcp, listen_unix
from daemon.status import Status
from manifest.errors import AccessDenied, Busy, ConfigurationError, NotFound, Unavailable, UsageError
from vfs.metrics import AheadStats

MOUNTPOINT = Path("/mnt/stand-in")
CACHE = CacheStats("/c", 1, 2, 3, 4, 5, 6, 7, 8, 9)
STATUS = Status(
    os.getpid(), "1", str(MOUNTPOINT), "pyfuse3", "", "file:///x", "0" * 32, None, None, "/trust.json", False,
    None, None, 1.0, {}, CACHE, AheadStats(), [], None, {}, None, 1, 0, None,
)  # fmt: skip


class StandIn:
    """Answers as a daemon would."""

    def __init__(self) -> None:
        self.stopped: list[bool] = []
        self.busy = False
        self.reloaded = False

    def status(self) -> Status:
        return STATUS

    async def sync(self, show: str, at_least: int | None, timeout_s: float) -> int:
        if show == "none":
            raise NotFound("no show none")
        if show == "slow":
            await trio.sleep(timeout_s)
            raise Unavailable("not in time")
        if show == "bug":
            raise ValueError("a bug")
        return at_least or 7

    async def stop(self, *, lazy: bool) -> None:
        if self.busy and not lazy:
            raise Busy("in use")
        self.stopped.append(lazy)

    async def reload(self) -> None:
        if self.busy:
            raise ConfigurationError("it cannot be handed over")
        self.reloaded = True


@pytest.fixture(autouse=True)
def _run_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@asynccontextmanager
async def running(stand_in: StandIn | None = None) -> AsyncIterator[Server]:
    paths.make_run_folder()
    server = Server(control.make_app(stand_in or StandIn()))
    async with trio.open_nursery() as nursery:
        for surface, mode in (("view", 0o666), ("admin", 0o660)):
            listener = listen_unix(paths.socket_path(MOUNTPOINT, surface), mode=mode)  # type: ignore[arg-type]
            nursery.start_soon(server.serve, listener, surface)
        yield server
        nursery.cancel_scope.cancel()


async def call(function: Any, *arguments: Any, **keywords: Any) -> Any:
    return await trio.to_thread.run_sync(lambda: function(*arguments, **keywords))


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110  nothing to wait on: the server tells nobody
            await trio.sleep(0.01)


def talk(surface: paths.Surface, data: bytes, *, wait_s: float = 10.0) -> bytes:
    """Say raw bytes, and return everything that comes back."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(wait_s)
        connection.connect(str(paths.socket_path(MOUNTPOINT, surface)))
        connection.sendall(data)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        return answer


async def test_the_status_comes_through_whole() -> None:
    async with running():
        found = await call(Client.for_mountpoint, MOUNTPOINT)
        assert await call(found.status) == STATUS.to_json()
        assert [one.mountpoint for one in await call(Client.all)] == [MOUNTPOINT]


async def test_a_sync_returns_the_revision() -> None:
    async with running():
        assert await call(Client(MOUNTPOINT, os.geteuid()).sync, "apollo", 12) == 12
        assert await call(Client(MOUNTPOINT, os.geteuid()).sync, "apollo") == 7


@pytest.mark.parametrize(("show", "kind"), [("none", NotFound), ("slow", Unavailable)])
async def test_an_error_of_the_daemon_is_raised_as_what_it_was(show: str, kind: type[Exception]) -> None:
    async with running():
        with pytest.raises(kind):
            await call(Client(MOUNTPOINT, os.geteuid()).sync, show, timeout_s=0.2)


async def test_a_bug_is_answered_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with running():
        with pytest.raises(Exception, match="bug of damfs"):
            await call(Client(MOUNTPOINT, os.geteuid()).sync, "bug")
    assert "ValueError" in caplog.text


async def test_a_stop_of_a_mount_in_use_is_refused_unless_it_is_lazy() -> None:
    stand_in = StandIn()
    stand_in.busy = True
    async with running(stand_in):
        with pytest.raises(Busy, match="in use"):
            await call(Client(MOUNTPOINT, os.geteuid()).stop)
        await call(Client(MOUNTPOINT, os.geteuid()).stop, lazy=True)
    assert stand_in.stopped == [True]


async def test_the_view_socket_does_not_stop_a_mount() -> None:
    stand_in = StandIn()
    async with running(stand_in):
        with pytest.raises(AccessDenied, match="admin"):
            await call(client._ask, paths.socket_path(MOUNTPOINT, "view"), "POST", "/v1/stop", {"lazy": True}, 5)
    assert stand_in.stopped == []


async def test_a_reload_is_asked_for_through_the_admin_socket_and_may_be_refused() -> None:
    stand_in = StandIn()
    async with running(stand_in):
        assert await call(Client(MOUNTPOINT, os.geteuid()).reload) == os.getpid()
        assert stand_in.reloaded
        stand_in.busy = True
        with pytest.raises(ConfigurationError, match="handed over"):
            await call(Client(MOUNTPOINT, os.geteuid()).reload)
        with pytest.raises(AccessDenied, match="admin"):
            await call(client._ask, paths.socket_path(MOUNTPOINT, "view"), "POST", "/v1/reload", {}, 5)


async def test_the_sockets_have_their_rights() -> None:
    async with running():
        modes = [stat.S_IMODE(paths.socket_path(MOUNTPOINT, surface).stat().st_mode) for surface in paths.SURFACES]
        assert modes == [0o666, 0o660]
        assert sorted(path.suffix for path in paths.run_folder().iterdir()) == [".sock", ".sock"]


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'{"show":1}',
        b'{"show":"a","more":1}',
        b'{"show":"a","at_least":-1}',
        b'{"show":"a","timeout_s":1e9}',
    ],
)
async def test_a_request_that_is_off_is_refused(body: bytes) -> None:
    head = b"POST /v1/sync HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with running():
        answer = await call(talk, "view", head + body)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b'"exit_code":2' in answer


async def test_an_unknown_route_is_a_json_error() -> None:
    async with running():
        with pytest.raises(NotFound, match="GET /v1/nothing"):
            await call(client._ask, paths.socket_path(MOUNTPOINT, "view"), "GET", "/v1/nothing", None, 5)


async def test_a_body_over_the_limit_is_refused_before_it_is_read() -> None:
    head = b"POST /v1/sync HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 100000000\r\n\r\n"
    async with running():
        answer = await call(talk, "view", head + b" " * 70_000)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"more than 65536 bytes" in answer


async def test_a_header_over_the_limit_ends_the_connection() -> None:
    async with running():
        answer = await call(talk, "view", b"GET /v1/status HTTP/1.1\r\nX: " + b"x" * 20_000)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431")


@pytest.mark.alone
async def test_a_header_that_never_ends_is_waited_for_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "HEADER_S", 0.2)
    async with running():
        started = time.monotonic()
        assert await call(talk, "view", b"GET /v1/st") == b""
    assert time.monotonic() - started < 3


async def test_a_body_that_never_comes_is_waited_for_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "BODY_S", 0.2)
    head = b"POST /v1/sync HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 10\r\n\r\n"
    async with running():
        answer = await call(talk, "view", head)
    assert b"did not arrive" in answer


async def test_connections_over_the_limit_are_closed_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "CONNECTIONS_PER_USER_MAX", 2)
    async with running() as server:
        address = str(paths.socket_path(MOUNTPOINT, "view"))
        idle = [await trio.open_unix_socket(address) for _ in range(2)]
        await until(lambda: server.connections == 2)
        third = await trio.open_unix_socket(address)
        with trio.fail_after(5):
            assert await third.receive_some(1) == b""
        for stream in (*idle, third):
            await stream.aclose()
        await until(lambda: not server.connections)
        assert (await call(Client(MOUNTPOINT, os.geteuid()).status))["pid"] == os.getpid()


async def test_a_client_that_goes_is_let_go_at_once() -> None:
    async with running() as server:
        for sent in (b"", b"GET /v1/st", b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n"):
            stream = await trio.open_unix_socket(str(paths.socket_path(MOUNTPOINT, "view")))
            await stream.send_all(sent)
            await until(lambda: server.connections == 1)
            if sent.endswith(b"\r\n\r\n"):
                assert await stream.receive_some()
            gone = trio.current_time()
            await stream.aclose()
            await until(lambda: not server.connections)
            assert trio.current_time() - gone < 2


async def test_who_only_ends_his_side_has_his_answer() -> None:
    async with running():
        stream = await trio.open_unix_socket(str(paths.socket_path(MOUNTPOINT, "view")))
        await stream.send_all(b"GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await stream.send_eof()
        answer = b"".join([piece async for piece in stream])
        assert answer.startswith(b"HTTP/1.1 200")
        await stream.aclose()


async def test_a_client_that_does_not_read_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "REPLY_S", 0.3)
    monkeypatch.setattr(Status, "to_json", lambda _: {"long": "x" * 10_000_000})
    with trio.fail_after(5):
        async with running() as server:
            stream = await trio.open_unix_socket(str(paths.socket_path(MOUNTPOINT, "view")))
            await stream.send_all(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: bool(server.connections))
            await trio.sleep(0.1)
        await stream.aclose()


async def test_a_stale_socket_is_replaced() -> None:
    path = paths.make_run_folder() / paths.socket_path(MOUNTPOINT, "view").name
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    assert client.is_alive(path) is None
    async with running():
        assert await call(client.is_alive, path) == os.getpid()


async def test_a_daemon_that_does_not_answer_counts_as_dead() -> None:
    path = paths.make_run_folder() / "stuck.view.sock"
    with socket.socket(socket.AF_UNIX) as stuck:
        stuck.bind(str(path))
        stuck.listen()
        assert client.is_alive(path, timeout_s=0.3) is None


async def test_a_run_folder_with_a_long_path_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    async with running():
        assert (await call(Client(MOUNTPOINT, os.geteuid()).status))["pid"] == os.getpid()


def test_no_daemon_is_a_clear_error() -> None:
    with pytest.raises(NotFound, match="no damfs is mounted at /mnt/elsewhere"):
        Client.for_mountpoint(Path("/mnt/elsewhere"))
    with pytest.raises(NotFound, match="no damfs is mounted"):
        Client(MOUNTPOINT, os.geteuid()).status()


def test_a_daemon_that_hangs_is_a_clear_error() -> None:
    paths.make_run_folder()
    with socket.socket(socket.AF_UNIX) as stuck:
        stuck.bind(str(paths.socket_path(MOUNTPOINT, "view")))
        stuck.listen()
        with pytest.raises(Unavailable, match=r"within 0\.2 s"):
            Client(MOUNTPOINT, os.geteuid()).status(timeout_s=0.2)


def test_the_peer_of_a_socket_is_known() -> None:
    here, there = socket.socketpair()
    with here, there:
        assert peer_of(here) == Peer(os.getpid(), os.getuid(), os.getgid())
    with socket.socket(socket.AF_INET) as other:
        assert peer_of(other) is None


def test_a_port_that_is_taken_says_which_setting_it_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(Exception, match=r"metrics\.listen"):
        listen_tcp(f"127.0.0.1:{taken.getsockname()[1]}")


def test_usage_errors_are_known_to_the_client() -> None:
    assert client._KINDS["UsageError"] is UsageError
