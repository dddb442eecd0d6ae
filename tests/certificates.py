"""Certificates for tests: an authority of its own, made by the real openssl."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Signed:
    """A certificate and its key, in PEM."""

    cert: Path
    key: Path


class Authority:
    """Signs what it is asked to. ``cert`` is what to trust."""

    def __init__(self, folder: Path, name: str = "studio") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.cert, self._key = folder / f"{name}.pem", folder / f"{name}.key"
        _openssl("req", "-x509", *_new_key(self._key), "-subj", f"/CN={name}", "-days", "3650", "-out", self.cert)

    def sign(self, name: str, *, days: int = 365, address: str = "127.0.0.1") -> Signed:
        """A certificate for ``name`` at ``address``."""
        made = Signed(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        request, extensions = self._folder / f"{name}.csr", self._folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName=IP:{address}\n")
        _openssl("req", *_new_key(made.key), "-subj", f"/CN={name}", "-out", request)
        _openssl("x509", "-req", "-in", request, "-CA", self.cert, "-CAkey", self._key, "-CAcreateserial",
                 "-days", str(days), "-extfile", extensions, "-out", made.cert)  # fmt: skip
        return made


def _new_key(path: Path) -> list[str]:
    return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(path)]


def _openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True, timeout=60)
