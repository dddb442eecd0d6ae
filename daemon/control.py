"""The control API's routes: what may be asked of a running daemon.

| | view socket (0666) | admin socket (0660) |
|---|---|---|
| GET /v1/status | yes | yes |
| POST /v1/sync {"show", "at_least", "timeout_s"} | yes | yes |
| POST /v1/stop {"lazy"} | no | yes |
| POST /v1/reload {} | no | yes |

Those of the cache stand in daemon/cache_routes.py. How an error is told: daemon/routing.py.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Annotated, Protocol

from pydantic import Field
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from daemon.routing import Body, failure, guarded, read, require_admin
from manifest.errors import NotFound
from manifest.names import REVISION_MAX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request

    from daemon.status import Status

log = logging.getLogger(__name__)

SYNC_S_MAX = 600.0


class Controlled(Protocol):
    """What the routes drive: the running daemon."""

    def status(self) -> Status: ...

    async def sync(self, show: str, at_least: int | None, timeout_s: float) -> int: ...

    async def stop(self, *, lazy: bool) -> None: ...

    async def reload(self) -> None: ...


class SyncRequest(Body):
    """The body of POST /v1/sync."""

    show: Annotated[str, Field(max_length=64)]
    at_least: Annotated[int, Field(ge=0, le=REVISION_MAX)] | None = None
    timeout_s: Annotated[float, Field(gt=0, le=SYNC_S_MAX, strict=False, allow_inf_nan=False)] = 60.0


class StopRequest(Body):
    """The body of POST /v1/stop."""

    lazy: bool = False


class ReloadRequest(Body):
    """The body of POST /v1/reload."""


def make_app(daemon: Controlled, more: Sequence[Route] = ()) -> Starlette:
    """The ASGI application of both control sockets, with the routes of other modules."""

    async def status(request: Request) -> Response:
        del request
        return JSONResponse(daemon.status().to_json())

    async def sync(request: Request) -> Response:
        body = await read(request, SyncRequest)
        return JSONResponse({"revision": await daemon.sync(body.show, body.at_least, body.timeout_s)})

    async def stop(request: Request) -> Response:
        body = await read(request, StopRequest)
        require_admin(request, "a mount is stopped")
        log.info("%s asks for a stop", request.state.peer)
        await daemon.stop(lazy=body.lazy)
        return JSONResponse({"stopping": True})

    async def reload(request: Request) -> Response:
        await read(request, ReloadRequest)
        require_admin(request, "a daemon is replaced")
        log.info("%s asks for a reload", request.state.peer)
        await daemon.reload()
        return JSONResponse({"pid": os.getpid()})

    return Starlette(
        routes=[
            Route("/v1/status", guarded(status), methods=["GET"]),
            Route("/v1/sync", guarded(sync), methods=["POST"]),
            Route("/v1/stop", guarded(stop), methods=["POST"]),
            Route("/v1/reload", guarded(reload), methods=["POST"]),
            *more,
        ],
        exception_handlers={404: _no_route, 405: _no_route},
    )


async def _no_route(request: Request, error: Exception) -> Response:
    del error
    return failure(NotFound(f"the control API has no {request.method} {request.url.path}"))
