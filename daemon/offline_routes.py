"""The route of ``damfs offline``, through the admin socket: POST /v1/offline {"on"}. The state is in GET /v1/status."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from daemon.routing import Body, guarded, read, require_admin

if TYPE_CHECKING:
    from starlette.requests import Request

    from daemon.offline import OfflineSwitch

log = logging.getLogger(__name__)


class OfflineRequest(Body):
    """The body of POST /v1/offline."""

    on: bool


def routes(switch: OfflineSwitch) -> list[Route]:
    """The module's one."""

    async def offline(request: Request) -> Response:
        body = await read(request, OfflineRequest)
        require_admin(request, "a mount is switched offline")
        peer = request.state.peer
        log.info("%s switches offline %s", peer, "on" if body.on else "off")
        await switch.set(on=body.on, uid=os.getuid() if peer is None else peer.uid)
        return JSONResponse({"on": switch.wish is not None})

    return [Route("/v1/offline", guarded(offline), methods=["POST"])]
