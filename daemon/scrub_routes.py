"""The routes of ``damfs cache scrub`` and ``verify``, both on the admin socket.

| | |
|---|---|
| POST /v1/cache/scrub {"show", "at", "path", "rate"} | check what is cached, of the files there or of everything, now |
| GET /v1/cache/scrub | what that has found so far |

A check goes on whether somebody waits for it or not.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from daemon.routing import Body, guarded, read, require_admin
from manifest.digest import Digest
from manifest.errors import UsageError

if TYPE_CHECKING:
    from starlette.requests import Request

    from cache.content import Key
    from cache.verify import Verifier
    from daemon.places import Places

log = logging.getLogger(__name__)

FILES_MAX = 200_000
"""Of a place with more files than that everything may be checked, and not the place alone."""


class ScrubRequest(Body):
    """The body of POST /v1/cache/scrub. ``show`` None: everything. ``rate`` is in bytes a second; 0: no limit."""

    show: Annotated[str, Field(max_length=200)] | None = None
    at: Annotated[str, Field(max_length=200)] | None = None
    path: Annotated[str, Field(max_length=8192)] = ""
    rate: Annotated[int, Field(ge=0)] = 0


def routes(verifier: Verifier, places: Places) -> list[Route]:
    """Those of the module's table."""

    async def begin(request: Request) -> Response:
        body = await read(request, ScrubRequest)
        require_admin(request, "a cache is checked")
        log.info("%s has the cache checked", request.state.peer)
        verifier.begin(body.rate, None if body.show is None else await _keys(places, body.show, body.at, body.path))
        return JSONResponse(asdict(verifier.report()))

    async def report(request: Request) -> Response:
        require_admin(request, "what was found in a cache is asked")
        return JSONResponse(asdict(verifier.report()))

    return [
        Route("/v1/cache/scrub", guarded(begin), methods=["POST"]),
        Route("/v1/cache/scrub", guarded(report), methods=["GET"]),
    ]


async def _keys(places: Places, show: str, at: str | None, path: str) -> list[Key]:
    """The contents of the files there."""
    keys: dict[Key, None] = {}
    async with places.at(show, at, path) as place:
        async for batch in place.batches():
            keys |= {(place.show, Digest(row.content)): None for _, row in batch if row.content is not None}
            if len(keys) > FILES_MAX:
                raise UsageError(f"{show}:{path} has more than {FILES_MAX:,} files: name a folder in it, or no place")
    return list(keys)
