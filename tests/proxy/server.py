"""The proxy: a thread a connection, bodies moved by splice(2); faults by plan.

State: the connections, the plan, what was counted. Everything may be changed and read at any time by any thread.
Invariant: a connection's thread waits only where ``close`` and a change of ``mode`` wake it.
"""

from __future__ import annotations

import random
import socket
import threading
from collections import Counter
from contextlib import contextmanager, suppress
from enum import Enum
from typing import TYPE_CHECKING

from tests.proxy.faults import NONE, S3_CODES, Fault, Plan, Request, always, kind_of
from tests.proxy.wire import PIECE_BYTES, Connection, Ended, Head, Held, Pipe, Rate

if TYPE_CHECKING:
    from collections.abc import Iterator

PAUSE_S_MIN = 0.001
"""Going to sleep for less costs more."""


class Mode(Enum):
    """What happens to connections, new and old, whatever is asked on them."""

    PASS = "pass"
    STALL = "stall"  # connections are accepted, bytes are taken, nothing comes back
    REFUSE = "refuse"  # connections are reset at once


class Closed(Exception):
    """The proxy is being closed, or a connection was given up by a change of mode."""


class Proxy:
    """Listens on a free loopback port and passes requests to ``target``.

    ``plan`` says what happens to each request, ``total`` limits all bodies together. ``asked``, ``sent_bytes``
    (to the client) and ``faults`` count by the kind of object that was asked for; ``busy`` is how many requests are
    under way, until their connection is given up by the client if nothing else ends them, ``busy_max`` how many were.
    """

    def __init__(
        self, target: tuple[str, int], *, plan: Plan | None = None, seed: int = 0, bytes_per_s: float | None = None
    ) -> None:
        self.target = target
        self.plan: Plan = plan or always(NONE)
        self.seed = seed
        self.total = None if bytes_per_s is None else Rate(bytes_per_s)
        self.connections = self.refused = 0
        self.asked: Counter[str] = Counter()
        self.sent_bytes: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.busy = self.busy_max = 0
        self._numbers = iter(range(1 << 62))
        self._mode = Mode.PASS
        self._changed = threading.Condition()
        self._open: set[Connection] = set()
        self._closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def mode(self) -> Mode:
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        with self._changed:
            self._mode = mode
            self._changed.notify_all()
            if mode is not Mode.STALL:
                # What was held up is lost, as after a cable was pulled; what was passing is cut off.
                self._shut_all()

    def inject(self, fault: Fault, *kinds: str) -> None:
        """This happens to every request (of these kinds) from now on."""
        self.plan = always(fault, *kinds)

    def calm(self) -> None:
        """Nothing happens to requests from now on; what has happened to earlier ones stays as it is."""
        self.plan = always(NONE)

    def forget_counts(self) -> None:
        """Count from 0 again."""
        for counter in (self.asked, self.sent_bytes, self.faults):
            counter.clear()

    def close(self) -> None:
        """End every connection and the listener."""
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
            self._shut_all()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # a thread in accept() does not notice a close
        self._listener.close()

    def _shut_all(self) -> None:
        for connection in list(self._open):
            connection.shut()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(Connection(accepted),), daemon=True).start()

    def _serve(self, client: Connection) -> None:
        if self._mode is Mode.REFUSE or self._closing.is_set():
            self.refused += 1
            client.reset()
            return
        exchange = _Exchange(self, client)
        self._open.add(client)
        try:
            with suppress(OSError, Ended, Closed):
                while exchange.once():
                    pass
        finally:
            self._open.discard(client)
            exchange.close()

    # -- for the exchanges

    def pass_or_wait(self) -> None:
        """Return when bytes may pass. Raises Closed."""
        if self._mode is Mode.STALL:
            with self._changed:
                self._changed.wait_for(lambda: self._mode is not Mode.STALL or self._closing.is_set())
            raise Closed
        if self._closing.is_set():
            raise Closed

    def sleep(self, seconds: float) -> None:
        if seconds > 0 and self._closing.wait(seconds):
            raise Closed

    def stall(self, client: Connection) -> None:
        """Say nothing until the client goes or the proxy is closed."""
        client.socket.settimeout(0.2)
        while not self._closing.is_set():
            with suppress(TimeoutError):
                if not client.socket.recv(4096):
                    break
        raise Closed

    def decide(self, request: Request) -> tuple[Fault, random.Random]:
        """What happens to a request; it is counted."""
        rng = random.Random(f"{self.seed} {request.number}")
        fault = self.plan(request, rng)
        with self._changed:
            self.busy += 1
            self.busy_max = max(self.busy, self.busy_max)
            self.asked[request.kind] += 1
            if fault != NONE:
                self.faults[request.kind] += 1
        return fault, rng

    def ended(self) -> None:
        """What was decided about is over."""
        with self._changed:
            self.busy -= 1

    def sent(self, request: Request, count: int) -> None:
        """So many bytes of an answer's body have gone to the client."""
        with self._changed:
            self.sent_bytes[request.kind] += count

    def next_number(self) -> int:
        return next(self._numbers)

    def opened(self, connection: Connection) -> None:
        self._open.add(connection)

    def closed(self, connection: Connection) -> None:
        self._open.discard(connection)


