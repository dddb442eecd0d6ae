"""Canonical bytes: JSON in exactly one spelling, so that equal values have equal digests.

UTF-8, keys sorted, no spaces, no floats, no duplicate keys, integers within 64 bits, nested at most DEPTH_MAX deep;
what is read is encoded again and compared, so nothing that is not exactly right gets in.

The depth has a limit of its own, because the interpreter's depends on who calls: all must refuse the same bytes.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from manifest.errors import FormatError

INTEGER_MAX = 2**63 - 1
DEPTH_MAX = 100
"""Of objects and lists within one another. What damfs writes has at most 5; an op has fewer brackets than these."""
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_encode = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False).encode


def encode(value: object) -> bytes:
    """The canonical bytes of a JSON value. Raises FormatError for what has none (a float, a lone surrogate)."""
    _check(value, 0)
    return _spelled(value)


def _spelled(value: object) -> bytes:
    """The one spelling of a value that holds nothing which has none."""
    try:
        return _encode(value).encode()
    except (TypeError, ValueError) as error:
        raise FormatError(f"not representable as canonical JSON: {error}") from error


def decode(data: bytes, *, bytes_max: int) -> Any:
    """The value of canonical bytes. Raises FormatError when they are longer than ``bytes_max`` or not canonical."""
    if len(data) > bytes_max:
        raise FormatError(f"{len(data)} bytes where at most {bytes_max} are allowed")
    try:
        text = data.decode()
        if text.count("[") + text.count("{") > DEPTH_MAX:
            _check_depth(text)
        value = _decoder.decode(text)
    except ValueError as error:
        raise FormatError(f"not canonical JSON: {error}") from error
    if _spelled(value) != data:
        raise FormatError("not canonical JSON: keys unsorted or repeated, spaces, or another spelling")
    return value


def _check(value: object, depth: int) -> None:
    """Raise FormatError for what the encoder would take and no reader would."""
    if depth >= DEPTH_MAX and isinstance(value, (dict, list, tuple)):
        raise FormatError(_TOO_DEEP)
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise FormatError(f"not representable as canonical JSON: the key {str(key)[:40]!r} is no text")
            _check(item, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check(item, depth + 1)
    elif isinstance(value, int):
        if not -INTEGER_MAX <= value <= INTEGER_MAX:
            raise FormatError("not representable as canonical JSON: an integer of more than 63 bits")
    elif value is not None and not isinstance(value, str):
        raise FormatError(f"not representable as canonical JSON: a {type(value).__name__}")


def _check_depth(text: str) -> None:
    """Raise FormatError for JSON that is nested too deep, before a parser meets it."""
    depth = 0
    for bracket in re.findall(r"[\[\]{}]", _STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > DEPTH_MAX:
            raise FormatError(_TOO_DEEP)


_TOO_DEEP = f"not canonical JSON: nested more than {DEPTH_MAX} deep"


def _no_float(text: str) -> NoReturn:
    raise ValueError(f"{text} is not an integer")


def _integer(text: str) -> int:
    value = int(text) if len(text) <= 20 else INTEGER_MAX + 1
    if not -INTEGER_MAX <= value <= INTEGER_MAX:
        raise ValueError(f"{text[:24]} is out of range")
    return value


_decoder = json.JSONDecoder(parse_float=_no_float, parse_constant=_no_float, parse_int=_integer)
