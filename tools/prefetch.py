"""``damfs prefetch``: have a mount bring what will be read soon, and wait for it.

Rules: the daemon brings, and goes on when the command ends, unless it is told otherwise. What a job would take is said
before it begins. The exit status is 0 when all of it is here (with --wait), or is being brought.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from daemon.client import Client
from daemon.wants import WANTS_MAX
from manifest import errors
from manifest.errors import ConfigurationError, Conflict, DamfsError, NotFound, Unavailable, UsageError, UserError
from manifest.names import Address, parse_address
from tools.cache import Mount, mount_of, place_of
from tools.complete import complete_address
from tools.context import Context
from tools.frames import parse_frames
from tools.options import command
from tools.output import human_bytes, human_duration, plural
from tools.trace import read_trace

POLL_S = 0.3
AWAY_S = 60.0
"""So long a daemon may be away (it crashed, or is being replaced) while a command waits for its job."""
LIST_BYTES_MAX = 16 * 1024 * 1024
_KINDS = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, DamfsError)}

Want = dict[str, Any]


@command(library=False)
def prefetch(
    context: Context,
    places: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SHOW[@REV][:PATH]]…",
            help="Files and folders, live or as of a revision or time; or paths in a mount. With --frames, sequences.",
            autocompletion=complete_address,
        ),
    ] = None,
    sequence: Annotated[
        list[str] | None,
        typer.Option(
            "--sequence",
            metavar="PATTERN",
            help="An image sequence: its path with ####, %04d, @, $F4 or <UDIM> for the number, or one of its frames.",
        ),
    ] = None,
    frames: Annotated[
        str | None,
        typer.Option("--frames", metavar="RANGE", help="Which frames: 1001-1100, 1-100x5, or a list with commas."),
    ] = None,
    list_file: Annotated[
        str | None,
        typer.Option("--list", metavar="FILE", help="More places, one a line; - is stdin. # begins a comment."),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", metavar="FILE", help="What a program read, as damfs trace wrote it: just these bytes."),
    ] = None,
    at: Annotated[
        list[str] | None,
        typer.Option("--at", metavar="SHOW@REV", help="With --trace: the revision of a show; else what it has now."),
    ] = None,
    traced: Annotated[
        bool, typer.Option("--traced", help="Of version folders only what the trace they were published with names.")
    ] = False,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="A folder's subfolders too.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when all of it is here.")] = False,
    deadline: Annotated[
        float | None,
        typer.Option(
            "--deadline",
            metavar="S",
            min=0.0,
            help="Wait for so many seconds at most, then exit with status 6; the job goes on.",
        ),
    ] = None,
    or_cancel: Annotated[
        bool, typer.Option("--or-cancel", help="Cancel the job when the deadline has passed, or with Ctrl-C.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell how large it is.")] = False,
    jobs: Annotated[bool, typer.Option("--jobs", help="List the jobs, and do nothing else.")] = False,
    cancel: Annotated[
        list[int] | None, typer.Option("--cancel", metavar="ID", help="End a job; what it has brought stays.")
    ] = None,
    mount: Mount = None,
) -> None:
    """Bring what will be read soon into the cache, in the background, after all that somebody waits for.

    What is cached already costs nothing, and a job that is under way is not begun twice. A job outlives this command
    and the daemon. What it brings is evicted like anything else that was read once; ``damfs pin`` keeps it. Refused
    when the jobs under way would want more than ``cache.prefetch_share`` of the cache. What is not there is named, the
    rest is brought, and the exit status is 4.
    """
    wants_something = bool(places or sequence or frames or list_file or trace or at or traced)
    if sum((wants_something, jobs, bool(cancel))) != 1:
        raise UsageError("expected what to prefetch, or --jobs, or --cancel ID")
    if jobs:
        _list(context, mount_of(mount))
        return
    if cancel:
        _cancel(context, mount_of(mount), cancel)
        return
    asked = _Asked(places or [], sequence or [], frames, list_file, trace, at or [], traced, recursive, mount)
    client, wants, name = _gather(asked)
    size = client.measure_prefetch(wants)
    if dry_run and context.json:
        context.output.result(size)
    context.output.say(
        f"{name}: {plural(size['files'], 'file')} of {human_bytes(size['bytes'])}, "
        f"{human_bytes(size['bytes'] - size['cached_bytes'])} to download"
    )
    if size["why_not"] is not None:
        raise ConfigurationError(size["why_not"])
    if dry_run:
        _refuse_missing(size)
        return
    job = client.add_prefetch(wants, name)
    if wait or deadline is not None:
        job = _wait(context, client, job, deadline, or_cancel=or_cancel)
    if context.json:
        context.output.result(job)
    context.output.say(_outcome(job))
    _refuse(job)


# ---------------------------------------------------------------------- what is wanted


class _Asked(NamedTuple):
    """What the words of the command ask for."""

    places: Sequence[str]
    sequences: Sequence[str]
    frames: str | None
    list_file: str | None
    trace: Path | None
    at: Sequence[str]
    traced: bool
    recursive: bool
    mount: Path | None

    @property
    def name(self) -> str:
        """What people call it."""
        words = [*self.places, *self.sequences, *(str(file) for file in (self.list_file, self.trace) if file)]
        more = f" and {plural(len(words) - 1, 'thing')} more" if len(words) > 1 else ""
        return "".join((words[0], f" {self.frames}" if self.frames else "", more))[:500]


def _gather(asked: _Asked) -> tuple[Client, list[Want], str]:
    """Whom to ask for what, and what people call it. Raises UsageError, NotFound for a path in no mount."""
    _check(asked)
    numbers = None if asked.frames is None else parse_frames(asked.frames)
    clients: dict[Path, Client] = {}
    wants: list[Want] = []

    def add(text: str, **more: Any) -> None:
        client, address = place_of(text, asked.mount)
        clients[client.mountpoint] = client
        wants.append({**_address(address), **more})

    for text in asked.places:
        if numbers is None:
            add(text, recursive=asked.recursive, traced=asked.traced)
        else:
            add(text, sequence=True, frames=numbers)
    for text in asked.sequences:
        add(text, sequence=True, **({} if numbers is None else {"frames": numbers}))
    for where, text in _lines(asked.list_file) if asked.list_file is not None else ():
        try:
            add(text, recursive=asked.recursive, traced=asked.traced)
        except UserError as error:
            raise type(error)(f"{where}: {error}") from error
    if asked.trace is not None:
        client = mount_of(asked.mount)
        clients[client.mountpoint] = client
        wants += _of_trace(asked.trace, asked.at)
    if not wants:
        raise UsageError(f"{asked.name} names nothing to prefetch")
    if len(wants) > WANTS_MAX:
        raise UsageError(f"these are more than {WANTS_MAX:,} places: name folders")
    if len(clients) > 1:
        raise UsageError("these lie in several mounts: prefetch them one mount at a time")
    return next(iter(clients.values())), wants, asked.name


def _check(asked: _Asked) -> None:
    """Raise UsageError for options that mean nothing together."""
    if asked.frames is not None and (asked.list_file is not None or not (asked.places or asked.sequences)):
        raise UsageError("--frames is of places that are named as arguments, or with --sequence")
    if asked.at and asked.trace is None:
        raise UsageError("--at is of a --trace: other places have their revision in them, as SHOW@REV:PATH")
    if asked.traced and (asked.frames is not None or asked.recursive or not (asked.places or asked.list_file)):
        raise UsageError("--traced is of version folders that are named, without --frames or --recursive")


def _of_trace(file: Path, at: Sequence[str]) -> list[Want]:
    """What a trace names, as of these revisions. Raises UsageError, FormatError."""
    revisions: dict[str, str] = {}
    for text in at:
        address = parse_address(text)
        if address.at is None or address.path:
            raise UsageError(f"--at {text}: expected SHOW@REV")
        revisions[address.show] = str(address.at)
    return [found.want(revisions.get(found.show)).to_json() for found in read_trace(file).files]


def _address(address: Address) -> Want:
    at = None if address.at is None else str(address.at)
    return {"show": address.show, "path": address.path} | ({} if at is None else {"at": at})


def _lines(name: str) -> Iterator[tuple[str, str]]:
    """(file and line for messages, place) of each line that is no comment. Raises UsageError."""
    try:
        if name == "-":
            data = sys.stdin.buffer.read(LIST_BYTES_MAX + 1)
        else:
            with Path(name).open("rb") as file:
                data = file.read(LIST_BYTES_MAX + 1)
    except OSError as error:
        raise UsageError(f"the list {name} cannot be read: {error.strerror}") from error
    if len(data) > LIST_BYTES_MAX:
        raise UsageError(f"the list {name} has more than {LIST_BYTES_MAX:,} bytes: name folders")
    for number, line in enumerate(data.split(b"\n"), 1):
        where = f"{name}, line {number}"
        try:
            text = line.removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            raise UsageError(f"{where}: it is not UTF-8") from error
        if text.strip() and not text.lstrip().startswith("#"):
            yield where, text


# ---------------------------------------------------------------------- how it goes


def _wait(
    context: Context, client: Client, job: dict[str, Any], deadline_s: float | None, *, or_cancel: bool
) -> dict[str, Any]:
    """Show the progress of a job until it has ended, or the deadline has passed: then it is as it is then."""
    until = None if deadline_s is None else time.monotonic() + deadline_s
    number, done = job["id"], 0
    try:
        with context.output.progress(f"prefetch {number}", total=job["bytes"]) as bar:
            while job["ended_ns"] is None:
                bar.advance(job["cached_bytes"] - done)
                done = job["cached_bytes"]
                if until is not None and time.monotonic() >= until:
                    break
                time.sleep(POLL_S if until is None else max(0.01, min(POLL_S, until - time.monotonic())))
                job = _look(client, number, until)
                bar.describe(f"prefetch {number}" + (f": {job['error']}" if job["error"] else ""))
    except KeyboardInterrupt:
        if or_cancel:
            client.cancel_prefetch([number])
            context.output.note(f"job {number} is cancelled")
        else:
            context.output.note(f"job {number} goes on: damfs prefetch --cancel {number} ends it")
        raise
    if job["ended_ns"] is None:
        if or_cancel:
            (job,) = client.cancel_prefetch([number])["jobs"]
        if job["state"] != "complete":
            job = {**job, "is_late": True, "deadline_s": deadline_s}
    return job


def _look(client: Client, number: int, until: float | None) -> dict[str, Any]:
    """The job as it is now; a daemon that is being replaced is waited for. Raises NotFound, Unavailable."""
    patience = min(time.monotonic() + AWAY_S, until or float("inf"))
    while True:
        try:
            return client.prefetch_job(number)
        except Unavailable:
            if time.monotonic() >= patience:
                raise
            time.sleep(POLL_S)


def _outcome(job: Mapping[str, Any]) -> str:
    """What has become of a job, in words."""
    here = f"{human_bytes(job['cached_bytes'])} of {human_bytes(job['bytes'])} are here"
    if job["state"] == "complete":
        return f"all of it is here, {human_bytes(job['brought_bytes'])} were brought"
    return f"job {job['id']}: {job['state']}, {here}"


def _refuse(job: Mapping[str, Any]) -> None:
    """Raise what a job that did not bring all of it comes to; one that is under way is no error."""
    if job.get("is_late"):
        why = f": {job['error']}" if job["error"] else ""
        goes_on = "it is cancelled" if job["state"] == "cancelled" else f"job {job['id']} goes on"
        left = human_bytes(job["bytes"] - job["cached_bytes"])
        raise Unavailable(f"{left} of {human_bytes(job['bytes'])} are not here after {job['deadline_s']:g} s, "
                          f"{goes_on}{why}")  # fmt: skip
    if job["state"] == "failed":
        raise _KINDS.get(str(job["kind"]), Unavailable)(f"job {job['id']} has failed: {job['error']}")
    if job["state"] == "cancelled":
        raise Conflict(f"job {job['id']} was cancelled")
    _refuse_missing(job)


def _refuse_missing(found: Mapping[str, Any]) -> None:
    if found["missing"]:
        shown = found["missing_examples"][:5]
        more = " …" if len(found["missing_examples"]) > len(shown) else ""
        raise NotFound(f"{plural(found['missing'], 'thing')} of it are not there: {'; '.join(shown)}{more}")


# ---------------------------------------------------------------------- all jobs


def _list(context: Context, client: Client) -> None:
    found = client.prefetches()
    if context.json:
        context.output.result(found)
        return
    columns = ("number", "what", "files", "size", "here", "rate", "ETA", "state")
    context.output.table(columns, _rows(found["jobs"]), right=(0, 2, 3, 4, 5, 6))


def _rows(jobs: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for job in jobs:
        percent = job["cached_bytes"] * 100 // job["bytes"] if job["bytes"] else 100
        state = job["state"] + (f": {job['error']}" if job["error"] else "")
        rate = "" if job["rate_bytes_s"] is None else f"{human_bytes(job['rate_bytes_s'])}/s"
        eta = "" if job["eta_s"] is None else human_duration(job["eta_s"])
        yield (
            str(job["id"]), job["name"], f"{job['files']:,}", human_bytes(job["bytes"]), f"{percent}%", rate, eta,
            state + (f", {job['missing']:,} are not there" if job["missing"] else ""),
        )  # fmt: skip


def _cancel(context: Context, client: Client, numbers: Sequence[int]) -> None:
    ended = client.cancel_prefetch(numbers)
    if context.json:
        context.output.result(ended)
    for job in ended["jobs"]:
        context.output.say(_outcome(job))
