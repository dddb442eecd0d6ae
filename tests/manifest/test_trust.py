"""Keys and whom to believe. One attack a test."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from securesystemslib import dsse

from manifest import canonical
from manifest.digest import Digest
from manifest.entry import PAYLOAD_TYPE, Entry, encode_entry, genesis_prev, seal
from manifest.errors import ConfigurationError, Conflict, FormatError, TrustError
from manifest.trust import PinnedKeys, SigningKey, Verifier
from tests.manifest.builders import KEY, LIBRARY_ID, TRUST

OTHER = SigningKey.generate()
ENTRY = Entry("apollo", 1, genesis_prev(LIBRARY_ID, "apollo"), "0" * 32, Digest.of(b"changes"), "ada", "", 1)


def resigned(**changed: Any) -> bytes:
    """The sealed entry with parts of its envelope replaced."""
    stored = canonical.decode(seal(ENTRY, KEY), bytes_max=99999)
    signature = stored["signatures"][0]
    for name, value in changed.items():
        if name in signature:
            signature[name] = value
        else:
            stored[name] = value
    return canonical.encode(stored)


def trust_file(**changed: object) -> bytes:
    return canonical.encode({**canonical.decode(TRUST.to_bytes()[:-1], bytes_max=9999), **changed}) + b"\n"


# -- verifying ------------------------------------------------------------------------------------------------------


def test_an_entry_of_a_pinned_key_is_believed() -> None:
    verifier: Verifier = TRUST
    assert verifier.verify(seal(ENTRY, KEY)) == (ENTRY, KEY.keyid)


def test_the_signature_is_plain_dsse() -> None:
    stored = canonical.decode(seal(ENTRY, KEY), bytes_max=99999)
    pae = b"DSSEv1 %d %b %d " % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(encode_entry(ENTRY)))
    assert dsse.Envelope(encode_entry(ENTRY), PAYLOAD_TYPE, {}).pae() == pae + encode_entry(ENTRY)
    assert base64.b64decode(stored["signatures"][0]["sig"]) == KEY.sign(PAYLOAD_TYPE, encode_entry(ENTRY))


def test_an_unknown_key_is_not_believed() -> None:
    with pytest.raises(TrustError, match="does not name"):
        TRUST.verify(seal(ENTRY, OTHER))


def test_an_unknown_key_under_a_pinned_key_id_is_not_believed() -> None:
    signature = base64.b64encode(OTHER.sign(PAYLOAD_TYPE, encode_entry(ENTRY))).decode()
    with pytest.raises(TrustError, match="not one of the key"):
        TRUST.verify(resigned(sig=signature))


def test_a_changed_payload_is_not_believed() -> None:
    forged = encode_entry(ENTRY).replace(b'"ada"', b'"eve"')
    with pytest.raises(TrustError, match="not one of the key"):
        TRUST.verify(resigned(payload=base64.b64encode(forged).decode()))


def test_every_flipped_bit_of_an_entry_is_noticed() -> None:
    stored = seal(ENTRY, KEY)
    for at in range(0, len(stored), 5):
        damaged = bytearray(stored)
        damaged[at] ^= 1 << at % 7
        with pytest.raises((TrustError, FormatError)):
            TRUST.verify(bytes(damaged))


def test_a_signature_over_another_payload_type_is_not_believed() -> None:
    signature = base64.b64encode(KEY.sign("application/vnd.in-toto+json", encode_entry(ENTRY))).decode()
    with pytest.raises(TrustError, match="not one of the key"):
        TRUST.verify(resigned(sig=signature))


def test_a_signature_over_the_bare_payload_is_not_believed() -> None:
    bare = KEY._signer.sign(encode_entry(ENTRY)).signature
    with pytest.raises(TrustError):
        TRUST.verify(resigned(sig=base64.b64encode(bytes.fromhex(bare)).decode()))


def test_a_second_signature_is_refused_even_when_both_are_good() -> None:
    stored = canonical.decode(seal(ENTRY, KEY), bytes_max=99999)
    two = PinnedKeys(LIBRARY_ID, [KEY.public, OTHER.public])
    more = {
        "keyid": OTHER.keyid,
        "sig": base64.b64encode(OTHER.sign(PAYLOAD_TYPE, encode_entry(ENTRY))).decode(),
    }
    stored["signatures"].append(more)
    with pytest.raises(FormatError, match="exactly one"):
        two.verify(canonical.encode(stored))


def test_a_signed_payload_that_is_no_entry_is_refused() -> None:
    payload = b'{"_type":"damfs.entry/1"}'
    signature = base64.b64encode(KEY.sign(PAYLOAD_TYPE, payload)).decode()
    with pytest.raises(FormatError):
        TRUST.verify(resigned(payload=base64.b64encode(payload).decode(), sig=signature))


# -- trust files ----------------------------------------------------------------------------------------------------


def test_a_trust_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "trust.json"
    path.write_bytes(TRUST.to_bytes())
    read = PinnedKeys.from_file(path)
    assert read.library_id == LIBRARY_ID
    assert read.keyids == {KEY.keyid}
    assert read.digest == TRUST.digest
    assert read.verify(seal(ENTRY, KEY)) == (ENTRY, KEY.keyid)


def test_the_digest_of_trust_depends_on_the_set_of_keys_and_not_on_their_order() -> None:
    both = PinnedKeys(LIBRARY_ID, [KEY.public, OTHER.public])
    assert both.digest == PinnedKeys(LIBRARY_ID, [OTHER.public, KEY.public]).digest
    assert both.digest != TRUST.digest
    assert PinnedKeys("0" * 32, [KEY.public]).digest != TRUST.digest


def test_a_key_id_that_lies_about_its_key_is_not_believed() -> None:
    with pytest.raises(TrustError, match="not the id of its key"):
        PinnedKeys.from_bytes(trust_file(keys={OTHER.keyid: KEY.public}))


def test_one_key_under_two_ids_is_not_believed() -> None:
    with pytest.raises(TrustError, match="not the id of its key"):
        PinnedKeys.from_bytes(trust_file(keys={KEY.keyid: KEY.public, "0" * 64: KEY.public}))


@pytest.mark.parametrize(
    "key",
    [
        {**KEY.public, "keytype": "rsa"},
        {**KEY.public, "scheme": "rsassa-pss-sha256"},
        {**KEY.public, "keyval": {"public": "00"}},
        {**KEY.public, "keyval": {"public": "zz" * 32}},
        {**KEY.public, "keyval": {"public": KEY.public["keyval"]["public"].upper()}},
        {**KEY.public, "keyval": {"public": 7}},
        {**KEY.public, "keyval": {"public": KEY.public["keyval"]["public"], "private": "x"}},
        {**KEY.public, "extra": 1},
        "key",
        None,
    ],
)
def test_a_key_of_another_form_is_refused(key: object) -> None:
    with pytest.raises(FormatError):
        PinnedKeys.from_bytes(trust_file(keys={KEY.keyid: key}))


@pytest.mark.parametrize(
    "changed", [{"keys": {}}, {"keys": []}, {"library": "x"}, {"_type": "damfs.trust/2"}, {"extra": 1}]
)
def test_a_trust_file_that_breaks_a_rule_is_refused(changed: dict[str, object]) -> None:
    with pytest.raises(FormatError):
        PinnedKeys.from_bytes(trust_file(**changed))


def test_what_is_no_trust_file_is_an_error_that_names_it_and_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "trust.json"
    for data in (b"", b"hello", b"{}", b"\xff", TRUST.to_bytes()[:-10], b"x" * 2_000_000):
        path.write_bytes(data)
        with pytest.raises(ConfigurationError, match=r"trust\.json is no trust file.*damfs init"):
            PinnedKeys.from_file(path)


def test_a_missing_trust_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.json cannot be read"):
        PinnedKeys.from_file(tmp_path / "none.json")


# -- keys -----------------------------------------------------------------------------------------------------------


def test_a_saved_key_signs_as_before(tmp_path: Path) -> None:
    KEY.save(tmp_path / "key")
    loaded = SigningKey.load(tmp_path / "key")
    assert loaded.keyid == KEY.keyid
    assert seal(ENTRY, loaded) == seal(ENTRY, KEY)


def test_a_saved_key_can_be_read_by_its_owner_alone(tmp_path: Path) -> None:
    KEY.save(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    KEY.save(tmp_path / "key")
    with pytest.raises(Conflict, match="not overwritten"):
        OTHER.save(tmp_path / "key")
    assert SigningKey.load(tmp_path / "key").keyid == KEY.keyid
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_key_is_never_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Conflict):
        KEY.save(tmp_path / "key")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_key_that_others_can_read_or_change_is_refused(tmp_path: Path, mode: int) -> None:
    KEY.save(tmp_path / "key")
    (tmp_path / "key").chmod(mode)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        SigningKey.load(tmp_path / "key")


def test_a_key_of_another_algorithm_is_refused(tmp_path: Path) -> None:
    private = generate_private_key(SECP256R1())
    path = tmp_path / "key"
    path.touch(mode=0o600)
    path.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(ConfigurationError, match="no Ed25519 key"):
        SigningKey.load(path)


def test_what_is_no_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.touch(mode=0o600)
    for data in (b"", b"hello", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"):
        path.write_bytes(data)
        with pytest.raises(ConfigurationError, match="no unencrypted private key"):
            SigningKey.load(path)


def test_a_missing_key_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="none cannot be read"):
        SigningKey.load(tmp_path / "none")


def test_a_key_does_not_show_its_private_half() -> None:
    assert KEY._signer.private_bytes.decode() not in repr(KEY)
    assert set(KEY.public) == {"keytype", "scheme", "keyval"}
    assert set(KEY.public["keyval"]) == {"public"}
