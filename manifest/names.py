"""The rules for names: shows, revisions, paths, versions, and how people write an address.

A path is relative to its show, UTF-8, ``/``-separated, without empty, ``.`` or ``..`` components and without
NUL; the empty path is the show's root folder and never occurs in an op.
"""

from __future__ import annotations

import datetime
import re
import unicodedata
from dataclasses import dataclass
from typing import Final, NewType

from manifest.errors import FormatError, UsageError

Revision = NewType("Revision", int)
"""The sequence number of an entry in a show's log; 0 is the empty show."""

COMPONENT_BYTES_MAX = 255
PATH_BYTES_MAX = 4095
_NS_DIGITS = 9
_TIME_NS_MAX = 2**63 - 1
REVISION_MAX = 2**22 - 2
"""The largest revision that an inode number has room for (the 22-bit view; all ones mean live)."""

_SHOW = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_VERSION = re.compile(r"v[0-9]{3,}")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LIKE_VERSION = re.compile(r"[vV][0-9]+")
_REVISION = re.compile(r"0|[1-9][0-9]{0,6}")
_UNICODE: Final = unicodedata.ucd_3_2_0
_FRACTION = re.compile(r"(?<=:[0-9]{2})[.,]([0-9]+)")
_MOMENT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}(?::[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]+)?)?)?"
    r"(?:[Zz]|[+-][0-9]{2}(?::?[0-9]{2})?)?(?=:|\Z)"
)
"""A moment at the beginning of REV[:PATH], whose own colons do not end it."""


def check_show(show: object) -> str:
    """``show`` when it is a legal show name. Raises FormatError."""
    if not isinstance(show, str) or not _SHOW.fullmatch(show):
        raise FormatError(f"{show!r} is no show name: expected [a-z0-9][a-z0-9_-]{{0,63}}")
    return show


def check_path(path: object) -> str:
    """``path`` when it is a legal, non-empty path relative to a show. Raises FormatError."""
    if not isinstance(path, str) or not path:
        raise FormatError(f"{path!r} is no path: expected a relative path")
    try:
        encoded = path.encode()
    except UnicodeEncodeError as error:
        raise FormatError(f"{path!r} is no path: it is not valid UTF-8") from error
    if len(encoded) > PATH_BYTES_MAX:
        raise FormatError(f"{path[:80]!r}… is no path: {len(encoded)} bytes, at most {PATH_BYTES_MAX}")
    if "\0" in path:
        raise FormatError(f"{path!r} is no path: it holds a NUL")
    for component in path.split("/"):
        if component in ("", ".", ".."):
            raise FormatError(f"{path!r} is no path: the component {component!r} is not allowed")
        if len(component) * 4 > COMPONENT_BYTES_MAX and len(component.encode()) > COMPONENT_BYTES_MAX:
            raise FormatError(f"{component[:40]!r}… is no name: more than {COMPONENT_BYTES_MAX} bytes")
    return path


def is_version(component: str) -> bool:
    """Whether a folder of this name is a version, and so write-once."""
    return _VERSION.fullmatch(component) is not None


def is_tag(name: str) -> bool:
    """Whether a link of this name can be a tag: nothing that a shell or a terminal minds, nor anything like a version.

    What publishes keeps to it; a reader takes every link as it is.
    """
    return _TAG.fullmatch(name) is not None and _LIKE_VERSION.fullmatch(name) is None


def version_folders(path: str) -> list[str]:
    """The prefixes of ``path`` (itself included) whose last component is a version, shallowest first."""
    components = path.split("/")
    return ["/".join(components[: i + 1]) for i, name in enumerate(components) if is_version(name)]


def nfc(name: str) -> str:
    """The NFC form by the tables of Unicode 3.2, under which siblings must differ; the same in every Python.

    A character that Unicode 3.2 did not have stands for itself, and parts the name: ``ucd_3_2_0.normalize`` itself
    takes the combining classes and compositions of younger ones from the tables of the running Python.
    """
    parts: list[str] = []
    start = 0
    for at, character in enumerate(name):
        if not character.isascii() and _UNICODE.category(character) == "Cn":
            parts += _UNICODE.normalize("NFC", name[start:at]), character
            start = at + 1
    return "".join(parts) + _UNICODE.normalize("NFC", name[start:])


def split(path: str) -> tuple[str, str]:
    """(parent path, name); the parent of a top-level name is the empty path."""
    parent, _, name = path.rpartition("/")
    return parent, name


def join(parent: str, name: str) -> str:
    """The path of ``name`` in the folder ``parent``, which may be the root: what ``split`` undoes."""
    return f"{parent}/{name}" if parent else name


@dataclass(frozen=True, slots=True)
class Address:
    """What ``SHOW[@REV][:PATH]`` names.

    ``at`` is None for the live view, a revision, or a moment in ns since the epoch (the last revision
    published by then).
    """

    show: str
    at: Revision | At | None = None
    path: str = ""

    def __str__(self) -> str:
        at = "" if self.at is None else f"@{self.at}"
        return f"{self.show}{at}" + (f":{self.path}" if self.path else "")


@dataclass(frozen=True, slots=True)
class At:
    """A moment, as ``@2026-11-20`` or ``@2026-11-20T10:15:47.081`` (UTC unless an offset is given) names one."""

    time_ns: int

    def __str__(self) -> str:
        whole, rest = divmod(self.time_ns, 1_000_000_000)
        moment = datetime.datetime.fromtimestamp(whole, datetime.UTC)
        fraction = f".{rest:09}".rstrip("0") if rest else ""
        return f"{moment:%Y-%m-%dT%H:%M:%S}{fraction}Z"


def parse_at(text: str) -> Revision | At:
    """Read what stands behind the ``@``: a revision number or an ISO 8601 date or time. Raises UsageError."""
    if _REVISION.fullmatch(text) and int(text) <= REVISION_MAX:
        return Revision(int(text))
    fraction = _FRACTION.search(text)
    if fraction is not None and len(fraction[1]) > _NS_DIGITS:
        raise UsageError(f"{text!r} is finer than a nanosecond")
    try:
        moment = datetime.datetime.fromisoformat(_FRACTION.sub("", text))
    except ValueError:
        raise UsageError(
            f"{text!r} is no revision: expected its number (@412), or a UTC date or time (@2026-11-20, "
            "@2026-11-20T10:15); revisions have no other names yet"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    since_1970 = moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    time_ns = (since_1970 // datetime.timedelta(microseconds=1)) * 1000
    if fraction is not None:
        time_ns += int(fraction[1].ljust(_NS_DIGITS, "0"))
    if not 0 <= time_ns <= _TIME_NS_MAX:
        raise UsageError(f"{text!r} lies before 1970 or after 2262")
    return At(time_ns)


def parse_address(text: str) -> Address:
    """Read ``SHOW[@REV][:PATH]``; one trailing slash of PATH is dropped. Raises UsageError."""
    head, _, path = text.partition(":")
    show, has_at, at = head.partition("@")
    if not _SHOW.fullmatch(show):
        raise UsageError(f"{text!r} is no address: expected SHOW[@REV][:PATH]")
    if has_at and (moment := _MOMENT.match(text, len(show) + 1)):
        at, path = moment[0], text[moment.end() + 1 :]
    path = path.removesuffix("/")
    try:
        return Address(show, parse_at(at) if has_at else None, check_path(path) if path else "")
    except FormatError as error:
        raise UsageError(str(error)) from error
