"""Entries: the small signed records of a show's log, one a revision.

    {"_type":"damfs.entry/1","author","change","message","prev","publish_id","seq","show","time_ns"}

An entry is stored in a DSSE envelope (https://github.com/secure-systems-lab/dsse) of canonical JSON with exactly
one Ed25519 signature. Rules: ``prev`` is the digest of the stored object of the revision before, whatever that
holds, so the log is a hash chain; the first entry's ``prev`` binds the log to its library and show. Order comes from
``seq`` alone, ``time_ns`` is for people. State: none.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from manifest import canonical
from manifest.digest import Digest
from manifest.errors import FormatError, NewerFormat
from manifest.fields import fields, hex_id, integer, refuse_newer, text
from manifest.names import REVISION_MAX, check_show

if TYPE_CHECKING:
    from manifest.trust import SigningKey

TYPE = "damfs.entry/1"
PAYLOAD_TYPE = "application/vnd.damfs.entry+json"
ENVELOPE_BYTES_MAX = 65536
AUTHOR_CHARACTERS_MAX = 256
MESSAGE_CHARACTERS_MAX = 4096
_KEYID_CHARACTERS = 64
_SIGNATURE_BYTES = 64
_PAYLOAD_TYPE = re.compile(r"[!-~]{1,256}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One revision of a show: which changeset, by whom, and behind which stored entry (``prev``).

    ``publish_id`` is 32 lower-case hex digits, unique among a show's applied entries; ``time_ns`` counts from 1970.
    """

    show: str
    seq: int
    prev: Digest
    publish_id: str
    change: Digest
    author: str
    message: str
    time_ns: int


class Envelope(NamedTuple):
    """What a stored entry holds: the payload and its one signature, which is not yet checked."""

    payload: bytes
    keyid: str
    signature: bytes
    payload_type: str = PAYLOAD_TYPE


def genesis_prev(library_id: str, show: str) -> Digest:
    """The ``prev`` of a show's first entry: no log can be moved to another show or library."""
    return Digest.of(f"damfs.genesis/1\n{library_id}\n{show}".encode())


def encode_entry(entry: Entry) -> bytes:
    """The canonical bytes of an entry, the payload of its envelope. Raises FormatError when a rule is broken."""
    _check(entry)
    return canonical.encode(
        {
            "_type": TYPE,
            "author": entry.author,
            "change": str(entry.change),
            "message": entry.message,
            "prev": str(entry.prev),
            "publish_id": entry.publish_id,
            "seq": entry.seq,
            "show": entry.show,
            "time_ns": entry.time_ns,
        }
    )


def decode_entry(payload: bytes, payload_type: str = PAYLOAD_TYPE) -> Entry:
    """Read an entry whose signature was checked. Raises FormatError, and NewerFormat for what later versions sign."""
    if payload_type != PAYLOAD_TYPE:
        raise NewerFormat(f"a newer damfs is needed: it is signed as {payload_type}, and this one reads {PAYLOAD_TYPE}")
    value = canonical.decode(payload, bytes_max=ENVELOPE_BYTES_MAX)
    refuse_newer(value, TYPE)
    kind, author, change, message, prev, publish_id, seq, show, time_ns = fields(
        value, "_type", "author", "change", "message", "prev", "publish_id", "seq", "show", "time_ns"
    )
    if kind != TYPE:
        raise FormatError(f"not a log entry: expected {TYPE}, got {str(kind)[:80]!r}")
    entry = Entry(show, seq, Digest.parse(prev), publish_id, Digest.parse(change), author, message, time_ns)
    _check(entry)
    return entry


def _check(entry: Entry) -> None:
    check_show(entry.show)
    integer("seq", entry.seq, 1, REVISION_MAX)
    hex_id("publish_id", entry.publish_id)
    text("author", entry.author, AUTHOR_CHARACTERS_MAX)
    text("message", entry.message, MESSAGE_CHARACTERS_MAX, allowed="\n\t")
    integer("time_ns", entry.time_ns, 0, canonical.INTEGER_MAX)


def seal(entry: Entry, key: SigningKey) -> bytes:
    """The bytes to store for an entry, signed. Raises FormatError."""
    payload = encode_entry(entry)
    stored = canonical.encode(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [
                {"keyid": key.keyid, "sig": base64.b64encode(key.sign(PAYLOAD_TYPE, payload)).decode()},
            ],
        }
    )
    assert len(stored) <= ENVELOPE_BYTES_MAX, "author and message are bounded, so this always fits"
    return stored


def open_envelope(stored: bytes) -> Envelope:
    """Take a stored entry apart, without checking the signature. Raises FormatError."""
    payload, payload_type, signatures = fields(
        canonical.decode(stored, bytes_max=ENVELOPE_BYTES_MAX), "payload", "payloadType", "signatures"
    )
    if not isinstance(payload_type, str) or not _PAYLOAD_TYPE.fullmatch(payload_type):
        raise FormatError(f"an envelope of {str(payload_type)[:80]!r}: expected {PAYLOAD_TYPE}")
    if not isinstance(signatures, list) or len(signatures) != 1:
        raise FormatError("an entry has exactly one signature")
    keyid, signature = fields(signatures[0], "keyid", "sig")
    if not isinstance(keyid, str) or len(keyid) > _KEYID_CHARACTERS:
        raise FormatError("the signature's key id is no key id")
    raw = _base64("sig", signature)
    if len(raw) != _SIGNATURE_BYTES:
        raise FormatError(f"a signature of {len(raw)} bytes: expected {_SIGNATURE_BYTES} (Ed25519)")
    return Envelope(_base64("payload", payload), keyid, raw, payload_type)


def _base64(what: str, value: object) -> bytes:
    try:
        raw = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except (binascii.Error, ValueError) as error:
        raise FormatError(f"{what} is not base64: {error}") from error
    if base64.b64encode(raw).decode() != value:
        raise FormatError(f"{what} is not base64 in its one spelling")
    return raw
