"""The commands ``damfs publish``, ``tag`` and ``rm``: options in, results out; what they do is in the modules beside.

Those modules load obstore, so they are imported when a command runs and not before.
"""

import getpass
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manifest.entry import AUTHOR_CHARACTERS_MAX
from manifest.errors import DamfsError, UsageError
from tools.complete import complete_address, complete_source
from tools.context import Context
from tools.options import command
from tools.output import counted, human_bytes, human_duration, plural
from tools.replicas import open_view
from tools.trace import read_trace

if TYPE_CHECKING:
    from tools.publish.mirror import Mirror
    from tools.publish.publish import Outcome, Target

_SHOWN_PATHS = 20

Message = Annotated[str, typer.Option("--message", "-m", metavar="TEXT", help="What people read in `damfs log`.")]
DryRun = Annotated[bool, typer.Option("--dry-run", "-n", help="Say what would happen; upload and publish nothing.")]


@command(key=True)
def publish(
    context: Context,
    sources: Annotated[
        list[Path],
        typer.Argument(
            autocompletion=complete_source,
            metavar="SRC…",
            help="Files, and folders whose contents are published; a link stands for what it leads to.",
        ),
    ],
    address: Annotated[
        str,
        typer.Argument(
            metavar="SHOW:PATH",
            help="The folder to publish to, usually a version: apollo:seq010/sh020/plate/v001.",
            autocompletion=complete_address,
        ),
    ],
    message: Message = "",
    tag: Annotated[
        str | None, typer.Option("--tag", metavar="NAME", help="Make or move the link NAME beside PATH to lead to it.")
    ] = None,
    with_trace: Annotated[
        Path | None,
        typer.Option(
            "--with-trace",
            metavar="FILE",
            help="Publish what damfs trace wrote along with it, for damfs prefetch --traced.",
        ),
    ] = None,
    dry_run: DryRun = False,
    bandwidth: Annotated[
        str | None,
        typer.Option("--bandwidth", metavar="RATE", help="Send at most so much a second, as in 20MB; off: no limit."),
    ] = None,
) -> None:
    """Publish files as the next revision of a show.

    A version folder (v001) is write-once. Publishing identical content again changes nothing and says which revision
    has it. A publish that was interrupted is taken up where it was when it is run again. Links inside a folder are
    published as links.
    """
    from tools.publish.publish import Request  # noqa: PLC0415
    from tools.publish.publish import publish as publish_sources  # noqa: PLC0415

    show, path = _place(context, address)
    if with_trace is not None:
        _check_trace(context, with_trace, show)
    rate = context.settings_with({"network.upload": bandwidth}).upload_rate
    target = _target(context, show)
    request = Request(sources, path, message, tag, dry_run, with_trace, rate)
    outcome = publish_sources(target, request, context.output)
    if context.json:
        context.output.result(_outcome_json(show, path, outcome, dry_run=dry_run))
    elif dry_run:
        _say_dry_run(context, show, path, outcome)
    elif outcome.published:
        _say_published(context, show, path, outcome)
    else:
        context.output.say(f"{_name(show, path)} is published already: revision {outcome.revision} has it")


