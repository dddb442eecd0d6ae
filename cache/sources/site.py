"""The site cache: any HTTP cache in front of the library's store. The only module that speaks HTTP to it.

It is asked with the path and query of a request to the store that is signed for an hour (``Library.sign``), and passes
it on in the store's name (its Host header is part of the signature) when it has not got the answer. Its own name is
told in our Host header, as to any server. docs/SITE-CACHE.md describes what a site cache must do.

State: a pool of connections, the attempts under way. Thread-safe; every call blocks its thread until ``timeout_s`` at
the latest, whatever the server does: no answer, headers or a body that drip, a TLS handshake that never ends.

Rules:
- Nothing that it says is trusted: bytes are verified by whoever asked (cache/fetch.py, manifest/log.py), and at
  most one byte more than was asked for is read of them.
- NotFound only when the store itself said so: an S3 error document with NoSuchKey. Any other 404 is Unavailable.
- 401 and 403 are AccessDenied; everything else that is not a 200 (redirects, which are not followed, too) Unavailable.
- Nothing is retried here, but a request that met a connection which the server had closed while it was idle.
"""

from __future__ import annotations

import builtins
import datetime
import http.client
import re
import socket
import ssl
import threading
import time
import urllib.parse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, ProtocolError, ReadTimeoutError

from cache.sources.central import THREADS, CentralSource
from cache.sources.listing import Page
from cache.sources.watch import Attempt, Watch, Wire
from manifest.errors import AccessDenied, ConfigurationError, FormatError, NotFound, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 1.0
SIGNED_FOR_S = 3600
"""A signature's life: long, since it begins by this machine's clock and ends by the store's."""
PIECE_BYTES = 256 * 1024
ERROR_BYTES_MAX = 64 * 1024
LISTING_BYTES_MAX = 4 * 1024 * 1024
_CODE = re.compile(rb"<Code>(\w+)</Code>")
_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "damfs"}


class Signer(Protocol):
    """The part of ``manifest.library.Library`` that a site cache needs."""

    @property
    def url(self) -> str: ...

    def sign(self, key: str, *, expires_s: int) -> str: ...

    def sign_listing(self, prefix: str, *, after: str | None, folders: bool, expires_s: int) -> str: ...


@dataclass(frozen=True, slots=True)
class Reply:
    """What a site cache answered: the status, its headers in lower case, the (beginning of the) body."""

    status: int
    headers: Mapping[str, str]
    body: bytes | bytearray

    @property
    def code(self) -> str:
        """The S3 error code in the body, or nothing."""
        match = _CODE.search(self.body)
        return match[1].decode() if match else ""


class _Body(http.client.HTTPResponse):
    """An answer whose body can be read without urllib3: straight into the place where it is wanted."""

    def begin(self) -> None:
        super().begin()
        _this_thread.body = self


class _Watched(HTTPConnection):
    """A connection that tells the attempt of its thread what to cut off."""

    response_class = _Body
    wire: Wire | None = None

    def _new_conn(self) -> socket.socket:
        made = super()._new_conn()
        self.wire = Wire(made)
        _attempt_of_this_thread().uses(self.wire)
        return made

    def request(self, *args: Any, **kwargs: Any) -> None:
        if self.wire is not None:
            _attempt_of_this_thread().uses(self.wire)
        super().request(*args, **kwargs)


class _WatchedTLS(_Watched, HTTPSConnection):
    """The same with TLS."""


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Watched


class _PoolTLS(urllib3.HTTPSConnectionPool):
    ConnectionCls = _WatchedTLS


_this_thread = threading.local()


def _attempt_of_this_thread() -> Attempt:
    attempt = _this_thread.attempt
    assert isinstance(attempt, Attempt)
    return attempt


