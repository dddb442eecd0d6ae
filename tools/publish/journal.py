"""The journal of a publish: what a publish that was ended, even by -9, takes up again.

One file per (library, show, path, sources) in the state folder, of lines of canonical JSON:

    {"_type":"damfs.journal/1","boot_id":…,"library":…,"path":…,"publish_id":…,"show":…,"sources":[…]}
    {"digest":"b3:…","fingerprint":"…","recipe":"<base64>","source":…}         a file that is in the library, whole
    {"publish_id":…}                                                           from here on another id

State: the open, locked file and what it said. Rules: the publish id is on the disk before anything is uploaded; a
line about a file is written when all its chunks are in the library and its source was found unchanged; a last line that
was cut short is dropped, anything else that is wrong sets the whole journal aside. Lines are not synced one by one:
after a crash of the machine, a ``file://`` library may have lost what the journal knows of, so the files are forgotten
then (``boot_id``), and the id is kept.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import os
import re
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from manifest import canonical
from manifest.digest import Digest
from manifest.errors import Busy, ConfigurationError, FormatError
from manifest.recipe import Recipe
from tools.publish.source import Fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

TYPE = "damfs.journal/1"
KEPT_S = 30 * 86400
"""Journals that nobody touched for so long are removed."""
_LINE_BYTES_MAX = 1024**3
_ID = re.compile(r"[0-9a-f]{32}")
_SUFFIX = ".journal"


class Record(NamedTuple):
    """What is known of one source: it was this, and that is in the library."""

    fingerprint: Fingerprint
    digest: Digest
    recipe: Recipe


@dataclass(frozen=True, slots=True)
class Subject:
    """What a journal is about. ``sources`` are absolute paths."""

    library: str
    show: str
    path: str
    sources: tuple[str, ...]

    @classmethod
    def of(cls, library: str, show: str, path: str, sources: Sequence[Path]) -> Self:
        """The subject of publishing these sources, in whatever order they were given."""
        return cls(library, show, path, tuple(sorted({os.path.abspath(source) for source in sources})))  # noqa: PTH100

    def header(self) -> dict[str, object]:
        """The fields of the first line that say what it is about."""
        return {
            "library": self.library,
            "show": self.show,
            "path": self.path,
            "sources": [_spelt(source) for source in self.sources],
        }

    def file_name(self) -> str:
        """The name of its journal."""
        return Digest.of(canonical.encode(self.header())).hex()[:32] + _SUFFIX


class Journal:
    """One open journal; a context manager that closes it. Not thread-safe."""

    def __init__(self, path: Path, descriptor: int, subject: Subject) -> None:
        """Use ``open``."""
        self.path = path
        self.publish_id = ""
        self.resumed = False
        self._descriptor = descriptor
        self._subject = subject
        self._files: dict[str, Record] = {}

    @classmethod
    def open(cls, folder: Path, subject: Subject, *, trust_files: bool, warn: Callable[[str], None]) -> Journal:
        """The journal of this publish, found or begun, with its id durable.

        ``trust_files``: what an earlier boot of this machine uploaded is still there (no ``file://`` library).
        Raises Busy when the same publish is under way, ConfigurationError when the folder cannot be written.
        """
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _prune(folder)
            path = folder / subject.file_name()
            journal = cls(path, _locked(path), subject)
        except BlockingIOError:
            raise Busy(
                f"this publish to {subject.show}:{subject.path} is under way in another process; wait for it to end"
            ) from None
        except OSError as error:
            raise ConfigurationError(f"the journal in {folder} cannot be written: {error.strerror}") from error
        try:
            journal._begin(trust_files=trust_files, warn=warn)
        except BaseException:
            journal.close()
            raise
        return journal

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def find(self, source: str, fingerprint: Fingerprint) -> Record | None:
        """What is known of a source that has this fingerprint now."""
        record = self._files.get(os.path.abspath(source))  # noqa: PTH100
        return record if record and record.fingerprint == fingerprint else None

    def record(self, source: str, record: Record) -> None:
        """A source is in the library, whole."""
        source = os.path.abspath(source)  # noqa: PTH100
        line = {
            "digest": str(record.digest),
            "fingerprint": " ".join(map(str, record.fingerprint)),
            "recipe": base64.b64encode(record.recipe.packed).decode(),
            "source": _spelt(source),
        }
        self._append(line)

    def renew(self) -> None:
        """The id was used up: take another one, durably. What is known of the files stays."""
        self.publish_id = secrets.token_hex(16)
        self.resumed = False
        self._append({"publish_id": self.publish_id})
        os.fsync(self._descriptor)

    def remove(self) -> None:
        """The publish is in the log: nothing is to be taken up again."""
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Give the journal back; the file stays unless it was removed."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    # ------------------------------------------------------------------ reading and writing

    def _begin(self, *, trust_files: bool, warn: Callable[[str], None]) -> None:
        try:
            boot_id = self._read()
        except FormatError as error:
            aside = self.path.with_suffix(f".corrupt-{time.time_ns()}")
            self._files.clear()
            self.publish_id = ""
            aside.write_bytes(self.path.read_bytes())
            os.ftruncate(self._descriptor, 0)
            warn(
                f"the journal of an earlier run is damaged ({error}): it was set aside as {aside}, and all is read anew"
            )
            boot_id = ""
        self.resumed = bool(self.publish_id)
        if not self.publish_id:
            self.publish_id = secrets.token_hex(16)
            self._start_file()
        elif boot_id != _boot_id() and not trust_files:
            self._files.clear()
            os.ftruncate(self._descriptor, 0)
            self._start_file()

    def _start_file(self) -> None:
        header = {"_type": TYPE, "boot_id": _boot_id(), "publish_id": self.publish_id}
        self._append(header | self._subject.header())
        os.fsync(self._descriptor)
        _sync_folder(self.path.parent)

    def _append(self, line: Mapping[str, object]) -> None:
        data = memoryview(canonical.encode(line) + b"\n")
        while data:
            data = data[os.write(self._descriptor, data) :]

    def _read(self) -> str:
        """Take in the file; the boot id it began under. Raises FormatError."""
        boot_id, good_bytes = "", 0
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            file.seek(0)
            for number, line in enumerate(file):
                if not line.endswith(b"\n"):
                    break
                value = canonical.decode(line[:-1], bytes_max=_LINE_BYTES_MAX)
                if number == 0:
                    boot_id = self._read_header(value)
                else:
                    self._read_line(value)
                good_bytes += len(line)
        os.ftruncate(self._descriptor, good_bytes)
        return boot_id

    def _read_header(self, value: object) -> str:
        match value:
            case {"_type": str(kind), "boot_id": str(boot_id), "publish_id": str(publish_id), **about}:
                if kind != TYPE or not _ID.fullmatch(publish_id) or about != self._subject.header():
                    raise FormatError("it is of another kind, or about something else")
                self.publish_id = publish_id
                return boot_id
        raise FormatError("its first line is none")

    def _read_line(self, value: object) -> None:
        match value:
            case {"publish_id": str(publish_id)} if _ID.fullmatch(publish_id):
                self.publish_id = publish_id
            case {"digest": str(digest), "fingerprint": str(fingerprint), "recipe": str(recipe), "source": str(source)}:
                record = Record(_fingerprint(fingerprint), Digest.parse(digest), _recipe(recipe))
                if record.recipe.size != record.fingerprint.size:
                    raise FormatError("a file's recipe does not have its size")
                self._files[_unspelt(source)] = record
            case _:
                raise FormatError("a line of an unknown kind")


def _locked(path: Path) -> int:
    """Open and lock the file; when it was removed in between, the one that is there now. Raises BlockingIOError."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink:
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _prune(folder: Path) -> None:
    """Remove journals, and what was set aside, that are old and not in use."""
    oldest = time.time() - KEPT_S
    for path in folder.iterdir():
        with suppress(OSError):
            if path.stat().st_mtime < oldest:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                finally:
                    os.close(descriptor)


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return secrets.token_hex(16)


def _fingerprint(text: str) -> Fingerprint:
    try:
        return Fingerprint(*(int(number) for number in text.split(" ")))
    except (TypeError, ValueError) as error:
        raise FormatError(f"{text[:80]!r} is no fingerprint") from error


def _recipe(text: str) -> Recipe:
    try:
        return Recipe(base64.b64decode(text, validate=True))
    except ValueError as error:
        raise FormatError("a recipe that is not base64") from error


def _spelt(source: str) -> str:
    """A local path, whatever its bytes, as text that JSON can hold."""
    return os.fsencode(source).decode("latin-1")


def _unspelt(text: str) -> str:
    try:
        return os.fsdecode(text.encode("latin-1"))
    except UnicodeEncodeError as error:
        raise FormatError("a source that is no path") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)
