"""What makes a store a library: its ``damfs.json``; what makes a show: its ``show.json``.

    damfs.json               {"_type":"damfs.library/1","id":<32 hex>,"rules":{…}}
    shows/<show>/show.json   {"_type":"damfs.show/1","show":<show>}

Both are canonical JSON, created once, never rewritten. The id is random: logs and replicas are bound to it, so a
library cannot be taken for another one that lies at the same URL. The rules say how this library's files are cut into
chunks; they are a promise to deduplication, not to readers, who need none of them.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Final

from manifest import canonical, layout
from manifest.errors import Conflict, FormatError, NotFound
from manifest.library import TIMEOUT_S, Library
from manifest.names import check_show
from manifest.probe import probe_store
from manifest.way import CENTRAL, Way

LIBRARY_TYPE = "damfs.library/1"
SHOW_TYPE = "damfs.show/1"
IDENTITY_BYTES_MAX = 64 * 1024
_NO_CONTENT = frozenset((layout.PROBE.rstrip("/"), "lost+found", ".snapshot"))
_NAMES_SHOWN = 3
_ID = re.compile(r"[0-9a-f]{32}")
_MIB: Final = 1024 * 1024
RULES: Final[dict[str, object]] = {
    "chunks": {
        "head_bytes": 64 * 1024,
        "random": {"avg_bytes": _MIB // 4, "max_bytes": _MIB, "min_bytes": _MIB // 16},
        "stream": {"avg_bytes": 4 * _MIB, "max_bytes": 16 * _MIB, "min_bytes": _MIB},
    }
}
"""The rules of a new library: the chunking profiles of DESIGN.md."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Which library this is. ``id`` is 32 lower-case hex digits."""

    id: str


def read_identity(library: Library, *, timeout_s: float = TIMEOUT_S) -> Identity:
    """Read ``damfs.json``. Raises NotFound where there is no library, FormatError for one of a newer format."""
    try:
        data = library.get(layout.IDENTITY, timeout_s=timeout_s, bytes_max=IDENTITY_BYTES_MAX)
    except NotFound as error:
        raise NotFound(
            f"not a library: no {layout.IDENTITY} at {library.url}; check the URL, or run `damfs init {library.url}`"
        ) from error
    value = _object(data, LIBRARY_TYPE, f"{layout.IDENTITY} at {library.url}")
    if value.keys() != {"_type", "id", "rules"} or not isinstance(value["rules"], dict):
        raise FormatError(f"{layout.IDENTITY} at {library.url}: expected the fields _type, id and rules")
    if not isinstance(value["id"], str) or not _ID.fullmatch(value["id"]):
        raise FormatError(f"{layout.IDENTITY} at {library.url}: the id is not 32 hex digits")
    return Identity(value["id"])


def create_library(library: Library) -> Identity:
    """Make a library where there is none: prove the store, then write ``damfs.json``.

    Raises Conflict when there is a library already, or anything else: a library mixes with nothing; and
    ConfigurationError for a store that ignores conditional puts.
    """
    library.make_root()
    try:
        there = read_identity(library)
    except NotFound:
        pass
    else:
        raise Conflict(f"there is a library at {library.url} already: {there.id}")
    _require_nothing_else(library)
    probe_store(library)
    return write_identity(library)


def _require_nothing_else(library: Library) -> None:
    """Raise Conflict when the place of a new library holds anything but what an ended attempt or the system left."""
    names = library.first_names()
    others = sorted(name for name in names if name not in _NO_CONTENT and not name.startswith(layout.IDENTITY))
    if not others:
        return
    shown = ", ".join(map(repr, others[:_NAMES_SHOWN])) + (", …" if len(others) > _NAMES_SHOWN else "")
    if layout.SHOWS.rstrip("/") in others:
        raise Conflict(
            f"{library.url} holds {shown} and no {layout.IDENTITY}: it looks like a library that has lost that file; "
            "restore it from a copy, or name another place"
        )
    raise Conflict(f"{library.url} is not empty: it holds {shown}; a library needs an empty or a new place of its own")


def write_identity(library: Library) -> Identity:
    """Write ``damfs.json`` of a new library to a store that is known to honour conditional puts."""
    identity = Identity(secrets.token_hex(16))
    data = canonical.encode({"_type": LIBRARY_TYPE, "id": identity.id, "rules": RULES})
    try:
        library.create(layout.IDENTITY, data)
    except Conflict as error:
        # Perhaps it is our own, after a lost reply.
        if read_identity(library) != identity:
            raise Conflict(f"somebody else made a library at {library.url} at the same time") from error
    return identity


def add_show(library: Library, show: str) -> None:
    """Make a show. Raises Conflict when it is there, FormatError for a name that is none."""
    key = layout.show_key(check_show(show))
    try:
        library.create(key, canonical.encode({"_type": SHOW_TYPE, "show": show}))
    except Conflict as error:
        raise Conflict(f"the library at {library.url} has a show {show} already") from error


def list_shows(library: Library, *, timeout_s: float = TIMEOUT_S, way: Way = CENTRAL, fresh: bool = True) -> list[str]:
    """The names of all shows, sorted. One listing: a show is what has a folder of its name.

    ``way``: a cache that is asked first, unless ``fresh``; what it says may be some seconds old.
    """
    names = []
    ask = way.fresh if fresh else way.news
    folders = ask(
        lambda near, near_s: near.folders(layout.SHOWS, timeout_s=near_s),
        lambda rest_s: library.folders(layout.SHOWS, timeout_s=rest_s),
        timeout_s,
    )
    for name in folders:
        try:
            names.append(check_show(name))
        except FormatError:
            # Only a folder put there by hand: `add_show` makes no such name, and no address can reach it.
            continue
    return names


def show_exists(library: Library, show: str, *, timeout_s: float = TIMEOUT_S) -> bool:
    """Whether the library has this show. Raises FormatError when its ``show.json`` is of a newer format."""
    key = layout.show_key(check_show(show))
    try:
        data = library.get(key, timeout_s=timeout_s, bytes_max=IDENTITY_BYTES_MAX)
    except NotFound:
        return False
    if _object(data, SHOW_TYPE, key) != {"_type": SHOW_TYPE, "show": show}:
        raise FormatError(f"{key} at {library.url} is of another show, or has fields that are not known here")
    return True


def _object(data: bytes, expected: str, what: str) -> dict[str, object]:
    """The JSON object of this type. A newer number behind the same name is told apart from nonsense."""
    value = canonical.decode(data, bytes_max=IDENTITY_BYTES_MAX)
    kind = value.get("_type") if isinstance(value, dict) else None
    if not isinstance(value, dict) or kind != expected:
        newer = isinstance(kind, str) and kind.rpartition("/")[0] == expected.rpartition("/")[0]
        hint = "; it was made by a newer damfs: upgrade this machine" if newer else ""
        raise FormatError(f"{what}: expected {expected}, got {str(kind)[:80]!r}{hint}")
    return value
