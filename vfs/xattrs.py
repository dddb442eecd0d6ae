"""Extended attributes: what damfs knows of a file or folder beyond its stat.

    user.damfs.digest      b3:<64 hex> of the whole file; b3sum prints the same     files
    user.damfs.revision    the revision that published it; of a show's root         files, folders
                           folder the revision that is seen
    user.damfs.publisher   who published that revision                              files, folders
    user.damfs.published   when, ISO 8601 in UTC                                    files, folders
    user.damfs.cached      how much of it is on this machine, in percent            files

A folder's revision is the one that made it (of a version: the one that published it). Links have none: the kernel
does not ask for user attributes of links.

``security.*``, ``system.posix_acl_*`` and ``trusted.*`` are refused without a look-up, as *not supported*: after one
such answer ``ls -l`` asks no more on this file system, where it would ask twice for each file that merely has none.
"""

from __future__ import annotations

import datetime

from cache.store import CacheStore
from manifest.digest import Digest
from manifest.replica import Kind, Row
from vfs.errno import NoAttribute, NoNamespace
from vfs.views import ShowView

NAMESPACE = b"user."
PREFIX = NAMESPACE + b"damfs."
FOLDER_NAMES = (b"user.damfs.revision", b"user.damfs.publisher", b"user.damfs.published")
FILE_NAMES = (b"user.damfs.digest", *FOLDER_NAMES, b"user.damfs.cached")

REFUSAL = NoAttribute("no such extended attribute")
NOT_SUPPORTED = NoNamespace("no extended attributes but user.*")
"""The answers to probes; made once, for they are raised thousands of times."""


def value_of_revision(view: ShowView, seq: int, name: bytes) -> bytes:
    """The value of one of FOLDER_NAMES for a revision. Raises NoAttribute."""
    if name == b"user.damfs.revision":
        return str(seq).encode()
    info = view.about(seq)
    if info is not None and name == b"user.damfs.publisher":
        return info.author.encode()
    if info is not None and name == b"user.damfs.published":
        return _iso(info.time_ns)
    raise NoAttribute(f"no extended attribute {name!r}")


def value_of_file(view: ShowView, row: Row, name: bytes, cache: CacheStore) -> bytes:
    """The value of one of FILE_NAMES for a file. Raises NoAttribute."""
    if row.kind == Kind.FILE and row.digest is not None and row.content is not None:
        if name == b"user.damfs.digest":
            return str(Digest(row.digest)).encode()
        if name == b"user.damfs.cached":
            return str(cache.percent(view.show, Digest(row.content))).encode()
    return value_of_revision(view, row.since, name)


def _iso(time_ns: int) -> bytes:
    seconds, rest = divmod(time_ns, 1_000_000_000)
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{rest:09d}Z".encode()
