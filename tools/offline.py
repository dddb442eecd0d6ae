"""``damfs offline``: mounts that are to use no network, on a train or a plane say.

The daemon keeps it, over restarts too, until it is switched off again.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from daemon.client import Client
from manifest.errors import DamfsError, NotFound
from tools.context import Context
from tools.options import command


class Switch(StrEnum):
    """What may be said."""

    ON = "on"
    OFF = "off"


@command(library=False)
def offline(
    context: Context,
    switch: Annotated[
        Switch | None, typer.Argument(metavar="[on|off]", help="Without it: tell how it is.", show_default=False)
    ] = None,
    mountpoint: Annotated[
        Path | None, typer.Argument(metavar="[MOUNTPOINT]", help="A mount; without it, every one.", show_default=False)
    ] = None,
) -> None:
    """Have mounts use no network, until it is switched off; what is cached is read as ever.

    What is not cached fails at once, and says so; publishes are not seen. It outlives restarts. Commands that go to the
    library themselves, such as ``damfs publish``, are not concerned.
    """
    clients = Client.all() if mountpoint is None else [Client.for_mountpoint(mountpoint)]
    if not clients:
        raise NotFound("no damfs is mounted here: `damfs mount` mounts one")
    refusal = None
    for client in clients if switch is not None else ():
        try:
            client.set_offline(on=switch is Switch.ON)
        except DamfsError as error:
            refusal = refusal or error
    found = [_state(client.status()) for client in clients]
    if context.json:
        context.output.result({"mounts": found})
    for one in found:
        context.output.say(_told(one))
    if refusal is not None:
        raise refusal


def _state(status: dict[str, Any]) -> dict[str, Any]:
    return {name: status[name] for name in ("mountpoint", "offline", "offline_reason", "offline_switch")}


def _told(one: dict[str, Any]) -> str:
    if one["offline_switch"] is not None:
        return f"{one['mountpoint']}: OFFLINE: {one['offline_reason']}"
    if one["offline"]:
        return f"{one['mountpoint']}: the library does not answer: {one['offline_reason']}"
    return f"{one['mountpoint']}: online"
