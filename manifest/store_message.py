"""What went wrong in a store, out of the text that obstore raises: the S3 code, the errno, a reason in a few words.

obstore's errors are a few classes and a text: a message and the dump of its sources, whose wording these patterns
know. State: none. Rule: what a text does not tell is empty (``code``), 0 (``number``) or its first line (``reason``).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Self

_CODE = re.compile(r"<Code>(\w+)</Code>")
_STATUS = re.compile(r"status code: (\d{3})")
_OS_ERROR = re.compile(r"\(os error (\d+)\)|code: (\d+),")
_REASON_CHARACTERS_MAX = 300


@dataclass(frozen=True, slots=True)
class StoreMessage:
    """``code`` is that of an S3 error document, ``number`` an errno, ``reason`` for people."""

    text: str
    code: str
    number: int
    reason: str

    @classmethod
    def of(cls, error: Exception) -> Self:
        """Read what obstore or the file system raised."""
        text = str(error)
        code = match[1] if (match := _CODE.search(text)) else ""
        number = error.errno if isinstance(error, OSError) and error.errno else _errno(text)
        return cls(text, code, number, _reason(error, text, code, number))


def _errno(text: str) -> int:
    match = _OS_ERROR.search(text)
    return int(match[1] or match[2]) if match else 0


def _reason(error: Exception, text: str, code: str, number: int) -> str:
    if "dns error" in text:
        return "the host name of the endpoint cannot be resolved; check the endpoint and the network"
    if "kind: Timeout" in text or "TimedOut" in text:
        return "no answer in time"
    if "BareRedirect" in text:
        return "redirected to another region; set the bucket's region"
    status = _STATUS.search(text)
    if status:
        return f"the store answered {status[1]}" + (f" {code}" if code else "")
    if number:
        return os.strerror(number)
    first = (text.splitlines() or [type(error).__name__])[0]
    return first[:_REASON_CHARACTERS_MAX]
