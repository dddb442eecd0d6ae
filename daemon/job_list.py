"""The jobs of a prefetch on disk: a file each, ``jobs/<number>.json``, beside the replicas (docs/FORMAT.md).

State: none. A file is written as a whole, before anybody is told of what it says. That of a job which has ended keeps
what became of it, and no longer what it wanted.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from blake3 import blake3

from cache import durable
from daemon.wants import WANTS_MAX, Want
from manifest import canonical
from manifest.errors import ConfigurationError, FormatError, UserError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

log = logging.getLogger(__name__)

FOLDER = "jobs"
FILE_BYTES_MAX = 64 * 1024 * 1024
ENDED: Final = ("complete", "failed", "cancelled")
_TYPE = "damfs.job/1"
_TEXT_MAX = 1000


@dataclass(slots=True)
class JobRecord:
    """A job as it outlives the daemon. ``what`` names its wants: two jobs that want the same are one."""

    id: int
    what: str
    name: str
    made_ns: int
    wants: list[Want]
    state: str = "queued"
    ended_ns: int | None = None
    files: int = 0
    bytes: int = 0
    brought_bytes: int = 0
    missing: int = 0
    error: str | None = None
    kind: str | None = None

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED


def what(wants: Sequence[Want]) -> str:
    """What names wants: the same for the same ones in the same order. Takes a moment for many."""
    return blake3(canonical.encode([want.to_json() for want in wants])).hexdigest()


def save(folder: Path, record: JobRecord) -> None:
    """Write a job. Blocking. Raises ConfigurationError."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    values["wants"] = [] if record.has_ended else [want.to_json() for want in record.wants]
    values["error"] = None if record.error is None else record.error[:_TEXT_MAX]
    try:
        folder.mkdir(exist_ok=True)
        durable.write(folder / f"{record.id}.json", canonical.encode({"_type": _TYPE, **values}) + b"\n")
    except (OSError, FormatError) as error:
        raise ConfigurationError(f"the job cannot be written to {folder}: {error}") from error


def forget(folder: Path, job: int) -> None:
    """Remove the file of a job. Blocking. Raises nothing: what stays is removed another time."""
    with suppress(OSError):
        (folder / f"{job}.json").unlink()


def load(folder: Path) -> list[JobRecord]:
    """All jobs, the oldest first. One that is damaged is put aside: what it wanted can be asked again.

    Blocking. Raises nothing.
    """
    found = []
    try:
        paths = sorted(folder.glob("*.json"))
    except OSError as error:
        log.error("the jobs in %s cannot be listed: %s", folder, error)
        return []
    for path in paths:
        try:
            with path.open("rb") as file:
                data = file.read(FILE_BYTES_MAX + 2)
            found.append(_read(canonical.decode(data.removesuffix(b"\n"), bytes_max=FILE_BYTES_MAX), path.stem))
        except (OSError, FormatError, UserError) as error:
            log.error("the job in %s cannot be read (%s): it is put aside; prefetch anew", path, error)
            with suppress(OSError):
                path.replace(path.with_suffix(".damaged"))
    return sorted(found, key=lambda record: record.id)


def _read(values: Any, name: str) -> JobRecord:
    known = {field.name for field in fields(JobRecord)} | {"_type"}
    if not isinstance(values, dict) or values.get("_type") != _TYPE or set(values) != known:
        raise FormatError(f"it is no {_TYPE}")
    del values["_type"]
    wants = values.pop("wants")
    if not isinstance(wants, list) or len(wants) > WANTS_MAX:
        raise FormatError("its wants are no list, or too many")
    record = JobRecord(**values, wants=[Want.from_json(want) for want in wants])
    _check(record, name)
    return record


def _check(record: JobRecord, name: str) -> None:
    counts = ("id", "made_ns", "files", "bytes", "brought_bytes", "missing")
    texts = ("what", "name", "state")
    if any(type(number := getattr(record, count)) is not int or number < 0 for count in counts):
        raise FormatError("a number of it is none")
    if any(not isinstance(getattr(record, text), str) for text in texts):
        raise FormatError("a text of it is none")
    if not isinstance(record.error, str | None) or not isinstance(record.kind, str | None):
        raise FormatError("its error is no text")
    if record.state not in (*ENDED, "queued") or (record.ended_ns is not None and type(record.ended_ns) is not int):
        raise FormatError(f"it is in the state {record.state!r}")
    if str(record.id) != name:
        raise FormatError(f"it is the job {record.id}")
