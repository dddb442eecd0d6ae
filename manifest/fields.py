"""Checked fields of decoded JSON: exactly these keys, integers in range, text without what does not belong there."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from manifest.errors import FormatError, NewerFormat

_TYPE = re.compile(r"([a-z.]+)/([1-9][0-9]{0,8})")
_HEX_ID = re.compile(r"[0-9a-f]{32}")


def fields(value: object, *names: str) -> tuple[Any, ...]:
    """The values of an object that has exactly these keys. Raises FormatError."""
    if not isinstance(value, dict) or len(value) != len(names) or any(name not in value for name in names):
        got = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise FormatError(f"expected an object with {', '.join(names)}; got {str(got)[:200]}")
    return tuple(value[name] for name in names)


def refuse_newer(value: object, known: str) -> None:
    """Raise NewerFormat for an object whose ``_type`` is ``known`` with a larger number behind its slash.

    Only for what is vouched for: what anybody can write is invalid, not newer.
    """
    kind = value.get("_type") if isinstance(value, dict) else None
    family, _, number = known.partition("/")
    match = _TYPE.fullmatch(kind) if isinstance(kind, str) else None
    if match is not None and match[1] == family and int(match[2]) > int(number):
        raise NewerFormat(f"a newer damfs is needed: it is {kind}, and this one reads {known}")


def integer(what: str, value: object, lowest: int, highest: int) -> int:
    """``value`` when it is an integer within these bounds, which are part of the range. Raises FormatError."""
    if type(value) is not int or not lowest <= value <= highest:
        raise FormatError(f"{what} {str(value)[:40]}: expected an integer from {lowest} to {highest}")
    return value


def text(what: str, value: object, characters_max: int, *, allowed: str = "") -> str:
    """``value`` when it is text without control characters but those ``allowed``. Raises FormatError."""
    if not isinstance(value, str) or len(value) > characters_max:
        raise FormatError(f"{what}: expected text of at most {characters_max} characters")
    if any(unicodedata.category(character) in {"Cc", "Cs"} and character not in allowed for character in value):
        raise FormatError(f"{what}: holds a control character")
    return value


def hex_id(what: str, value: object) -> str:
    """``value`` when it is 32 lower-case hex digits. Raises FormatError."""
    if not isinstance(value, str) or not _HEX_ID.fullmatch(value):
        raise FormatError(f"{what} {str(value)[:80]!r}: expected 32 lower-case hex digits")
    return value
