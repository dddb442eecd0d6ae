"""A show's log on the object store: entries by number, changesets and recipes by digest.

Stateless but for its names; thread-safe. Nothing is judged here but digests: signatures, chains and rules are
``follow``'s. Rules:

- ``None`` for an entry means that the store said so (see ``library``), never that it could not be asked.
- An entry has at most ENVELOPE_BYTES_MAX bytes. Of a larger object, which is invalid whatever it holds, only the
  first ENVELOPE_BYTES_MAX + 1 bytes are read, and they stand for it, its digest in the hash chain included:
  nobody can fill a reader's memory, and all readers see the same bytes.
- A changeset that is missing, or has other bytes than its name says, is Unavailable: a fact about the store, not
  about what was published.
- Followers ask by way of a cache, where there is one (``way.py``); whoever judges or publishes asks the central store.
- What an entry names is durable before the entry exists.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from manifest import layout
from manifest.changeset import CHANGESET_BYTES_MAX, ChangesetReader
from manifest.digest import Digest
from manifest.entry import ENVELOPE_BYTES_MAX
from manifest.errors import DigestMismatch, FormatError, NotFound, Unavailable
from manifest.library import TIMEOUT_S, Library
from manifest.names import check_show
from manifest.recipe import OBJECT_BYTES_MAX, Recipe
from manifest.way import CENTRAL, Way

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator
    from concurrent.futures import Future

    from manifest.way import Near

CHANGESET_TIMEOUT_S = 120.0
CHANGESET_STORED_BYTES_MAX = CHANGESET_BYTES_MAX + CHANGESET_BYTES_MAX // 256 + 1024
"""What zstd makes of incompressible bytes: RFC 8878 frames add 3 bytes a block and a header."""
PARALLEL = 32


class Log:
    """The log of one show in one library."""

    def __init__(self, library: Library, show: str, way: Way = CENTRAL) -> None:
        """``show`` is checked: FormatError. Whether it exists is not asked. ``way``: a cache to be asked first."""
        self.library = library
        self.show = check_show(show)
        self._way = way

    def read(self, seq: int, *, timeout_s: float = TIMEOUT_S) -> bytes | None:
        """The stored bytes of entry ``seq`` (at most ENVELOPE_BYTES_MAX + 1), or None. Raises TransportError."""
        key = layout.log_key(self.show, seq)
        try:
            try:
                return self.library.get(key, timeout_s=timeout_s, bytes_max=ENVELOPE_BYTES_MAX)
            except FormatError:
                return self.library.get_start(key, ENVELOPE_BYTES_MAX + 1, timeout_s=timeout_s)
        except NotFound:
            return None

    def read_near(self, seq: int, *, timeout_s: float = TIMEOUT_S) -> bytes | None:
        """As ``read``, by the nearer way: what it says must be verified, and None may be some seconds old."""
        key = layout.log_key(self.show, seq)
        try:
            return self._way.news(
                lambda near, near_s: near.get(key, timeout_s=near_s, bytes_max=ENVELOPE_BYTES_MAX),
                lambda rest_s: self.read(seq, timeout_s=rest_s),
                timeout_s,
            )
        except NotFound:
            return None

    def newest_listed(self, after: int = 0, *, timeout_s: float = TIMEOUT_S) -> int:
        """The largest number of an entry behind ``after`` in a listing by the nearer way, or ``after``."""
        return max(self.listed(after, near=True, timeout_s=timeout_s), default=after)

    def listed(self, after: int, *, near: bool, timeout_s: float = TIMEOUT_S) -> Iterable[int]:
        """The numbers of the entries behind ``after``, in no order; ``near``: some seconds old, by the nearer way."""
        ask = self._way.news if near else self._way.fresh
        return ask(
            lambda cache, near_s: list(self._numbers(cache, after, near_s)),
            lambda rest_s: list(self._numbers(self.library, after, rest_s)),
            timeout_s,
        )

    def tail(
        self, after: int = 0, *, parallel: int = PARALLEL, timeout_s: float = TIMEOUT_S
    ) -> Generator[tuple[int, bytes], None, None]:
        """(number, stored bytes) of the entries behind ``after``, in order, up to the first number that is missing.

        One listing, then ``parallel`` requests at a time, at most as many ahead of the reader. Raises
        TransportError where it cannot go on; what it has yielded by then stands.
        """
        listed = sorted(self._numbers(self.library, after, timeout_s))
        # Contiguous from after + 1: a later number behind a gap is for whoever asks why.
        wanted = iter([seq for expected, seq in enumerate(listed, after + 1) if seq == expected])
        pool = ThreadPoolExecutor(parallel, f"damfs-tail-{self.show}")
        ahead: deque[tuple[int, Future[bytes | None]]] = deque()

        def fetch_more() -> None:
            while len(ahead) < parallel and (seq := next(wanted, None)) is not None:
                ahead.append((seq, pool.submit(self.read, seq, timeout_s=timeout_s)))

        try:
            fetch_more()
            while ahead:
                seq, future = ahead.popleft()
                stored = future.result()
                if stored is None:
                    return
                fetch_more()
                yield seq, stored
        finally:
            # Requests on their way end by their own time-out; nobody waits for them.
            pool.shutdown(wait=False, cancel_futures=True)

    def create(self, seq: int, data: bytes, *, timeout_s: float = TIMEOUT_S) -> None:
        """Create entry ``seq``, behind everything that was put before it.

        Whatever this raises (Conflict, TransportError) or returns, the store decides: read the entry back.
        """
        assert 0 < len(data) <= ENVELOPE_BYTES_MAX
        self.library.sync()
        self.library.create(layout.log_key(self.show, seq), data, timeout_s=timeout_s)

    def changeset(self, digest: Digest, *, timeout_s: float = CHANGESET_TIMEOUT_S) -> bytes:
        """The compressed changeset whose plain bytes have this digest: checked. Raises TransportError."""
        key = layout.change_key(self.show, digest)

        def verified(store: Near, within_s: float) -> bytes:
            compressed = store.get(key, timeout_s=within_s, bytes_max=CHANGESET_STORED_BYTES_MAX)
            ChangesetReader.verify(compressed, digest)
            return compressed

        try:
            return self._way.object(verified, lambda rest_s: verified(self.library, rest_s), timeout_s)
        except NotFound as error:
            raise Unavailable(f"changeset {key} is missing from library {self.library.url}: restore it") from error
        except (DigestMismatch, FormatError) as error:
            raise Unavailable(f"changeset {key} in library {self.library.url} is damaged: {error}") from error

    def recipe(self, digest: Digest, *, timeout_s: float = TIMEOUT_S) -> Recipe:
        """The recipe with this content id. Raises NotFound, TransportError, and DigestMismatch for other bytes."""
        key = layout.recipe_key(self.show, digest)
        data = self.library.get(key, timeout_s=timeout_s, bytes_max=OBJECT_BYTES_MAX)
        if (got := Digest.of(data)) != digest:
            raise DigestMismatch(f"recipe {key} in library {self.library.url}: the stored bytes have the digest {got}")
        return Recipe.from_object(data)

    def _numbers(self, store: Near, after: int, timeout_s: float) -> Iterator[int]:
        prefix = layout.log_prefix(self.show)
        for key, _ in store.list(prefix, after=layout.log_key(self.show, after), timeout_s=timeout_s):
            try:
                seq = layout.seq_of(key)
            except FormatError:
                continue  # not an entry: nobody reads it, and no number is missing for it
            if seq > after:
                yield seq
