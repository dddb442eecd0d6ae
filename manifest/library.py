"""The library's object store: keys to bytes. With ``library_s3.py`` the only importer of obstore and boto3.

State: the obstore clients of one URL, one for each rung of a ladder of time-outs, made when first used. Thread-safe;
every call blocks its thread, with the GIL released, for at most about ``timeout_s`` (2 s or more) on ``s3://``.
A process that has used a Library must never fork without exec: obstore's threads would be missing in the child.

Rules:
- A thread cannot be cancelled, so every request carries a time-out in obstore's own client and is never
  retried here; retries, back-off and breakers belong to the callers. ``file://`` blocks as long as its file system.
- Every failure leaves as one of NotFound, Unavailable, AccessDenied (``create``: also Conflict), whose message
  names the object and the library.
- **Absent is a fact about the library, not about the way to it.** NotFound is raised only when the library itself
  answered: an S3 error that says NoSuchKey, or a folder that holds its ``damfs.json``. A missing bucket, an
  unmounted folder and a proxy's 404 page are Unavailable; so an unmounted library never looks like an empty log.
"""

from __future__ import annotations

import builtins
import errno
import os
import re
import stat
import threading
import time
import urllib.parse
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import LocalStore, MemoryStore, S3Store

from manifest import layout, library_folder, library_s3
from manifest.credentials import UNREACHABLE
from manifest.errors import (
    AccessDenied,
    ConfigurationError,
    Conflict,
    FormatError,
    NotFound,
    Offline,
    StoreFull,
    Unavailable,
)
from manifest.store_message import StoreMessage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from obstore.store import ObjectStore

    from manifest.library_s3 import ListingSigner

T = TypeVar("T")

TIMEOUT_S = 30.0
_LADDER_S = (600, 120, 30, 10, 5, 2)
_PRESENT_FOR_S = 5.0
"""How long a proof that the bucket answers also vouches for 404 answers without a body (those to HEAD)."""
_WRITE_BYTES = 256 * 1024
"""The kernel takes page cache in pieces as large as a write: those of MiB cost five times as much (in a virtual machine
whose free memory is the host's)."""
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"[A-Za-z0-9._=+@-]+")
_DENIED_CODES = frozenset(("ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId"))
_DENIED_NUMBERS = frozenset((1, 13, 30))  # EPERM, EACCES, EROFS
_FULL_NUMBERS = frozenset((errno.ENOSPC, errno.EDQUOT))


