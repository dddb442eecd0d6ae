"""HTTP for a handful of local clients: our accept loop, Hypercorn's protocol, limits on everything.

``trio.serve_listeners`` accepts, so that SO_PEERCRED and the socket's surface are known; each connection is handed to
Hypercorn's ``TCPServer`` with both in its ASGI state (``request.state.peer``, ``request.state.surface``).

Limits: connections in all and per user, bytes of a header and of a body, seconds for a header, a body, a reply, and a
connection. What is over a limit is closed; it never waits in a queue.
"""

from __future__ import annotations

import grp
import logging
import os
import socket
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext

from daemon.peercred import Peer, peer_of
from daemon.sockets import address_of
from manifest.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.types import ASGIApp

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 128
CONNECTIONS_PER_USER_MAX = 48
BODY_BYTES_MAX = 64 * 1024
HEADER_S = 5
REPLY_S = 10.0
CONNECTION_S = 700.0
"""Longer than the longest sync that may be asked for."""


class Server:
    """Serves one ASGI application on listeners of several surfaces.

    Invariant: ``_users`` counts the connections that are open now, per uid (-1 for a TCP client); ``_idle`` is set
    while there are none.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = ASGIWrapper(app)  # type: ignore[arg-type]  # hypercorn spells ASGI's types in its own way
        self._users: Counter[int] = Counter()
        self._idle = trio.Event()
        self._idle.set()
        self._context = WorkerContext(None)
        self._config = Config()
        self._config.errorlog = logging.getLogger("hypercorn.error")
        self._config.accesslog = None
        self._config.keep_alive_timeout = HEADER_S
        self._config.include_server_header = False

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return self._users.total()

    async def serve(self, listener: trio.SocketListener, surface: str) -> None:
        """Accept connections until cancelled; cancellation closes those that are open."""

        async def handle(stream: trio.SocketStream) -> None:
            await self._connection(stream, surface)

        await trio.serve_listeners(handle, [listener])

    async def drain(self, deadline_s: float) -> None:
        """Wait until no connection is open, at most ``deadline_s``."""
        await self._context.terminated.set()
        with trio.move_on_after(deadline_s):
            await self._idle.wait()

    async def _connection(self, stream: trio.SocketStream, surface: str) -> None:
        try:
            peer = peer_of(stream.socket)
        except OSError:
            return await stream.aclose()
        user = peer.uid if peer else -1
        if self.connections >= CONNECTIONS_MAX or self._users[user] >= CONNECTIONS_PER_USER_MAX:
            log.warning("refused a connection of %s: too many are open", peer or "a TCP client")
            return await stream.aclose()
        self._users[user] += 1
        if self._idle.is_set():
            self._idle = trio.Event()
        try:
            with trio.move_on_after(CONNECTION_S):
                await self._speak(stream, peer, surface)
        except Exception:
            log.exception("a connection of %s failed", peer or "a TCP client")
        finally:
            self._users[user] -= 1
            self._users += Counter()  # drops the users that have none
            if not self.connections:
                self._idle.set()
            await trio.aclose_forcefully(stream)
        return None

    async def _speak(self, stream: trio.SocketStream, peer: Peer | None, surface: str) -> None:
        state: Any = {"peer": peer, "surface": surface}
        bounded: Any = _BoundedStream(stream)
        await _Connection(self._app, self._config, self._context, state, bounded).run()


class _Connection(TCPServer):
    """Hypercorn's, but that a client that goes while nothing is being answered is let go at once.

    Hypercorn's own ends only when the time for the next header is over.
    """

    async def _read_data(self) -> None:
        await super()._read_data()
        await self.idle_task.stop()


class _BoundedStream:
    """A stream whose sends end: Hypercorn shields them, and a client that does not read would block a stop."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.socket = stream.socket

    async def send_all(self, data: bytes) -> None:
        with trio.move_on_after(REPLY_S) as scope:
            await self._stream.send_all(data)
        if scope.cancelled_caught:
            await trio.aclose_forcefully(self._stream)
            raise trio.BrokenResourceError("the client does not read its reply")

    async def receive_some(self, bytes_max: int) -> bytes:
        return await self._stream.receive_some(bytes_max)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


def listen_unix(path: Path, *, mode: int, group: str | None = None) -> trio.SocketListener:
    """A listening Unix socket at ``path``, whatever lay there before, with exactly these rights.

    The socket gets its rights under a temporary name and takes its place by a rename, so there is no moment at which
    too many may connect. Raises ConfigurationError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        temporary.unlink(missing_ok=True)
        with address_of(temporary) as address:
            listener.bind(address)
        os.chmod(temporary, mode)  # noqa: PTH101  bind(2) made it just now
        if group is not None:
            os.chown(temporary, -1, grp.getgrnam(group).gr_gid)
        temporary.rename(path)
        listener.listen(64)
    except (OSError, KeyError) as error:
        listener.close()
        temporary.unlink(missing_ok=True)
        raise ConfigurationError(f"no control socket at {path}: {error}") from error
    return trio.SocketListener(trio.socket.from_stdlib_socket(listener))


class OwnedSocket:
    """A socket's name that is ours until somebody replaces it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = path.lstat().st_ino

    def remove(self) -> None:
        """Remove the name, unless another daemon has taken it."""
        with suppress(OSError):
            if self._path.lstat().st_ino == self._inode:
                self._path.unlink()


def listen_tcp(address: str) -> tuple[trio.SocketListener, str]:
    """A listening TCP socket for ``host:port``, and the address it got. Raises ConfigurationError."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
            listener.listen(16)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise ConfigurationError(f"metrics.listen {address}: {error}; choose another port, or off") from error
    bound = listener.getsockname()[:2]
    text = f"[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"{bound[0]}:{bound[1]}"
    return trio.SocketListener(trio.socket.from_stdlib_socket(listener)), text
