"""Whether a store keeps the one promise that the log rests on: of many conditional puts of a key, one wins.

Some S3 servers accept ``If-None-Match: *`` and ignore it, some only look first and write then. So the promise is
tried. First one key is created twice, one after the other; then ``racers`` threads create the same fresh key at the
same moment, several times over, and what is read back decides who won. Answers are believed only where they claim a
win: a racer that was told "created" must have been the one. The keys lie below ``probe/<random>/`` and are removed.
"""

from __future__ import annotations

import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

from manifest import layout
from manifest.errors import ConfigurationError, Conflict, NotFound, TransportError

if TYPE_CHECKING:
    from manifest.library import Library

_TIMEOUT_S = 30.0


def probe_store(library: Library, *, racers: int = 32, rounds: int = 3) -> None:
    """Try the store. Raises ConfigurationError when it breaks the promise, TransportError when it cannot be asked."""
    folder = f"{layout.PROBE}{secrets.token_hex(8)}"
    keys = [f"{folder}/{number}" for number in range(1 + rounds)]
    try:
        library.create(keys[0], b"first", timeout_s=_TIMEOUT_S)
        _create_again(library, keys[0], b"first")
        with ThreadPoolExecutor(racers, "damfs-probe") as pool:
            for key in keys[1:]:
                _race(library, pool, key, racers)
    finally:
        for key in keys:
            with suppress(TransportError):  # what stays behind is a few bytes that nobody reads
                library.delete(key, timeout_s=_TIMEOUT_S)


def _race(library: Library, pool: ThreadPoolExecutor, key: str, racers: int) -> None:
    start = threading.Barrier(racers)

    def run(number: int) -> bool | None:
        """True: told that it was created. False: told that it existed. None: not told."""
        with suppress(threading.BrokenBarrierError):
            start.wait(_TIMEOUT_S)
        try:
            library.create(key, _data(number), timeout_s=_TIMEOUT_S)
        except Conflict:
            return False
        except TransportError as error:
            failures.append(error)
            return None
        return True

    failures: list[TransportError] = []
    told = list(pool.map(run, range(racers)))
    winners = [number for number in range(racers) if told[number]]
    if len(winners) > 1:
        raise _refusal(library, f"{len(winners)} of {racers} writers were told that they created one object")
    try:
        stored = library.get(key, timeout_s=_TIMEOUT_S, bytes_max=64)
    except NotFound as error:
        if winners or not failures:
            raise _refusal(library, "nothing was stored, though a writer was told so, or that it exists") from error
        raise failures[0] from error
    if winners and stored != _data(winners[0]):
        raise _refusal(library, "another writer replaced what the winner had created")
    _create_again(library, key, stored)


def _create_again(library: Library, key: str, stored: bytes) -> None:
    """A create of what is there must change nothing, whatever it answers."""
    told = True
    try:
        library.create(key, b"late", timeout_s=_TIMEOUT_S)
    except Conflict:
        told = False
    if told or library.get(key, timeout_s=_TIMEOUT_S, bytes_max=64) != stored:
        raise _refusal(library, "an object that existed was created again")


def _data(number: int) -> bytes:
    return f"racer {number}".encode()


def _refusal(library: Library, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"the store at {library.url} ignores conditional puts (If-None-Match: *): {what}. "
        "Publishes would overwrite each other; use a store that honours them, such as AWS S3, MinIO, Ceph or a folder"
    )