class Library:
    """One object store that holds, or is to hold, a library. See the module's rules."""

    def __init__(
        self,
        url: str,
        where: str,
        root: Path | None,
        connect: Callable[[int], ObjectStore],
        *,
        endpoint: str | None = None,
        sign_listing: ListingSigner | None = None,
    ) -> None:
        """Use ``Library.open``."""
        self.endpoint = endpoint
        self.url = url
        self._where = where
        self._root = root
        self._connect = connect
        self._sign_listing = sign_listing
        self._one_store = not url.startswith("s3:")
        self._lock = threading.Lock()
        self._stores: dict[int, ObjectStore] = {}
        self._present_until = 0.0
        self.shut_because: str | None = None
        """While it is set, nothing is asked of the store: each request raises Offline with it."""

    @classmethod
    def open(
        cls, url: str, *, endpoint: str | None = None, region: str | None = None, profile: str | None = None
    ) -> Library:
        """The library at ``file:///folder``, ``s3://bucket[/prefix]`` or ``memory://`` (a new, empty one).

        Nothing is asked of the store yet. The endpoint falls back to ``AWS_ENDPOINT_URL_S3`` and
        ``AWS_ENDPOINT_URL``; the region to boto3's; ``profile`` is one of boto3's, for other credentials than the
        usual ones. Raises ConfigurationError for an unusable URL or endpoint and when no credentials are found, for
        which boto3 may take up to 10 s.
        """
        scheme, separator, rest = url.partition("://")
        if separator and scheme == "file":
            return cls._open_folder(url, rest)
        if separator and scheme == "s3":
            return cls._open_s3(url, rest, endpoint, region, profile)
        if url == "memory://":
            memory = MemoryStore()
            return cls(url, url, None, lambda _: memory)
        hint = f" (did you mean file://{url}?)" if url.startswith("/") else ""
        raise ConfigurationError(f"{url!r} is no library URL: expected file:///folder or s3://bucket/prefix{hint}")

    @classmethod
    def _open_folder(cls, url: str, rest: str) -> Library:
        path = Path(os.path.normpath(urllib.parse.unquote(rest))) if rest else Path()
        if not path.is_absolute() or "\0" in str(path):
            raise ConfigurationError(f"{url!r} is no library URL: file:// needs an absolute path, as file:///srv/dam")
        return cls(path.as_uri(), path.as_uri(), path, lambda _: LocalStore(path, automatic_cleanup=True))

    @classmethod
    def _open_s3(cls, url: str, rest: str, endpoint: str | None, region: str | None, profile: str | None) -> Library:
        bucket, _, prefix = rest.partition("/")
        prefix = prefix.removesuffix("/")
        names = prefix.split("/") if prefix else []
        if not _BUCKET.fullmatch(bucket) or any(n in (".", "..") or not _PREFIX.fullmatch(n) for n in names):
            raise ConfigurationError(f"{url!r} is no library URL: expected s3://bucket or s3://bucket/prefix")
        endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        url = "/".join(["s3:/", bucket, *names])
        where = f"{url} at {endpoint}" if endpoint else url
        if endpoint is not None:
            library_s3.check_endpoint(endpoint)
        credentials, usual_region = library_s3.credentials_of(profile)
        region = region or usual_region
        connect = library_s3.connector(bucket, prefix, endpoint, region, credentials)
        sign_listing = library_s3.listing_signer(bucket, prefix, endpoint, region, credentials)
        return cls(url, where, None, connect, endpoint=endpoint, sign_listing=sign_listing)

    def get(self, key: str, *, timeout_s: float = TIMEOUT_S, bytes_max: int | None = None) -> bytes:
        """The bytes of an object. Raises FormatError when there are more than ``bytes_max``, before reading them."""
        return bytes(self._get(key, timeout_s, bytes_max))

    def get_buffer(self, key: str, *, timeout_s: float = TIMEOUT_S, bytes_max: int | None = None) -> memoryview:
        """As ``get``, but a read-only view of obstore's own memory: nothing is copied, which chunks are worth."""
        return self._get(key, timeout_s, bytes_max)

    def get_start(self, key: str, length_bytes: int, *, timeout_s: float = TIMEOUT_S) -> bytes:
        """The first bytes, at most ``length_bytes`` (≥ 1), of an object that is not empty."""
        return self._read(
            key, timeout_s, lambda store: bytes(obstore.get_range(store, key, start=0, length=length_bytes))
        )

    def size(self, key: str, *, timeout_s: float = TIMEOUT_S) -> int | None:
        """The length of an object in bytes; None when the library has no such object."""
        if self._root is not None:
            self._store(timeout_s)
            self._require(key)
            with self._translated(key, "read"):
                return library_folder.size(self._root, key)
        try:
            return self._read(key, timeout_s, lambda store: obstore.head(store, key)["size"])
        except NotFound:
            return None

    def put(self, key: str, data: bytes | bytearray | memoryview, *, timeout_s: float = TIMEOUT_S) -> None:
        """Make or replace an object. On ``file://`` durable only after ``sync``."""
        self._require(key)
        given = data if self._root is None else _pieces(data)
        with self._translated(key, "written"):
            obstore.put(self._store(timeout_s), key, given, use_multipart=False)

    def create(self, key: str, data: bytes, *, timeout_s: float = TIMEOUT_S) -> None:
        """Make an object that must not exist yet; on ``file://`` durable.

        Raises Conflict when it exists, which may be this very write after a lost reply; Unavailable leaves open
        whether it was made. A caller to whom it matters reads the object back.
        """
        self._require(key)
        try:
            with self._translated(key, "created"):
                if self._root is not None:
                    library_folder.create(self._root, key, data)
                else:
                    obstore.put(self._store(timeout_s), key, data, mode="create", use_multipart=False)
        except _Exists as error:
            raise Conflict(f"{key} exists already in {self._where}") from error

    def delete(self, key: str, *, timeout_s: float = TIMEOUT_S) -> None:
        """Remove an object, if it is there. For the probe's own keys alone."""
        with suppress(NotFound), self._translated(key, "removed"):
            obstore.delete(self._store(timeout_s), key)

    def list(self, prefix: str, *, after: str | None = None, timeout_s: float = TIMEOUT_S) -> Iterator[tuple[str, int]]:
        """(key, size in bytes) of all objects below ``prefix``, a whole folder, in no order.

        ``after``: only keys that sort behind it. ``timeout_s`` is for each page of 1,000. A listing that fails on
        its way raises; it never just ends.
        """
        assert prefix.endswith("/")
        self._require(layout.IDENTITY if prefix.startswith(layout.PROBE) else prefix)
        with self._translated(prefix, "listed"):
            pages = iter(obstore.list(self._store(timeout_s), prefix, offset=after, chunk_size=1000))
        while True:
            with self._translated(prefix, "listed"):
                page = next(pages, None)
            if page is None:
                break
            for meta in page:
                yield meta["path"], meta["size"]
        self._require(layout.IDENTITY if prefix.startswith(layout.PROBE) else prefix)

    def folders(self, prefix: str, *, timeout_s: float = TIMEOUT_S) -> builtins.list[str]:
        """The names of the "folders" directly below ``prefix``, sorted."""
        assert prefix.endswith("/")
        self._require(prefix)
        with self._translated(prefix, "listed"):
            found = obstore.list_with_delimiter(self._store(timeout_s), prefix)["common_prefixes"]
        self._require(prefix)
        return sorted(path.rpartition("/")[2] for path in found)

    def first_names(self, *, timeout_s: float = TIMEOUT_S) -> set[str]:
        """Names at the top: all of a folder's, hidden ones too; of a bucket's prefix those of the first 1,000 keys."""
        with self._translated(layout.IDENTITY, "listed"):
            if self._root is not None:
                return {path.name for path in self._root.iterdir()}
            page = next(iter(obstore.list(self._store(timeout_s), chunk_size=1000)), [])
            return {meta["path"].partition("/")[0] for meta in page}

    def sign(self, key: str, *, expires_s: int) -> str:
        """Path and query of a GET of the object that the store answers without credentials, for so many seconds.

        For the host of the endpoint, which the signature covers. May wait RENEWAL_TIMEOUT_S for credentials. Raises
        AccessDenied and Unavailable when there are none, ConfigurationError for a library that is not on S3.
        """
        return library_s3.target(self.sign_url(key, expires_s=expires_s))

    def sign_url(self, key: str, *, expires_s: int) -> str:
        """The same as a whole URL: with the scheme and the host that the store is asked by."""
        store = self._store(TIMEOUT_S)
        if not isinstance(store, S3Store):
            raise ConfigurationError(f"requests to {self.url} cannot be signed: that is for libraries on s3://")
        with self._translated(key, "signed"):
            return obstore.sign(store, "GET", key, timedelta(seconds=expires_s))

    def sign_listing(self, prefix: str, *, after: str | None, folders: bool, expires_s: int) -> str:
        """The same for a listing (ListObjectsV2): a page of the keys below ``prefix`` that sort behind ``after``.

        With ``folders`` those directly below it alone, and the "folders" there. Keys come with the library's prefix.
        """
        assert prefix.endswith("/")
        if self._sign_listing is None:
            raise ConfigurationError(f"requests to {self.url} cannot be signed: that is for libraries on s3://")
        self._store(TIMEOUT_S)  # raises while nothing is to be asked
        with self._translated(prefix, "signed"):
            return self._sign_listing(prefix, after, folders, expires_s)

    def sync(self) -> None:
        """Make what was put durable: on ``file://`` the whole file system is written back; a store has done it."""
        if self._root is not None:
            with self._translated(layout.IDENTITY, "synced"):
                library_folder.sync_filesystem(self._root)

    def make_root(self) -> None:
        """Make the folder of a new ``file://`` library. Buckets are made by those who own them."""
        if self._root is not None:
            if self._root.exists() and not self._root.is_dir():
                raise ConfigurationError(f"{self._root} is no folder: a library needs one")
            with self._translated(layout.IDENTITY, "created"):
                self._root.mkdir(parents=True, exist_ok=True)

    def adopt_modes(self) -> None:
        """Write with the rights of the library's folder from now on, whatever this user's umask is.

        For a process that publishes: one object that others cannot read would stop a show for all of them.
        """
        if self._root is not None:
            with suppress(OSError):
                os.umask(0o777 & ~stat.S_IMODE(self._root.stat().st_mode))

    def __repr__(self) -> str:
        return f"Library({self._where!r})"

    def _get(self, key: str, timeout_s: float, bytes_max: int | None) -> memoryview:
        def fetch(store: ObjectStore) -> memoryview:
            result = obstore.get(store, key)
            if bytes_max is not None and result.meta["size"] > bytes_max:
                size = result.meta["size"]
                raise FormatError(f"{key} in {self._where} has {size} bytes: expected at most {bytes_max}")
            return memoryview(result.bytes())

        return self._read(key, timeout_s, fetch)

    def _read(self, key: str, timeout_s: float, call: Callable[[ObjectStore], T]) -> T:
        """``call`` on the store; NotFound only when the library vouches for it."""
        try:
            with self._translated(key, "read"):
                return call(self._store(timeout_s))
        except NotFound:
            if self._root is None:
                raise
        # The folder was asked before it was known to be the library's: the answer that counts comes after.
        self._require(key)
        with self._translated(key, "read"):
            return call(self._store(timeout_s))

    def _store(self, timeout_s: float) -> ObjectStore:
        if self.shut_because is not None:
            raise Offline(f"library {self._where} is not asked: {self.shut_because}")
        rung = _LADDER_S[0] if self._one_store else next((s for s in _LADDER_S if s <= timeout_s), _LADDER_S[-1])
        store = self._stores.get(rung)
        if store is None:
            with self._lock:
                store = self._stores.get(rung)
                if store is None:
                    if self._root is not None:
                        self._require(layout.IDENTITY)
                        self._root = self._root.resolve()  # as LocalStore does: both must look at one place
                    store = self._stores[rung] = self._connect(rung)
        return store

    def _require(self, key: str) -> None:
        """Raise Unavailable when this is a folder and not, or no longer, a library's: then nothing is absent in it.

        Before there is a library (its identity, the probe) the folder itself must do.
        """
        if self._root is None:
            return
        begun = key == layout.IDENTITY or key.startswith(layout.PROBE)
        try:
            os.stat(self._root if begun else f"{self._root}/{layout.IDENTITY}")  # noqa: PTH116 - asked very often
        except OSError as error:
            what = "the folder is not there" if begun else "its damfs.json is not there"
            raise Unavailable(
                f"library {self._where} is not reachable: {what} ({error.strerror}); is its file system mounted?"
            ) from error

    @contextmanager
    def _translated(self, key: str, verb: str) -> Iterator[None]:
        """Let everything that obstore and the file system raise leave as a DamfsError (or _Exists, for create)."""
        try:
            yield
        except (BaseError, OSError, ValueError) as error:
            raise self._translation(error, key, verb) from error

    def _translation(self, error: Exception, key: str, verb: str) -> Exception:
        said = StoreMessage.of(error)
        prefix = f"{key} could not be {verb} in library {self._where}: "
        if verb == "created" and isinstance(error, (AlreadyExistsError, PreconditionError, FileExistsError)):
            return _Exists(said.text)
        if said.code == "NoSuchBucket":
            return Unavailable(prefix + "the bucket does not exist; create it, or correct the URL or the endpoint")
        if isinstance(error, FileNotFoundError) and verb in ("read", "removed") and self._vouched(key, said):
            return NotFound(f"there is no {key} in library {self._where}")
        if isinstance(error, UnauthenticatedError) and "credential provider" in said.text:
            reason = said.text.splitlines()[0].rpartition("credential provider: ")[2]
            if UNREACHABLE in reason:
                return Unavailable(prefix + reason.partition(": ")[2])
            return AccessDenied(f"{prefix}no valid credentials ({reason}); {library_s3.CREDENTIALS_HELP}")
        if isinstance(error, (PermissionDeniedError, UnauthenticatedError)) or said.code in _DENIED_CODES:
            return AccessDenied(
                f"{prefix}access denied ({said.code or said.reason}); check the credentials and what they allow"
            )
        if said.number in _DENIED_NUMBERS:
            return AccessDenied(f"{prefix}{os.strerror(said.number)}; check the rights on the library's folder")
        if said.number in _FULL_NUMBERS:
            return StoreFull(f"{prefix}{os.strerror(said.number)}; make room on the library's disk and run it again")
        return Unavailable(prefix + said.reason)

    def _vouched(self, key: str, said: StoreMessage) -> bool:
        """Whether a "not found" comes from the library. An S3 404 without NoSuchKey may be anybody's."""
        if self._one_store:
            return True
        if said.code:
            vouched = said.code == "NoSuchKey"
        elif key == layout.IDENTITY or "performing HEAD" not in said.text:
            vouched = False
        elif time.monotonic() < self._present_until:
            return True
        else:
            with suppress(NotFound):  # an answer that says so vouches as well
                self.get(layout.IDENTITY, timeout_s=_LADDER_S[-1])
            vouched = True
        if vouched:
            self._present_until = time.monotonic() + _PRESENT_FOR_S
        return vouched


def _pieces(data: bytes | bytearray | memoryview) -> Iterator[memoryview]:
    """``data``, uncopied, so that obstore's LocalStore makes a write(2) of each piece."""
    view = memoryview(data)
    return (view[start : start + _WRITE_BYTES] for start in range(0, len(view), _WRITE_BYTES))


class _Exists(Exception):
    """A conditional put met an object, or says so."""
