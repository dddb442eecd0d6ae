"""The route of ``damfs explain``: POST /v1/explain {"show", "at", "path"}, on both sockets.

On the view socket each user is told what the kernel would let that user read (daemon/rights.py): the peer of the
connection is known from the kernel, and the modes from the manifest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from daemon.cache_routes import PlaceRequest
from daemon.rights import Rights
from daemon.routing import guarded, read
from manifest.names import check_path, check_show

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.requests import Request

    from daemon.explain import Explain


def routes(explain: Explain, mountpoint: Path, *, owner: tuple[int, int], allow_other: bool) -> list[Route]:
    """The module's one. ``owner``: whom everything in the mount belongs to."""
    limiter = trio.CapacityLimiter(2)

    async def answer(request: Request) -> Response:
        body = await read(request, PlaceRequest)
        is_admin = request.state.surface == "admin"
        rights = Rights.of(request.state.peer, is_admin=is_admin, owner=owner, allow_other=allow_other)
        await trio.to_thread.run_sync(rights.require_way, mountpoint, limiter=limiter, abandon_on_cancel=True)
        show, path = check_show(body.show), check_path(body.path) if body.path else ""
        return JSONResponse(await explain.explain(show, body.at, path, rights))

    return [Route("/v1/explain", guarded(answer), methods=["POST"])]