class SiteCache:
    """The objects of a library by way of a site cache (``central.ObjectLibrary``). See the module's rules."""

    def __init__(
        self,
        signer: Signer,
        url: str,
        *,
        ca: Path | None = None,
        cert: Path | None = None,
        key: Path | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        connections: int = THREADS,
    ) -> None:
        """``url``: ``http://host[:port]`` or ``https://…``. Asks nobody. Raises ConfigurationError.

        ``ca``: the authorities that count, else the system's; ``cert`` and ``key``: who we are, in PEM.
        """
        if not signer.url.startswith("s3:"):
            raise ConfigurationError(
                f"a site cache stands before an S3 store, and the library is {signer.url}: remove site.url"
            )
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.path.strip("/"):
            raise ConfigurationError(f"{url!r} is no site cache: expected http://host:port or https://host:port")
        if parts.scheme == "http" and (ca or cert):
            raise ConfigurationError(f"site.ca and site.cert are for https://, and the site cache is {url}")
        self.url = f"{parts.scheme}://{parts.netloc}"
        self.shows_certificate = cert is not None
        self._ca = ca
        self._signer = signer
        below = signer.url.removeprefix("s3://").partition("/")[2]
        self._prefix = f"{below}/" if below else ""
        self._connect_timeout_s = connect_timeout_s
        self._watch = Watch()
        common: dict[str, Any] = {"host": parts.hostname, "port": parts.port, "maxsize": connections, "block": False}
        self._tls = _tls(ca, cert, key) if parts.scheme == "https" else None
        self._pool: urllib3.HTTPConnectionPool = (
            _Pool(**common) if self._tls is None else _PoolTLS(**common, ssl_context=self._tls)
        )

    def get(self, key: str, *, timeout_s: float = TIMEOUT_S, bytes_max: int | None = None) -> bytes:
        """As ``Library.get``: Raises FormatError for a longer object, NotFound, AccessDenied, Unavailable."""
        return bytes(self._get(key, timeout_s, bytes_max))

    def get_buffer(self, key: str, *, timeout_s: float = TIMEOUT_S, bytes_max: int | None = None) -> memoryview:
        """As ``get``, but nothing is copied, which chunks are worth."""
        return memoryview(self._get(key, timeout_s, bytes_max)).toreadonly()

    def list(self, prefix: str, *, after: str | None = None, timeout_s: float = TIMEOUT_S) -> Iterator[tuple[str, int]]:
        """As ``Library.list``; ``timeout_s`` is for each page. What it says may be some seconds old."""
        for page in self._pages(prefix, after, timeout_s, folders=False):
            yield from ((self._local(key), size) for key, size in page.objects)

    def folders(self, prefix: str, *, timeout_s: float = TIMEOUT_S) -> builtins.list[str]:
        """As ``Library.folders``; what it says may be some seconds old."""
        pages = self._pages(prefix, None, timeout_s, folders=True)
        return sorted(folder.split("/")[-2] for page in pages for folder in page.folders)

    def ask(
        self,
        target: str,
        timeout_s: float,
        *,
        bytes_max: int | None = None,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Ask for ``target``, a path and query; whatever is answered. Raises Unavailable without an answer.

        Of the body at most ``bytes_max`` + 1 bytes are read, of an error's ERROR_BYTES_MAX.
        """
        with self._watch.over(time.monotonic() + timeout_s) as attempt:
            _this_thread.attempt = attempt
            try:
                try:
                    return self._ask(method, target, attempt, bytes_max, headers)
                except ProtocolError as error:
                    if attempt.expired or not _was_closed(error):
                        raise
                    return self._ask(method, target, attempt, bytes_max, headers)
            except (HTTPError, http.client.HTTPException, OSError, ValueError) as error:
                raise Unavailable(f"site cache {self.url}: {_reason(error, attempt)}") from error
            finally:
                _this_thread.attempt = _this_thread.body = None

    def without_certificate(self) -> SiteCache:
        """The same site cache, asked by nobody in particular."""
        return SiteCache(self._signer, self.url, ca=self._ca, connect_timeout_s=self._connect_timeout_s)

    def certificate(self, timeout_s: float) -> tuple[str, datetime.datetime]:
        """The version of TLS that is spoken, and when the certificate ends. Raises Unavailable."""
        assert self._tls is not None
        try:
            with (
                socket.create_connection((self._pool.host, self._pool.port or 443), timeout_s) as plain,
                self._tls.wrap_socket(plain, server_hostname=self._pool.host) as connection,
            ):
                told = connection.getpeercert() or {}
                ends = ssl.cert_time_to_seconds(str(told["notAfter"]))
                return str(connection.version()), datetime.datetime.fromtimestamp(ends, datetime.UTC)
        except OSError as error:
            raise Unavailable(f"site cache {self.url}: {error}") from error

    def close(self) -> None:
        """Close the connections that are idle."""
        self._pool.close()

    def _pages(self, prefix: str, after: str | None, timeout_s: float, *, folders: bool) -> Iterator[Page]:
        """Each begins behind the last name of the one before, so that equal pages have equal requests."""
        while True:
            deadline = time.monotonic() + timeout_s
            target = self._signer.sign_listing(prefix, after=after, folders=folders, expires_s=SIGNED_FOR_S)
            reply = self.ask(target, deadline - time.monotonic(), bytes_max=LISTING_BYTES_MAX)
            page = Page.parse(bytes(self._body(prefix, reply, LISTING_BYTES_MAX)))
            yield page
            if page.is_last:
                return
            last = self._local(page.last_name)
            if after is not None and last <= after:
                raise Unavailable(f"the listing of {prefix} from the site cache {self.url} goes round in circles")
            after = last

    def _local(self, key: str) -> str:
        """A key without the library's prefix in its bucket."""
        return key.removeprefix(self._prefix)

    def _get(self, key: str, timeout_s: float, bytes_max: int | None) -> bytes | bytearray:
        deadline = time.monotonic() + timeout_s
        target = self._signer.sign(key, expires_s=SIGNED_FOR_S)
        return self._body(key, self.ask(target, deadline - time.monotonic(), bytes_max=bytes_max), bytes_max)

    def _ask(
        self, method: str, target: str, attempt: Attempt, bytes_max: int | None, headers: Mapping[str, str] | None
    ) -> Reply:
        left_s = max(0.001, attempt.remaining_s())
        response = self._pool.urlopen(
            method,
            target,
            headers={**_HEADERS, **(headers or {})},
            timeout=urllib3.Timeout(connect=min(self._connect_timeout_s, left_s), read=left_s),
            retries=False,
            redirect=False,
            preload_content=False,
            decode_content=False,
        )
        is_whole = False
        try:
            told = {name.lower(): value for name, value in response.headers.items()}
            room = bytes_max if response.status == 200 else ERROR_BYTES_MAX
            length = _length(told) if method != "HEAD" else 0
            body: bytes | bytearray = b""
            if room is None or length <= room:  # else it is refused before it is read
                body = _whole(_this_thread.body, length) if length else _pieces(response, room)
                is_whole = room is None or len(body) <= room
            if attempt.expired:
                raise TimeoutError
            return Reply(response.status, told, body)
        finally:
            if is_whole:
                response.release_conn()
            else:
                response.close()

    def _body(self, key: str, reply: Reply, bytes_max: int | None) -> bytes | bytearray:
        if reply.status != 200:
            raise self._refusal(key, reply)
        if reply.headers.get("content-encoding", "identity") != "identity":
            raise Unavailable(f"{key} comes encoded from the site cache {self.url}: it must leave bytes alone")
        size = max(_length(reply.headers), len(reply.body))
        if bytes_max is not None and size > bytes_max:
            raise FormatError(f"{key} from the site cache {self.url} has {size} bytes: expected at most {bytes_max}")
        return reply.body

    def _refusal(self, key: str, reply: Reply) -> Exception:
        said = f"{reply.status}" + (f" {reply.code}" if reply.code else "")
        if reply.status == 404 and reply.code == "NoSuchKey":
            return NotFound(f"there is no {key} in library {self._signer.url}, says the site cache {self.url}")
        if reply.status in (401, 403):
            by = "the store, through it" if reply.code else "it does not let this machine in"
            return AccessDenied(f"{key} could not be read from the site cache {self.url}: {said} ({by})")
        return Unavailable(f"{key} could not be read from the site cache {self.url}: it answered {said}")


class SiteSource(CentralSource):
    """Objects by way of a site cache, with threads and counters of its own: see ``CentralSource``."""

    def __init__(self, site: SiteCache, *, limiter_threads: int = THREADS) -> None:
        super().__init__(site, limiter_threads=limiter_threads, name="site")


def _tls(ca: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"site.ca {ca} cannot be used: {error}") from error
    if cert is not None:
        try:
            context.load_cert_chain(cert, key, password=_no_password)
        except (OSError, ssl.SSLError, ValueError) as error:
            raise ConfigurationError(f"site.cert {cert} (key {key or cert}) cannot be used: {error}") from error
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted: a daemon cannot be asked for a password")


def _whole(body: _Body, length: int) -> bytearray:
    """A body of a known length: urllib3 would copy it twice. Raises IncompleteRead."""
    data = bytearray(length)
    view = memoryview(data)
    got = 0
    while got < length:
        count = body.readinto(view[got:])
        if not count:
            raise http.client.IncompleteRead(b"", length - got)
        got += count
    return data


def _pieces(response: urllib3.BaseHTTPResponse, room: int | None) -> bytes:
    """A body of unknown length, at most ``room`` + 1 bytes of it."""
    pieces: list[bytes] = []
    got = 0
    while room is None or got <= room:
        piece = response.read1(PIECE_BYTES if room is None else min(PIECE_BYTES, room + 1 - got))
        if not piece:
            break
        pieces.append(piece)
        got += len(piece)
    return b"".join(pieces)


def _length(headers: Mapping[str, str]) -> int:
    """The length that an answer announces, 0 when it does not. Raises ValueError."""
    return int(headers.get("content-length", "0"))


def _was_closed(error: ProtocolError) -> bool:
    """Whether the server had closed the connection before it heard the request."""
    return any(isinstance(cause, ConnectionError | http.client.RemoteDisconnected) for cause in error.args)


def _reason(error: Exception, attempt: Attempt) -> str:
    if attempt.expired or isinstance(error, ReadTimeoutError | TimeoutError):
        return "no whole answer in time"
    if isinstance(error, ConnectTimeoutError):
        return "no connection in time"
    if isinstance(error, NewConnectionError):
        return "no connection: " + str(error).rpartition(": ")[2]
    return " ".join(str(error).split())[:300] or type(error).__name__
