"""The layout of a library: under which key each object lies.

    damfs.json                                 library id, format version, rules
    shows/<show>/show.json
    shows/<show>/log/<020d>                    one signed entry each, create-only, never rewritten
    shows/<show>/changes/<hex>                 zstd changeset, named by the digest of the plain bytes
    shows/<show>/recipes/<hex>                 recipes too long for the changeset
    shows/<show>/chunks/<hex[:2]>/<hex>        chunk bytes

Keys are relative to the library, ``/``-separated, ASCII; a digest is its 64 hex digits, without ``b3:``. Whoever
builds a key has checked the show's name (``names.check_show``) where it came from.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from manifest.errors import FormatError

if TYPE_CHECKING:
    from manifest.digest import Digest

IDENTITY = "damfs.json"
SHOWS = "shows/"
PROBE = "probe/"
"""Below this prefix the store is tried out; nothing stays there."""
SEQ_DIGITS = 20
SEQ_MAX = 2**63 - 1
_SEQ = re.compile(rf"[0-9]{{{SEQ_DIGITS}}}")


def show_key(show: str) -> str:
    """The object that says that the show exists."""
    return f"{SHOWS}{show}/show.json"


def log_prefix(show: str) -> str:
    """The prefix of the show's log entries, with its closing slash."""
    return f"{SHOWS}{show}/log/"


def log_key(show: str, seq: int) -> str:
    """The key of log entry ``seq`` (1, 2, …): 20 decimal digits, so that keys sort as numbers do."""
    assert 0 <= seq <= SEQ_MAX
    return f"{SHOWS}{show}/log/{seq:0{SEQ_DIGITS}d}"


def seq_of(key: str) -> int:
    """The number of a log entry by its key. Raises FormatError for a key that is no log entry's."""
    prefix, _, name = key.rpartition("/")
    if not prefix.endswith("/log") or not _SEQ.fullmatch(name) or int(name) > SEQ_MAX:
        raise FormatError(f"{key!r} is no key of a log entry: expected …/log/<{SEQ_DIGITS} digits>")
    return int(name)


def change_key(show: str, digest: Digest) -> str:
    """The key of the changeset whose plain bytes have this digest."""
    return f"{SHOWS}{show}/changes/{digest.hex()}"


def recipe_key(show: str, digest: Digest) -> str:
    """The key of the recipe object with this digest (the content id)."""
    return f"{SHOWS}{show}/recipes/{digest.hex()}"


def chunk_key(show: str, digest: Digest) -> str:
    """The key of the chunk with this digest."""
    name = digest.hex()
    return f"{SHOWS}{show}/chunks/{name[:2]}/{name}"
