"""Entries and their envelopes: exactly right, or refused. One attack a test."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifest import canonical, entry
from manifest.digest import Digest
from manifest.entry import ENVELOPE_BYTES_MAX, Entry, decode_entry, encode_entry, genesis_prev, open_envelope, seal
from manifest.errors import FormatError, NewerFormat
from manifest.names import REVISION_MAX
from tests.manifest.builders import KEY, LIBRARY_ID, TRUST

ENTRY = Entry(
    "apollo", 1, genesis_prev(LIBRARY_ID, "apollo"), "0" * 32, Digest.of(b"changes"), "ada", "plates\nin", 1_700
)


def payload(**changed: object) -> bytes:
    return canonical.encode({**canonical.decode(encode_entry(ENTRY), bytes_max=9999), **changed})


def envelope(**changed: object) -> bytes:
    return canonical.encode({**canonical.decode(seal(ENTRY, KEY), bytes_max=99999), **changed})


def signature(**changed: object) -> dict[str, Any]:
    (one,) = canonical.decode(seal(ENTRY, KEY), bytes_max=99999)["signatures"]
    return {**one, **changed}


def test_an_entry_is_read_as_it_was_written() -> None:
    assert decode_entry(encode_entry(ENTRY)) == ENTRY


def test_the_payload_is_the_documented_json() -> None:
    assert encode_entry(replace(ENTRY, message="")) == (
        b'{"_type":"damfs.entry/1","author":"ada","change":"%s","message":"","prev":"%s",'
        b'"publish_id":"00000000000000000000000000000000","seq":1,"show":"apollo","time_ns":1700}'
    ) % (str(ENTRY.change).encode(), str(ENTRY.prev).encode())


def test_the_envelope_holds_the_payload_and_one_signature() -> None:
    opened = open_envelope(seal(ENTRY, KEY))
    assert opened.payload == encode_entry(ENTRY)
    assert opened.keyid == KEY.keyid
    assert len(opened.signature) == 64


@given(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=256),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc"], include_characters="\n\t"), max_size=4096),
    st.integers(1, REVISION_MAX),
    st.integers(0, 2**63 - 1),
)
def test_every_legal_entry_survives_its_envelope(author: str, message: str, seq: int, time_ns: int) -> None:
    made = replace(ENTRY, author=author, message=message, seq=seq, time_ns=time_ns)
    assert TRUST.verify(seal(made, KEY)) == (made, KEY.keyid)


def test_the_largest_entry_fits_its_envelope() -> None:
    largest = replace(ENTRY, show="s" * 64, author="😀" * 256, message="😀" * 4096, time_ns=2**63 - 1)
    assert len(seal(largest, KEY)) < ENVELOPE_BYTES_MAX


def test_the_first_prev_binds_a_log_to_its_library_and_show() -> None:
    ids = {genesis_prev(LIBRARY_ID, "apollo"), genesis_prev(LIBRARY_ID, "gemini"), genesis_prev("0" * 32, "apollo")}
    assert len(ids) == 3
    assert genesis_prev(LIBRARY_ID, "apollo") == Digest.of(f"damfs.genesis/1\n{LIBRARY_ID}\napollo".encode())


# -- payloads -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["damfs.entry/0", "damfs.entry/1 ", "damfs.change/2", "", None, 1])
def test_another_type_is_refused(kind: object) -> None:
    with pytest.raises(FormatError, match=r"expected damfs\.entry/1"):
        decode_entry(payload(_type=kind))


def test_a_newer_type_is_told_apart() -> None:
    with pytest.raises(NewerFormat, match="a newer damfs is needed"):
        decode_entry(payload(_type="damfs.entry/2"))
    with pytest.raises(NewerFormat, match="a newer damfs is needed"):
        decode_entry(payload(), "application/vnd.damfs.entry+cbor")


@pytest.mark.parametrize("show", ["Apollo", "", "..", "a/b", "x" * 65, None])
def test_a_bad_show_is_refused(show: object) -> None:
    with pytest.raises(FormatError, match="show name"):
        decode_entry(payload(show=show))


@pytest.mark.parametrize("seq", [0, -1, REVISION_MAX + 1, 2**63 - 1, True, "1", None])
def test_a_seq_out_of_range_is_refused(seq: object) -> None:
    with pytest.raises(FormatError, match="seq"):
        decode_entry(payload(seq=seq))


@pytest.mark.parametrize("seq", [b"1.0", b"1e0", b"01", b"-0", b"9" * 4000])
def test_a_seq_that_is_no_plain_integer_is_refused(seq: bytes) -> None:
    with pytest.raises(FormatError):
        decode_entry(payload().replace(b'"seq":1', b'"seq":' + seq))


@pytest.mark.parametrize("time_ns", [-1, 1.5, None])
def test_a_time_out_of_range_is_refused(time_ns: object) -> None:
    with pytest.raises(FormatError):
        decode_entry(payload().replace(b"1700", str(time_ns).encode()))


@pytest.mark.parametrize("name", ["prev", "change"])
@pytest.mark.parametrize("digest", ["", "b3:", "b3:" + "A" * 64, "00" * 32, None])
def test_a_bad_digest_is_refused(name: str, digest: object) -> None:
    with pytest.raises(FormatError, match="digest"):
        decode_entry(payload(**{name: digest}))


@pytest.mark.parametrize("publish_id", ["0" * 31, "0" * 33, "G" * 32, "0" * 31 + "\n", 0, None])
def test_a_bad_publish_id_is_refused(publish_id: object) -> None:
    with pytest.raises(FormatError, match="publish_id"):
        decode_entry(payload(publish_id=publish_id))


def test_an_author_of_257_characters_is_refused() -> None:
    with pytest.raises(FormatError, match="author"):
        decode_entry(payload(author="x" * 257))


def test_a_message_of_4097_characters_is_refused() -> None:
    with pytest.raises(FormatError, match="message"):
        decode_entry(payload(message="x" * 4097))


@pytest.mark.parametrize("author", ["a\nb", "\x1b[2J", "a\x00", "a\x9b"])
def test_an_author_that_would_move_the_cursor_is_refused(author: str) -> None:
    with pytest.raises(FormatError, match="control"):
        decode_entry(payload(author=author))


def test_a_message_with_an_escape_sequence_is_refused() -> None:
    with pytest.raises(FormatError, match="control"):
        decode_entry(payload(message="\x1b]0;title\x07"))


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(FormatError):
        decode_entry(payload(author="x").replace(b'"x"', b'"\\ud800"'))


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(FormatError, match="expected an object"):
        decode_entry(payload(extra=1))


def test_a_missing_field_is_refused() -> None:
    whole = canonical.decode(payload(), bytes_max=9999)
    for name in whole:
        with pytest.raises(FormatError):
            decode_entry(canonical.encode({key: value for key, value in whole.items() if key != name}))


def test_a_payload_in_another_spelling_is_refused() -> None:
    with pytest.raises(FormatError, match="canonical"):
        decode_entry(payload() + b"\n")


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b'"x"', b"\xff", b"{}"])
def test_what_is_no_object_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        decode_entry(data)


@pytest.mark.parametrize(
    "changed", [{"seq": 0}, {"author": "a\n"}, {"publish_id": "x"}, {"show": "A"}, {"message": "x" * 5000}]
)
def test_what_could_not_be_read_is_not_sealed(changed: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        seal(replace(ENTRY, **changed), KEY)


# -- envelopes ------------------------------------------------------------------------------------------------------


def test_an_envelope_of_more_than_64_kib_is_refused() -> None:
    assert ENVELOPE_BYTES_MAX == 65536
    with pytest.raises(FormatError, match="at most 65536"):
        open_envelope(envelope(payload=base64.b64encode(bytes(49000)).decode()))


def test_two_signatures_are_refused() -> None:
    with pytest.raises(FormatError, match="exactly one"):
        open_envelope(envelope(signatures=[signature(), signature()]))


def test_no_signature_is_refused() -> None:
    with pytest.raises(FormatError, match="exactly one"):
        open_envelope(envelope(signatures=[]))


def test_another_payload_type_is_for_whoever_has_checked_the_signature() -> None:
    assert open_envelope(envelope(payloadType="application/vnd.in-toto+json")).payload_type.endswith("in-toto+json")


@pytest.mark.parametrize("payload_type", ["", "a b", "é", "x" * 257, "a\n", None, 1])
def test_what_is_no_payload_type_is_refused(payload_type: object) -> None:
    with pytest.raises(FormatError, match=r"expected application/vnd\.damfs\.entry"):
        open_envelope(envelope(payloadType=payload_type))


@pytest.mark.parametrize("sig", ["", "AA==", "A" * 88, "!" * 88, None])
def test_a_signature_of_another_form_is_refused(sig: object) -> None:
    with pytest.raises(FormatError):
        open_envelope(envelope(signatures=[signature(sig=sig)]))


def test_base64_in_a_second_spelling_is_refused() -> None:
    sig = signature()["sig"]
    assert sig.endswith("==")
    other = sig[:-3] + chr(ord(sig[-3]) + 1) + "=="
    if base64.b64decode(other) == base64.b64decode(sig):
        with pytest.raises(FormatError, match="spelling"):
            open_envelope(envelope(signatures=[signature(sig=other)]))
    with pytest.raises(FormatError):
        open_envelope(envelope(signatures=[signature(sig=sig + "\n")]))


@pytest.mark.parametrize("keyid", [7, None, "x" * 65])
def test_a_key_id_of_another_form_is_refused(keyid: object) -> None:
    with pytest.raises(FormatError, match="key id"):
        open_envelope(envelope(signatures=[signature(keyid=keyid)]))


def test_an_unknown_field_of_the_envelope_is_refused() -> None:
    with pytest.raises(FormatError, match="expected an object"):
        open_envelope(envelope(extra=1))


def test_an_envelope_in_another_spelling_is_refused() -> None:
    with pytest.raises(FormatError, match="canonical"):
        open_envelope(seal(ENTRY, KEY) + b" ")


def test_the_payload_type_is_the_registered_one() -> None:
    assert entry.PAYLOAD_TYPE == "application/vnd.damfs.entry+json"
