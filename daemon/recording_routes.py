"""The routes of ``damfs trace``, on the admin socket: names of files are told.

| | |
|---|---|
| POST /v1/recordings/start {} | record what the descendants of the process that asks read |
| POST /v1/recordings/stop {"id"} | end it: the trace |
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from daemon.routing import Body, guarded, read, require_admin

if TYPE_CHECKING:
    from starlette.requests import Request

    from daemon.recording import Recordings

log = logging.getLogger(__name__)


class StartRequest(Body):
    """The body of POST /v1/recordings/start."""


class StopRequest(Body):
    """The body of POST /v1/recordings/stop."""

    id: int


def routes(recordings: Recordings) -> list[Route]:
    """Those of the module's table."""

    async def start(request: Request) -> Response:
        await read(request, StartRequest)
        require_admin(request, "what a program reads is recorded")
        log.info("%s records what its children read", request.state.peer)
        return JSONResponse({"id": recordings.start(request.state.peer.pid)})

    async def stop(request: Request) -> Response:
        body = await read(request, StopRequest)
        require_admin(request, "what a program reads is recorded")
        trace = await recordings.stop(body.id, request.state.peer.pid)
        return JSONResponse({"trace": trace.decode()})

    return [
        Route("/v1/recordings/start", guarded(start), methods=["POST"]),
        Route("/v1/recordings/stop", guarded(stop), methods=["POST"]),
    ]
