"""The route of ``damfs cache advise``, on the admin socket: what was opened is nobody else's business.

| | |
|---|---|
| GET /v1/cache/reads | the sample of reads, and the cache that it is of |

The advice is worked out by who asks: that takes seconds of a CPU, which the daemon has no use for.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from daemon.routing import guarded, require_admin

if TYPE_CHECKING:
    from starlette.requests import Request

    from cache.store import CacheStore


def routes(cache: CacheStore, policy: str) -> list[Route]:
    """That of the module's table. ``policy`` is what the cache evicts by."""

    async def reads(request: Request) -> Response:
        require_admin(request, "what was opened is asked")
        limits = cache.shelves[0].capacity.limits
        return JSONResponse(
            {
                "policy": policy,
                "size_bytes": cache.stats().size_bytes,
                "marks": [limits.high_water, limits.low_water],
                "asked_bytes": cache.trace.asked_bytes,
                "found_bytes": cache.trace.found_bytes,
                "sample": base64.b64encode(cache.trace.packed()).decode(),
            }
        )

    return [Route("/v1/cache/reads", guarded(reads), methods=["GET"])]
