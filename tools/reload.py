"""``damfs reload``: another daemon for a mount, while it is in use.

The daemon that runs asks its supervisor for a successor; nothing changes unless that one could take over. Open files
stay open: they only wait while nobody answers.
"""

import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from daemon.client import Client
from manifest.errors import NotFound, TransportError, Unavailable
from tools.context import Context
from tools.options import command

SUCCESSOR_S = 60.0
"""How long the successor may take until it says that it serves the mount."""
ASK_S = 2.0


@command(library=False)
def reload(
    context: Context,
    mountpoint: Annotated[Path, typer.Argument(metavar="MOUNTPOINT", help="Where it is mounted.")],
) -> None:
    """Have a fresh daemon take the mount over, after an upgrade say; what is open in it stays open."""
    client = Client.for_mountpoint(mountpoint)
    before = client.reload()
    status = _successor(client, before)
    pause_s = (status.get("handover") or {}).get("last_pause_s")
    if context.json:
        keys = ("mountpoint", "pid", "version")
        context.output.result({**{key: status[key] for key in keys}, "pause_s": pause_s})
    waited = "" if pause_s is None else f"; nobody answered for {pause_s * 1000:.0f} ms"
    context.output.say(f"{client.mountpoint} is served by pid {status['pid']}, version {status['version']}{waited}")


def _successor(client: Client, before: int) -> dict[str, Any]:
    """The status of the daemon that follows the one with this pid. Raises Unavailable."""
    deadline = time.monotonic() + SUCCESSOR_S
    while time.monotonic() < deadline:
        with suppress(NotFound, TransportError):
            status = client.status(timeout_s=ASK_S)
            if status["pid"] != before:
                return status
        time.sleep(0.05)
    raise Unavailable(
        f"no successor of pid {before} answers for {client.mountpoint} after {SUCCESSOR_S:g} s: see its log"
    )
