"""``damfs cache``: what a mount's cache holds, its limits, and letting go of files. Further commands: tools/scrub.py.

Rules: everything is asked of the daemon (docs/STATUS.md, daemon/cache_routes.py), never of the cache's folder. Without
--mount it is the one mount that there is, or the one that a path lies in.
"""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from daemon.client import Client
from manifest.errors import NotFound, UsageError
from manifest.names import Address
from tools.address import locate
from tools.complete import complete_address
from tools.context import Context
from tools.options import command
from tools.output import counted, human_bytes, plural

POLL_S = 0.3

Mount = Annotated[
    Path | None, typer.Option("--mount", metavar="MOUNTPOINT", help="Whose cache; needed where several are mounted.")
]
Folder = Annotated[
    Path | None, typer.Option("--folder", metavar="DIR", help="One of several cache folders; else all of them.")
]
Place = Annotated[
    str,
    typer.Argument(
        metavar="SHOW[@REV][:PATH]",
        help="A place in a show, live or as of a revision or time; or a path in a mount.",
        autocompletion=complete_address,
    ),
]
Wait = Annotated[bool, typer.Option("--wait", help="Return when the cache is within its limits.")]

cache_app = typer.Typer(help="The cache of a mount.", no_args_is_help=True, rich_markup_mode=None)


def mount_of(mountpoint: Path | None) -> Client:
    """The daemon that is meant. Raises UsageError where it could be one of several, NotFound where there is none."""
    if mountpoint is not None:
        return Client.for_mountpoint(mountpoint)
    clients = Client.all()
    if not clients:
        raise NotFound("no damfs is mounted here: `damfs mount` mounts one")
    if len(clients) > 1:
        known = ", ".join(str(client.mountpoint) for client in clients)
        raise UsageError(f"{len(clients)} are mounted ({known}): say which one with --mount")
    return clients[0]


def place_of(text: str, mountpoint: Path | None) -> tuple[Client, Address]:
    """The daemon that is meant by an address, or by a path in a mount, and the address. Raises as ``mount_of``."""
    place = locate(text)
    return mount_of(mountpoint or place.mountpoint), place.address


# ---------------------------------------------------------------------- what it holds


@cache_app.command("stats")
@command(library=False)
def stats(context: Context, mount: Mount = None) -> None:
    """Tell what the cache holds, its limits and who set them, and what each show has of it.

    Limits are those of the configuration unless it says that they were set. Numbers but sizes are since the daemon
    began. docs/OPERATIONS.md says how to read them.
    """
    client = mount_of(mount)
    cache = client.status()["cache"]
    if context.json:
        context.output.result({"mountpoint": str(client.mountpoint), **cache})
        return
    for folder in cache["folders"]:
        context.output.line(*_folder_lines(folder))
    asked = cache["hits"] + cache["misses"]
    rate = f"{cache['hits'] * 100 / asked:.1f}% of {plural(asked, 'read')} were hits" if asked else "nothing was read"
    context.output.line(f"{rate}; {human_bytes(cache['evicted_bytes'])} were evicted")
    context.output.line(
        f"{human_bytes(cache['dedup_download_bytes'])} were taken from other cached files instead of fetched, "
        f"{human_bytes(cache['dedup_disk_bytes'])} of them without disk of their own",
        f"{human_bytes(cache['scrubbed_bytes'])} were compared with what was written, "
        f"{plural(cache['scrub_bad'], 'file')} of that wrong",
    )
    columns = (
        "show",
        "cached",
        "files",
        "hits",
        "misses",
        "hit",
        "missed",
        "passed by",
        "fetched",
        "quota",
        "priority",
    )
    context.output.table(columns, _show_rows(cache["shows"]), right=tuple(range(1, 10)))