class _Exchange:
    """The requests of one client's connection, one after the other."""

    def __init__(self, proxy: Proxy, client: Connection) -> None:
        self._proxy = proxy
        self._client = client
        self._server: Connection | None = None
        self._pipe = Pipe()
        self._paces: list[Rate] = []

    def close(self) -> None:
        self._client.socket.close()
        self._leave_server()
        self._pipe.close()

    def once(self) -> bool:
        """One request and its answer; whether another one may follow. Raises Ended, Closed, OSError."""
        asked = self._client.head()
        method, path, _ = asked.first.decode("latin-1").split(" ", 2)
        request = Request(self._proxy.next_number(), method, path, kind_of(path))
        if asked.fields.get(b"expect", b"").lower() == b"100-continue":
            self._client.socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            asked = Head(
                b"\r\n".join(line for line in asked.raw.split(b"\r\n") if not line.lower().startswith(b"expect"))
            )
        body = self._body_of(asked)
        self._proxy.pass_or_wait()
        fault, rng = self._proxy.decide(request)
        try:
            self._answer(request, asked, body, fault, rng)
        finally:
            self._proxy.ended()
        return not asked.ends_connection

    def _answer(self, request: Request, asked: Head, body: bytes, fault: Fault, rng: random.Random) -> None:
        self._proxy.sleep(fault.latency_s + rng.uniform(0, fault.jitter_s))
        self._proxy.pass_or_wait()
        if fault.ends_at == 0:
            self._end(fault)
        self._paces = [Rate(fault.bytes_per_s)] if fault.bytes_per_s else []
        if self._proxy.total is not None:
            self._paces.append(self._proxy.total)
        if fault.status is not None:
            self._answer_with(*_page(fault.status, fault.page, request.path), fault, request)
            return
        answer = self._ask_server(asked, body)
        self._proxy.pass_or_wait()
        if request.method == "HEAD" or answer.status in (204, 304):
            self._client.socket.sendall(answer.raw)
        elif answer.length is None:
            assert self._server is not None
            whole = self._server.whole_body(answer)
            if not answer.is_chunked:
                self._leave_server()
            self._answer_with(answer, whole, fault, request)
        else:
            self._pass_on(answer, answer.length, fault, request)
        if answer.ends_connection:
            self._leave_server()

    def _body_of(self, asked: Head) -> bytes:
        parts, left = [], asked.length or 0
        while left:
            parts.append(self._client.take(left))
            left -= len(parts[-1])
        return b"".join(parts)

    def _ask_server(self, asked: Head, body: bytes) -> Head:
        if self._server is not None and not self._server.is_alive():
            self._leave_server()
        if self._server is None:
            self._server = Connection(socket.create_connection(self._proxy.target, timeout=10))
            self._server.socket.settimeout(None)
            self._proxy.opened(self._server)
        self._server.socket.sendall(asked.raw)
        if body:
            self._server.socket.sendall(body)
        while (answer := self._server.head()).status == 100:
            pass
        return answer

    def _leave_server(self) -> None:
        if self._server is not None:
            self._proxy.closed(self._server)
            self._server.socket.close()
            self._server = None

    def _answer_with(self, head: Head, body: bytes, fault: Fault, request: Request) -> None:
        """An answer that is here already."""
        self._pass_on(head, len(body), fault, request, Held(body))

    def _pass_on(self, answer: Head, length: int, fault: Fault, request: Request, held: Held | None = None) -> None:
        """The answer, with a body of so many bytes: ``held``, or what comes from the server."""
        source = held or self._server
        assert source is not None
        sent_length = int(length * fault.shorten_to) if fault.shorten_to is not None else length
        self._client.socket.sendall(answer.with_length(sent_length + fault.lengthen_by))
        stop = sent_length if fault.ends_at is None else int(sent_length * fault.ends_at)
        if fault.flip and stop:
            self._move(source, stop // 2, request)
            wrong = source.take(1)[0] ^ 0x55
            self._client.socket.sendall(bytes([wrong]))
            self._move(source, stop - stop // 2 - 1, request)
        else:
            self._move(source, stop, request)
        if fault.ends_at is not None:
            self._end(fault)
        if fault.lengthen_by:
            self._client.socket.sendall(bytes(fault.lengthen_by))
        if sent_length < length:
            self._leave_server()

    def _move(self, source: Connection | Held, size: int, request: Request) -> None:
        piece = min([PIECE_BYTES, *(pace.piece_bytes for pace in self._paces)])
        while size:
            self._proxy.pass_or_wait()
            if isinstance(source, Held) or source.has_rest:
                data = source.take(min(piece, size))
                self._client.socket.sendall(data)
                count = len(data)
            else:
                count = self._pipe.move(source.socket, self._client.socket, min(piece, size))
            size -= count
            self._proxy.sent(request, count)
            pause_s = max((pace.wait_s(count) for pace in self._paces), default=0.0)
            if pause_s > PAUSE_S_MIN:
                self._proxy.sleep(pause_s)

    def _end(self, fault: Fault) -> None:
        """The connection is of no use any more. Raises Closed."""
        if fault.ends_at == fault.stall_at:
            self._leave_server()
            self._proxy.stall(self._client)
        if fault.ends_at == fault.reset_at:
            self._client.reset()
        raise Closed


def _page(status: int, page: str, path: str) -> tuple[Head, bytes]:
    """An answer that the proxy makes up."""
    code = S3_CODES.get(status, "Unknown")
    if page == "xml":
        kind, body = b"application/xml", f"<?xml version='1.0'?><Error><Code>{code}</Code><Key>{path}</Key></Error>"
    else:
        kind, body = b"text/html", f"<html><head><title>{status}</title></head><body><h1>{status}</h1></body></html>"
    head = b"HTTP/1.1 %d %s\r\nContent-Type: %s\r\n\r\n" % (status, code.encode(), kind)
    return Head(head), body.encode()


@contextmanager
def proxy(
    target: tuple[str, int], *, plan: Plan | None = None, seed: int = 0, bytes_per_s: float | None = None
) -> Iterator[Proxy]:
    """A Proxy that is closed on the way out."""
    made = Proxy(target, plan=plan, seed=seed, bytes_per_s=bytes_per_s)
    try:
        yield made
    finally:
        made.close()