@command(key=True)
def tag(
    context: Context,
    address: Annotated[
        str,
        typer.Argument(
            metavar="SHOW:FOLDER", help="The folder that holds the versions.", autocompletion=complete_address
        ),
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The link to make or move: latest, approved.")],
    version: Annotated[str, typer.Argument(metavar="VERSION", help="The version it is to lead to: v002.")],
    message: Message = "",
) -> None:
    """Make or move a tag: a link beside versions that leads to one of them."""
    from tools.publish.tag import move_tag  # noqa: PLC0415

    show, folder = _place(context, address)
    revision, moved = move_tag(_target(context, show), folder, name, version, message)
    if context.json:
        context.output.result(
            {"show": show, "folder": folder, "tag": name, "version": version, "revision": revision, "published": moved}
        )
    elif moved:
        context.output.say(f"{_name(show, folder)}/{name} → {version}: revision {revision}")
    else:
        context.output.say(f"{_name(show, folder)}/{name} leads to {version} already: revision {revision} has it")


@command(key=True)
def rm(
    context: Context,
    address: Annotated[
        str, typer.Argument(metavar="SHOW:PATH", help="What is to be removed.", autocompletion=complete_address)
    ],
    message: Message = "",
    dry_run: DryRun = False,
) -> None:
    """Publish that a file, link or folder is gone. Older revisions keep it; no byte is deleted."""
    from tools.publish.remove import remove  # noqa: PLC0415

    show, path = _place(context, address)
    removal = remove(_target(context, show), path, message, dry_run=dry_run)
    if context.json:
        fields = ("revision", "files", "links", "folders", "size_bytes", "dangling")
        counts: dict[str, Any] = {name: getattr(removal, name) for name in fields}
        context.output.result({"show": show, "path": path, "dry_run": dry_run, **counts})
        return
    what = counted(("file", removal.files), ("link", removal.links), ("folder", removal.folders))
    size = f" ({human_bytes(removal.size_bytes)})" if removal.files else ""
    verb, behind = ("would remove", "") if dry_run else ("removed", f": revision {removal.revision}")
    context.output.say(f"{verb} {_name(show, path)}, {what}{size}{behind}")
    for link in removal.dangling:
        context.output.warn(f"{_name(show, link)} {'would lead' if dry_run else 'leads'} to what is gone")


def _check_trace(context: Context, file: Path, show: str) -> None:
    """Raise UsageError, FormatError for what is no trace; what of it nobody will use is told."""
    others = sum(traced.show != show for traced in read_trace(file).files)
    if others:
        context.output.warn(f"{file} names {plural(others, 'file')} of other shows, which no prefetch of it will bring")


def _place(context: Context, text: str) -> tuple[str, str]:
    """(show, path) of a place that can be written to. Raises UsageError for one with a revision."""
    address = context.address(text)
    if address.at is not None:
        raise UsageError(f"{text} is the past, which never changes: name a place without @{address.at}")
    return address.show, address.path


def _target(context: Context, show: str) -> "Target":
    from tools.publish.publish import Target  # noqa: PLC0415

    key = context.key  # first: without one nothing needs to be asked of the library
    open_view(context, show, None, bytes_needed=True).reader.close()
    context.library.adopt_modes()
    return Target(
        context.library, context.identity.id, context.show(show), key, _author(), context.state_folder, _mirror(context)
    )


def _mirror(context: Context) -> "Mirror | None":
    """The site's appliance, where publishes are written through to it. That it cannot be had is no error."""
    site = context.settings.site
    if not site.write_through or site.url is None:
        return None
    from daemon.site import open_appliance  # noqa: PLC0415
    from tools.publish.mirror import Mirror  # noqa: PLC0415

    try:
        return Mirror(open_appliance(site, context.library), context.output.warn)
    except DamfsError as error:
        context.output.warn(f"the site's appliance is not written: {error}")
        return None


def _author() -> str:
    """Who publishes, for people: user@machine. What proves it is the key."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    author = f"{user}@{platform.node() or 'unknown'}"
    return "".join(char if char.isprintable() else "?" for char in author)[:AUTHOR_CHARACTERS_MAX]


def _outcome_json(show: str, path: str, outcome: "Outcome", *, dry_run: bool) -> dict[str, Any]:
    value: dict[str, Any] = {
        "show": show,
        "path": path,
        "dry_run": dry_run,
        "published": outcome.published,
        "revision": outcome.revision,
        "resumed": outcome.resumed,
        "changes": len(outcome.changed),
        "files": outcome.files,
        "size_bytes": outcome.size_bytes,
        "uploaded_chunks": outcome.uploads.chunks,
        "uploaded_bytes": outcome.uploads.size_bytes,
        "reused_chunks": outcome.uploads.present_chunks,
        "reused_bytes": outcome.uploads.present_bytes,
        "seconds": round(outcome.seconds, 3),
    }
    return value | ({"would_change": outcome.changed} if dry_run else {})


def _say_published(context: Context, show: str, path: str, outcome: "Outcome") -> None:
    sent, reused = outcome.uploads.size_bytes, outcome.uploads.present_bytes
    rate = f", {human_bytes(int(outcome.size_bytes / outcome.seconds))}/s" if outcome.seconds >= 1 else ""
    context.output.say(
        f"published {_name(show, path)}: revision {outcome.revision}",
        f"{counted(('file', outcome.files))}, {human_bytes(outcome.size_bytes)}: {human_bytes(sent)} uploaded"
        + (f", {human_bytes(reused)} were there" if reused else "")
        + f", in {human_duration(outcome.seconds)}{rate}",
    )


def _say_dry_run(context: Context, show: str, path: str, outcome: "Outcome") -> None:
    if outcome.revision is not None:
        context.output.say(f"{_name(show, path)} is published already: revision {outcome.revision} has it")
        return
    shown = [f"  {changed}" for changed in outcome.changed[:_SHOWN_PATHS]]
    more = len(outcome.changed) - len(shown)
    lines = [f"would publish {counted(('change', len(outcome.changed)))} to {show}:", *shown]
    context.output.say(*lines, *([f"  … and {more} more"] if more else []))


def _name(show: str, path: str) -> str:
    return f"{show}:{path}" if path else show