def _folder_lines(folder: Mapping[str, Any]) -> Iterator[str]:
    if not folder["in_service"]:
        yield f"{folder['folder']}: OUT OF SERVICE: {folder['reason']}"
        return
    limits, chosen = folder["limits"], folder["set"]

    def origin(name: str) -> str:
        return " (set)" if name in chosen else ""

    used = f"{human_bytes(folder['used_bytes'])} of {human_bytes(folder['size_bytes'])}{origin('size_bytes')}"
    yield f"{folder['folder']}: {used} in {plural(folder['objects'], 'file')}"
    if folder["bound_bytes"] < folder["size_bytes"]:
        yield f"  holds at most {human_bytes(folder['bound_bytes'])} now: others have filled its disk"
    if folder["used_bytes"] > folder["bound_bytes"]:
        yield f"  is being shrunk by {human_bytes(folder['used_bytes'] - folder['bound_bytes'])}"
    yield (
        f"  keeps free {_reserve(limits['free_reserve'], 'bytes')}{origin('free_reserve')} of its disk, and "
        f"{_reserve(limits['free_inodes'], 'inodes')}{origin('free_inodes')}"
    )
    yield (
        f"  evicts from {limits['high_water']:g}{origin('high_water')} of its size down to {limits['low_water']:g}"
        f"{origin('low_water')}"
    )


def _reserve(reserve: Mapping[str, float], unit: str) -> str:
    words = [f"{reserve['part'] * 100:g}%"] if "part" in reserve else []
    if "count" in reserve:
        words.append(human_bytes(int(reserve["count"])) if unit == "bytes" else f"{reserve['count']:,}")
    ending = " of the inodes" if unit == "inodes" else ""
    return (" or ".join(words) + (", the lesser," if len(words) > 1 else "") if words else "nothing") + ending


def _show_rows(shows: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for name, show in shows.items():
        fetched = ", ".join(f"{source} {human_bytes(size)}" for source, size in show["fetched_bytes"].items())
        yield (
            name, human_bytes(show["used_bytes"]), f"{show['objects']:,}", f"{show['hits']:,}", f"{show['misses']:,}",
            human_bytes(show["hit_bytes"]), human_bytes(show["miss_bytes"]), f"{show['passthrough_opens']:,}",
            fetched or "-", "-" if show["quota_bytes"] is None else human_bytes(show["quota_bytes"]), show["priority"],
        )  # fmt: skip


@cache_app.command("ls")
@command(library=False)
def ls(
    context: Context,
    place: Annotated[
        str | None,
        typer.Argument(
            metavar="[SHOW[@REV][:PATH]]",
            help="A place in a show, or a path in a mount; without it, the shows.",
            autocompletion=complete_address,
        ),
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Every file below, with its path.")] = False,
    mount: Mount = None,
) -> None:
    """List how much is cached of a folder's entries, or of a file: percent, bytes cached, bytes in all.

    A folder's numbers are those of all files below it. Without a place it lists what each show has in the cache, in
    bytes of the disk and files. A place needs the right to administer the mount.
    """
    if place is None:
        _list_shows(context, mount_of(mount))
        return
    client, address = place_of(place, mount)
    found = client.cache_ls(address, recursive=recursive)
    if context.json:
        context.output.result(found)
        return
    rows = (
        (
            f"{entry['percent']}%", human_bytes(entry["cached_bytes"]), human_bytes(entry["size"]),
            entry["name"] + ("/" if entry["kind"] == "folder" else ""),
        )
        for entry in found["entries"]
    )  # fmt: skip
    context.output.table(("here", "cached", "size", "name"), rows, right=(0, 1, 2))


def _list_shows(context: Context, client: Client) -> None:
    shows = {name: show for name, show in client.status()["cache"]["shows"].items() if show["used_bytes"]}
    if context.json:
        entries = [
            {"show": name, "used_bytes": show["used_bytes"], "objects": show["objects"]} for name, show in shows.items()
        ]
        context.output.result({"mountpoint": str(client.mountpoint), "shows": entries})
        return
    rows = ((human_bytes(show["used_bytes"]), f"{show['objects']:,}", name) for name, show in shows.items())
    context.output.table(("cached", "files", "show"), rows, right=(0, 1))


# ---------------------------------------------------------------------- its limits


@cache_app.command("resize")
@command(library=False)
def resize(
    context: Context,
    size: Annotated[str, typer.Argument(metavar="SIZE", help="200GB, 1.5TiB, or 20% of its disk.")],
    folder: Folder = None,
    wait: Wait = False,
    mount: Mount = None,
) -> None:
    """Give the cache another size, while it is in use and for later mounts.

    What is too much is evicted in the background; nobody who reads waits for it. The size then wins over the
    configuration until `damfs cache set --default`.
    """
    client = mount_of(mount)
    client.set_cache_limits({"size": size}, folder=folder)
    _tell_limits(context, client, wait=wait)


@cache_app.command("set")
@command(library=False)
def set_limits(
    context: Context,
    values: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=VALUE]…",
            help="size=1.5TB, free_reserve=10%,50GB, free_inodes=5%, high_water=0.95, low_water=0.9; with --show "
            "quota=200GB or none, priority=low, normal or high.",
        ),
    ] = None,
    show: Annotated[str | None, typer.Option("--show", metavar="SHOW", help="Limits of one show.")] = None,
    default: Annotated[bool, typer.Option("--default", help="Unset what was set: the configuration counts.")] = False,
    folder: Folder = None,
    wait: Wait = False,
    mount: Mount = None,
) -> None:
    """Set limits of the cache, while it is in use and for later mounts.

    They win over the configuration. A show with more than its quota loses contents of its own; else those of shows of
    low priority are evicted first, then of normal, then of high.
    """
    client = mount_of(mount)
    client.set_cache_limits(_pairs(values or []), show=show, folder=folder, default=default)
    _tell_limits(context, client, wait=wait)


