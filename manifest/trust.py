"""Trust: whose signatures count.

    {"_type":"damfs.trust/1","keys":{keyid:{"keytype":"ed25519","keyval":{"public":hex},"scheme":"ed25519"}},"library":id}

``PinnedKeys`` verifies against the keys of a trust file, which is handed to a machine once, on a way that is
trusted. Keys and their file format are securesystemslib's; a key id is computed from the public key and never
believed. The verifier does no input or output, and a verified entry is one whose *stored* bytes were checked.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib import dsse
from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import (  # type: ignore[attr-defined]  # exported there without __all__
    CryptoSigner,
    Signature,
    SSlibKey,
)

from manifest import canonical
from manifest.digest import Digest
from manifest.entry import Entry, decode_entry, open_envelope
from manifest.errors import ConfigurationError, Conflict, FormatError, TrustError
from manifest.fields import fields, hex_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

TYPE = "damfs.trust/1"
TRUST_BYTES_MAX = 1024 * 1024
_KEY_BYTES_MAX = 16 * 1024


class Verifier(Protocol):
    """Decides whether a stored entry is somebody's who may publish."""

    @property
    def digest(self) -> Digest:
        """Of everything that the decisions depend on; a replica made under another digest is rebuilt."""

    def verify(self, stored: bytes) -> tuple[Entry, str]:
        """The entry and the id of the key that signed it. Raises TrustError or FormatError.

        NewerFormat when a trusted key has signed what only a later version can read. ConfigurationError when it
        could not be decided here: never a statement about the entry.
        """


class SigningKey:
    """An Ed25519 key pair that signs entries. Never printed: only ``save`` writes the private part."""

    def __init__(self, signer: CryptoSigner) -> None:
        self._signer = signer

    @classmethod
    def generate(cls) -> SigningKey:
        """A new random key."""
        return cls(CryptoSigner.generate_ed25519())

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """Read a PEM (PKCS #8) file that nobody but its owner may read. Raises ConfigurationError."""
        try:
            with path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                if mode & 0o077:
                    raise ConfigurationError(
                        f"the key {path} can be read by others (mode {stat.S_IMODE(mode):04o}): chmod 600 {path}"
                    )
                data = file.read(_KEY_BYTES_MAX)
        except OSError as error:
            raise ConfigurationError(f"the key {path} cannot be read: {error.strerror}") from error
        try:
            private = load_pem_private_key(data, password=None)
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"{path} is no unencrypted private key in PEM") from error
        if not isinstance(private, Ed25519PrivateKey):
            raise ConfigurationError(f"{path} is no Ed25519 key: make one with damfs key new")
        return cls(CryptoSigner(private))

    def save(self, path: Path) -> None:
        """Write the key, mode 0600, durably. Raises Conflict when the file exists, OSError."""
        temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            try:
                os.write(descriptor, self._signer.private_bytes)  # far below what one write takes
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            try:
                os.link(temporary, path)
            except FileExistsError as error:
                raise Conflict(f"{path} exists and is not overwritten: name another file") from error
        finally:
            temporary.unlink()
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @property
    def keyid(self) -> str:
        """64 hex digits, computed from the public key."""
        return str(self._signer.public_key.keyid)

    @property
    def public(self) -> dict[str, Any]:
        """The public half as a trust file has it."""
        return dict(self._signer.public_key.to_dict())

    def sign(self, payload_type: str, payload: bytes) -> bytes:
        """The 64-byte signature over the DSSE pre-authentication encoding of the payload."""
        return bytes.fromhex(self._signer.sign(dsse.Envelope(payload, payload_type, {}).pae()).signature)


class PinnedKeys:
    """A Verifier with a fixed set of keys, all of which may publish to every show of one library.

    Invariant: every key stands under the id that was computed from it.
    """

    def __init__(self, library_id: str, keys: Iterable[Mapping[str, Any]]) -> None:
        """Pin public keys, as ``SigningKey.public`` gives them. Raises FormatError."""
        self.library_id = hex_id("library id", library_id)
        self._keys: dict[str, SSlibKey] = {}
        for description in keys:
            key = _key(description)
            self._keys[key.keyid] = key

    @classmethod
    def from_file(cls, path: Path) -> PinnedKeys:
        """Read a trust file. Raises ConfigurationError when it cannot be read, TrustError for a lying key id."""
        try:
            with path.open("rb") as file:
                data = file.read(TRUST_BYTES_MAX + 1)
        except OSError as error:
            raise ConfigurationError(f"the trust file {path} cannot be read: {error.strerror}") from error
        try:
            return cls.from_bytes(data)
        except FormatError as error:
            raise ConfigurationError(
                f"{path} is no trust file: {error}. damfs init prints one; copy it whole"
            ) from error
        except TrustError as error:
            raise TrustError(f"the trust file {path}: {error}") from error

    @classmethod
    def from_bytes(cls, data: bytes) -> PinnedKeys:
        """Read the bytes of a trust file. Raises FormatError, and TrustError when a key id is not its key's."""
        kind, keys, library_id = fields(
            canonical.decode(data.removesuffix(b"\n"), bytes_max=TRUST_BYTES_MAX), "_type", "keys", "library"
        )
        if kind != TYPE:
            raise FormatError(f"expected {TYPE}, got {str(kind)[:80]!r}")
        if not isinstance(keys, dict) or not keys:
            raise FormatError("it names no key")
        pinned = cls(library_id, keys.values())
        if lying := keys.keys() - pinned.keyids:
            raise TrustError(f"the key id {min(lying)[:80]} is not the id of its key")
        return pinned

    def to_bytes(self) -> bytes:
        """The trust file."""
        keys = {keyid: key.to_dict() for keyid, key in self._keys.items()}
        return canonical.encode({"_type": TYPE, "keys": keys, "library": self.library_id}) + b"\n"

    @property
    def keyids(self) -> frozenset[str]:
        """The ids of the pinned keys."""
        return frozenset(self._keys)

    @property
    def digest(self) -> Digest:
        """Of the canonical key set and the library id."""
        return Digest.of(self.to_bytes())

    def verify(self, stored: bytes) -> tuple[Entry, str]:
        """Check the signature first and read the entry then. Raises what ``Verifier.verify`` says."""
        envelope = open_envelope(stored)
        key = self._keys.get(envelope.keyid)
        if key is None:
            raise TrustError(f"signed with the key {envelope.keyid[:80]}, which the trust file does not name")
        signed = dsse.Envelope(envelope.payload, envelope.payload_type, {}).pae()
        try:
            key.verify_signature(Signature(envelope.keyid, envelope.signature.hex()), signed)
        except VerificationError as error:  # no memory, or no Ed25519 in this OpenSSL
            raise ConfigurationError(f"signatures cannot be checked on this machine: {error.__cause__}") from error
        except UnverifiedSignatureError as error:
            raise TrustError(f"the signature is not one of the key {envelope.keyid}") from error
        return decode_entry(envelope.payload, envelope.payload_type), envelope.keyid


def _key(description: object) -> SSlibKey:
    keytype, keyval, scheme = fields(description, "keytype", "keyval", "scheme")
    (public,) = fields(keyval, "public")
    if keytype != "ed25519" or scheme != "ed25519":
        raise FormatError(f"a key of type {str(keytype)[:40]!r}: expected ed25519")
    try:
        key = SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)))
    except (TypeError, ValueError) as error:
        raise FormatError("a key whose public part is not 64 hex digits") from error
    if key.to_dict() != description:
        raise FormatError("a key that is not in its one spelling")
    return key
