"""``damfs pin``, ``unpin`` and ``pins``: what stays in the cache of a mount, whatever else is read.

Rules: the daemon downloads, and goes on when the command ends. What a pin would take is said before it begins.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

from daemon.client import Client
from manifest.errors import ConfigurationError, NotFound, Unavailable, UsageError
from manifest.names import Address
from tools.cache import Mount, Place, mount_of, place_of
from tools.complete import complete_address
from tools.context import Context
from tools.options import command
from tools.output import human_bytes, plural

POLL_S = 0.3


@command(library=False)
def pin(
    context: Context,
    place: Place,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="A folder's subfolders too.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return at once; the daemon goes on downloading.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell how large it is.")] = False,
    mount: Mount = None,
) -> None:
    """Keep a file or a folder in the cache, and download what is missing of it.

    Without a revision the pin follows the show. It stays until ``damfs unpin``, also over restarts. Refused when all
    pins would keep more than ``cache.pin_share`` of the cache.
    """
    client, address = place_of(place, mount)
    size = client.measure_pin(address, recursive=recursive)
    missing = size["bytes"] - size["cached_bytes"]
    if dry_run and context.json:
        context.output.result(size)
    context.output.say(
        f"{address}: {plural(size['files'], 'file')} of {human_bytes(size['bytes'])}, "
        f"{human_bytes(missing)} to download"
    )
    if size["why_not"] is not None:
        raise ConfigurationError(size["why_not"])
    if dry_run:
        return
    made = client.add_pin(address, recursive=recursive)
    if not no_wait:
        made = _wait(context, client, made)
    if context.json:
        context.output.result(made)
    here = ", all of it is here" if made["state"] == "complete" else ""
    context.output.say(f"pinned as number {made['id']}{here}")


@command(library=False)
def unpin(
    context: Context,
    places: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NUMBER|SHOW[@REV][:PATH]]…",
            help="Pins by number, or what they are of.",
            autocompletion=complete_address,
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every pin.")] = False,
    mount: Mount = None,
) -> None:
    """Let what was pinned be evicted again, like anything else. Nothing is deleted at once."""
    if everything == bool(places):
        raise UsageError("expected pins to remove, or --all")
    numbers = [text for text in places or () if text.isdecimal()]
    others = [place_of(text, mount) for text in places or () if not text.isdecimal()]
    clients = {client.mountpoint: client for client, _ in others}
    if len(clients) > 1:
        raise UsageError("these lie in several mounts: unpin them one mount at a time")
    client = next(iter(clients.values()), None) or mount_of(mount)
    known = client.pins()["pins"]
    chosen = [found["id"] for found in known] if everything else [int(text) for text in numbers]
    for _, address in others:
        chosen += _named(known, address)
    removed = client.remove_pins(chosen)["pins"] if chosen else []
    if context.json:
        context.output.result({"pins": removed})
    context.output.say(f"{plural(len(removed), 'pin')} removed")


@command(library=False)
def pins(context: Context, mount: Mount = None) -> None:
    """List what is pinned, and how much of it is here."""
    client = mount_of(mount)
    found = client.pins()
    if context.json:
        context.output.result(found)
        return
    columns = ("number", "place", "files", "size", "here", "state")
    context.output.table(columns, _rows(found["pins"]), right=(0, 2, 3, 4))
    kept = sum(entry["bytes"] for entry in found["pins"])
    context.output.say(f"{human_bytes(kept)} are pinned, at most {human_bytes(found['limit_bytes'])} may be")


def _rows(entries: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for entry in entries:
        percent = entry["cached_bytes"] * 100 // entry["bytes"] if entry["bytes"] else 100
        state = entry["state"] + (f": {entry['error']}" if entry["error"] and entry["state"] != "complete" else "")
        yield (
            str(entry["id"]), _place(entry) + ("/…" if entry["recursive"] else ""), f"{entry['files']:,}",
            human_bytes(entry["bytes"]), f"{percent}%", state,
        )  # fmt: skip


def _place(entry: Mapping[str, Any]) -> str:
    at = "" if entry["at"] is None else f"@{entry['at']}"
    return f"{entry['show']}{at}" + (f":{entry['path']}" if entry["path"] else "")


def _named(known: Sequence[Mapping[str, Any]], address: Address) -> list[int]:
    """The numbers of the pins that are of this place. Raises NotFound."""
    at = None if address.at is None else str(address.at)
    found = [e["id"] for e in known if (e["show"], e["at"], e["path"]) == (address.show, at, address.path)]
    if not found:
        raise NotFound(f"{address} is not pinned: `damfs pins` lists what is")
    return found


def _wait(context: Context, client: Client, made: Mapping[str, Any]) -> dict[str, Any]:
    """Show the progress of a pin until it is complete. Raises Unavailable for what it says is the matter."""
    with context.output.progress(f"pin {made['id']}", total=made["bytes"]) as bar:
        bar.advance(made["cached_bytes"])
        done = made["cached_bytes"]
        while True:
            found = next((entry for entry in client.pins()["pins"] if entry["id"] == made["id"]), None)
            if found is None:
                raise NotFound(f"pin {made['id']} was removed meanwhile")
            bar.advance(max(0, found["cached_bytes"] - done))
            done = max(done, found["cached_bytes"])
            if found["state"] == "complete":
                return dict(found)
            if found["state"] == "incomplete":
                raise Unavailable(f"pin {made['id']} stays, and is tried again: {found['error']}")
            time.sleep(POLL_S)
