"""The routes of ``damfs pin``, ``unpin`` and ``pins``. All through the admin socket.

| | |
|---|---|
| GET /v1/pins | every pin, and how far it has come |
| POST /v1/pins/measure {"show", "at", "path", "recursive"} | how large such a pin would be |
| POST /v1/pins/add {"show", "at", "path", "recursive"} | pin it |
| POST /v1/pins/remove {"ids"} | unpin |
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from daemon.cache_routes import PlaceRequest
from daemon.pins import PINS_MAX
from daemon.routing import Body, guarded, read, require_admin

if TYPE_CHECKING:
    from starlette.requests import Request

    from daemon.pins import Pins

log = logging.getLogger(__name__)


class PinRequest(PlaceRequest):
    """The body of the routes that measure and make a pin."""

    recursive: bool = False


class RemoveRequest(Body):
    """The body of POST /v1/pins/remove."""

    ids: Annotated[list[int], Field(max_length=PINS_MAX)]


def routes(pins: Pins) -> list[Route]:
    """Those of the module's table."""

    async def list_all(request: Request) -> Response:
        require_admin(request, "what is pinned is asked")
        return JSONResponse({"pins": pins.all(), "limit_bytes": pins.limit_bytes})

    async def measure(request: Request) -> Response:
        body = await read(request, PinRequest)
        require_admin(request, "a pin is measured")
        return JSONResponse(await pins.measure(body.show, body.at, body.path, recursive=body.recursive))

    async def add(request: Request) -> Response:
        body = await read(request, PinRequest)
        require_admin(request, "something is pinned")
        log.info("%s pins %s:%s", request.state.peer, body.show, body.path)
        return JSONResponse(await pins.add(body.show, body.at, body.path, recursive=body.recursive))

    async def remove(request: Request) -> Response:
        body = await read(request, RemoveRequest)
        require_admin(request, "something is unpinned")
        log.info("%s removes the pins %s", request.state.peer, body.ids)
        return JSONResponse({"pins": await pins.remove(body.ids)})

    return [
        Route("/v1/pins", guarded(list_all), methods=["GET"]),
        Route("/v1/pins/measure", guarded(measure), methods=["POST"]),
        Route("/v1/pins/add", guarded(add), methods=["POST"]),
        Route("/v1/pins/remove", guarded(remove), methods=["POST"]),
    ]
