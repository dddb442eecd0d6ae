"""``damfs cache scrub`` and ``verify``: what is cached is compared with what was written. See daemon/scrub_routes.py.

Rules: the daemon does it, and goes on when nobody waits any more. What is wrong is dropped there, and fetched again.
"""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from daemon.client import Client
from daemon.limits import parse_bandwidth
from manifest.errors import IntegrityError
from manifest.names import Address
from tools.cache import POLL_S, Mount, mount_of, place_of
from tools.complete import complete_address
from tools.context import Context
from tools.options import command
from tools.output import counted, human_bytes

Where = Annotated[
    str | None,
    typer.Argument(
        metavar="[SHOW[@REV][:PATH]]",
        help="A place in a show, or a path in a mount; else all that is cached.",
        autocompletion=complete_address,
    ),
]
Rate = Annotated[
    str, typer.Option("--rate", metavar="SIZE", help="Read at most so much a second, as in 50MB; 0: no limit.")
]


@command(library=False)
def scrub(
    context: Context,
    place: Where = None,
    rate: Rate = "0",
    wait: Annotated[bool, typer.Option("--wait", help="Return when everything was checked, and tell.")] = False,
    mount: Mount = None,
) -> None:
    """Have what is cached compared with what was written, now and in the background.

    What is wrong is dropped at once and fetched again. The cache does the same by itself when it is idle
    (cache.scrub_bandwidth). With --wait, one that is under way is waited for too.
    """
    client, address = _meant(place, mount)
    report = client.cache_report()
    if not (wait and report["running"]):
        report = client.cache_scrub(address, parse_bandwidth(rate))
    if wait:
        _tell(context, _waited_for(context, client, report))
    else:
        context.output.say("the cache is being checked: damfs cache scrub --wait tells what was found")
        if context.json:
            context.output.result(report)


@command(library=False)
def verify(context: Context, place: Where = None, rate: Rate = "0", mount: Mount = None) -> None:
    """Compare what is cached with what was written, and tell; wrong bytes are an error (exit status 7).

    What is wrong is dropped at once and fetched again, so a second run says whether that went well.
    """
    client, address = _meant(place, mount)
    _tell(context, _waited_for(context, client, client.cache_scrub(address, parse_bandwidth(rate))))


def _meant(place: str | None, mountpoint: Path | None) -> tuple[Client, Address | None]:
    return (mount_of(mountpoint), None) if place is None else place_of(place, mountpoint)


def _waited_for(context: Context, client: Client, report: dict[str, Any]) -> dict[str, Any]:
    with context.output.progress("checking", unit="files") as progress:
        while report["running"]:
            time.sleep(POLL_S)
            report = client.cache_report()
            progress.grow(report["objects_total"] - (progress.total or 0))
            progress.advance(report["objects"] - progress.done)
    return report


def _tell(context: Context, report: dict[str, Any]) -> None:
    if context.json:
        context.output.result(report)
    for bad in report["bad"]:
        context.output.error(f"{bad['show']}, content {bad['content']}: {bad['reason']}")
    context.output.say(f"checked {counted(('cached file', report['objects']))}, {human_bytes(report['size_bytes'])}")
    if report["unknown"]:
        context.output.say(f"of {counted(('file', report['unknown']))} nothing is known to compare with")
    if report["bad_objects"]:
        raise IntegrityError(
            f"{counted(('cached file', report['bad_objects']))} wrong on the cache disk, dropped and fetched again: "
            "look after the disk when this comes again"
        )
