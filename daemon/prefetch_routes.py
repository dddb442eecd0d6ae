"""The routes of ``damfs prefetch``. All through the admin socket.

| | |
|---|---|
| GET /v1/prefetch | every job, and how far it has come |
| GET /v1/prefetch/{id} | one job |
| POST /v1/prefetch/measure {"wants"} | how large such a job would be |
| POST /v1/prefetch/add {"wants", "name"} | begin with it |
| POST /v1/prefetch/cancel {"ids"} | end jobs |

A want is what ``daemon.wants.Want`` says, without what is null or false.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated, Any

import trio
from pydantic import Field
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from daemon import serve
from daemon.prefetch import ENDED_MAX, JOBS_MAX
from daemon.routing import Body, guarded, read, require_admin
from daemon.wants import RANGES_MAX, WANTS_MAX, Want
from manifest.errors import FormatError, NotFound, UsageError

if TYPE_CHECKING:
    from starlette.requests import Request

    from daemon.prefetch import Prefetch

log = logging.getLogger(__name__)

BODY_BYTES_MAX = 16 * 1024 * 1024
"""Of a list or a trace as long as they may be."""


class MeasureRequest(Body):
    """The body of POST /v1/prefetch/measure."""

    wants: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=WANTS_MAX)]


class AddRequest(MeasureRequest):
    """The body of POST /v1/prefetch/add. ``name`` is what people call it."""

    name: Annotated[str, Field(max_length=500)]


class CancelRequest(Body):
    """The body of POST /v1/prefetch/cancel."""

    ids: Annotated[list[int], Field(max_length=JOBS_MAX + ENDED_MAX)]


def routes(prefetch: Prefetch) -> list[Route]:
    """Those of the module's table."""

    async def list_all(request: Request) -> Response:
        require_admin(request, "what is prefetched is asked")
        return JSONResponse({"jobs": prefetch.all(), "limit_bytes": prefetch.limit_bytes})

    async def one(request: Request) -> Response:
        require_admin(request, "what is prefetched is asked")
        number = request.path_params["number"]
        if number >= 2**63:
            raise NotFound(f"no job has the number {number}")
        return JSONResponse(prefetch.get(number))

    async def measure(request: Request) -> Response:
        body = await read(request, MeasureRequest, bytes_max=_bytes_max(request))
        require_admin(request, "a prefetch is measured")
        return JSONResponse(await prefetch.measure(await _wants(body.wants)))

    async def add(request: Request) -> Response:
        body = await read(request, AddRequest, bytes_max=_bytes_max(request))
        require_admin(request, "something is prefetched")
        log.info("%s prefetches %s", request.state.peer, body.name)
        return JSONResponse(await prefetch.add(await _wants(body.wants), body.name))

    async def cancel(request: Request) -> Response:
        body = await read(request, CancelRequest)
        require_admin(request, "a prefetch is cancelled")
        log.info("%s cancels the jobs %s", request.state.peer, body.ids)
        return JSONResponse({"jobs": await prefetch.cancel(body.ids)})

    return [
        Route("/v1/prefetch", guarded(list_all), methods=["GET"]),
        Route("/v1/prefetch/{number:int}", guarded(one), methods=["GET"]),
        Route("/v1/prefetch/measure", guarded(measure), methods=["POST"]),
        Route("/v1/prefetch/add", guarded(add), methods=["POST"]),
        Route("/v1/prefetch/cancel", guarded(cancel), methods=["POST"]),
    ]


def _bytes_max(request: Request) -> int:
    """Who will be refused anyway is not to fill the memory before."""
    return BODY_BYTES_MAX if request.state.surface == "admin" else serve.BODY_BYTES_MAX


async def _wants(values: list[dict[str, Any]]) -> list[Want]:
    """Raises UsageError for what is none, or for too many ranges."""
    try:
        wants = await trio.to_thread.run_sync(lambda: [Want.from_json(value) for value in values])
    except FormatError as error:
        raise UsageError(str(error)) from error
    if sum(len(want.ranges or ()) for want in wants) > RANGES_MAX:
        raise UsageError(f"these are more than {RANGES_MAX:,} ranges: prefetch the files as a whole")
    return wants