def _pairs(words: list[str]) -> dict[str, str]:
    pairs = {}
    for word in words:
        name, has_value, value = word.partition("=")
        if not (name and has_value and value):
            raise UsageError(f"{word!r} sets nothing: expected NAME=VALUE, as in free_reserve=10%")
        pairs[name] = value
    return pairs


def _tell_limits(context: Context, client: Client, *, wait: bool) -> None:
    cache = client.status()["cache"]
    if wait:
        cache = _shrunk(context, client, cache)
    if context.json:
        context.output.result({"mountpoint": str(client.mountpoint), "folders": cache["folders"]})
    for folder in cache["folders"]:
        context.output.say(*_folder_lines(folder))


def _shrunk(context: Context, client: Client, cache: dict[str, Any]) -> dict[str, Any]:
    """The cache once it is within its limits; waits for as long as that takes."""
    surplus = at_first = _surplus(cache)
    with context.output.progress("evicting", total=at_first) as progress:
        while surplus:
            time.sleep(POLL_S)
            cache = client.status()["cache"]
            before, surplus = surplus, min(surplus, _surplus(cache))
            progress.advance(before - surplus)
    return cache


def _surplus(cache: Mapping[str, Any]) -> int:
    return sum(max(0, folder["used_bytes"] - folder["bound_bytes"]) for folder in cache["folders"])


# ---------------------------------------------------------------------- letting go


@cache_app.command("evict")
@command(library=False)
def evict(context: Context, place: Place, mount: Mount = None) -> None:
    """Let go of what is cached of a file, or of all files below a folder; it is fetched again when it is read.

    What is in use or pinned stays, and is counted; when nothing else was cached there it is an error.
    """
    client, address = place_of(place, mount)
    done = client.cache_evict(address)
    if context.json:
        context.output.result(done)
    context.output.say(f"evicted {counted(('file', done['objects']))}, {human_bytes(done['bytes'])} of the disk")
    kept = counted(("file in use", done["in_use"]), ("pinned file", done["pinned"]))
    if done["in_use"] or done["pinned"]:
        context.output.warn(f"not evicted: {kept}")
