"""What the control API's routes have in common: a body that is checked, an error that is JSON, who may ask.

State: none. An error is a JSON object {"error", "exit_code", "kind"}, ``kind`` being the name of a class of
``manifest/errors.py``.
"""

from __future__ import annotations

import logging
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

import trio
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.responses import JSONResponse, Response

from daemon.serve import BODY_BYTES_MAX
from manifest.errors import (
    AccessDenied,
    Busy,
    Conflict,
    DamfsError,
    IntegrityError,
    NewerFormat,
    NotFound,
    TrustError,
    Unavailable,
    UsageError,
    UserError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

log = logging.getLogger(__name__)

BODY_S = 5.0
_STATUS_CODES: tuple[tuple[type[DamfsError], int], ...] = (
    (NotFound, 404),
    (Busy, 409),
    (Conflict, 409),
    (UserError, 400),
    (AccessDenied, 403),
    (Unavailable, 504),
    (NewerFormat, 502),
    (IntegrityError, 502),
    (TrustError, 502),
)


class Body(BaseModel):
    """The body of a request: nothing but what the route takes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


BodyT = TypeVar("BodyT", bound=Body)


def guarded(handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """A handler whose errors are answers, those too that are bugs."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except DamfsError as error:
            return failure(error)
        except Exception as error:
            log.exception("%s %s failed", request.method, request.url.path)
            return failure(DamfsError(f"a bug of damfs: {error!r}; the daemon's log has the traceback"))

    return answer


def failure(error: DamfsError) -> Response:
    """The answer that an error is."""
    code = next((code for kind, code in _STATUS_CODES if isinstance(error, kind)), 500)
    body = {"error": str(error), "exit_code": error.exit_code, "kind": type(error).__name__}
    return JSONResponse(body, status_code=code)


def require_admin(request: Request, what: str) -> None:
    """Raise AccessDenied unless it was asked through the admin socket; ``what`` is a sentence's beginning.

    To be called when the body was read: a client that is refused before may not get to the answer.
    """
    if request.state.surface != "admin":
        raise AccessDenied(f"{what} through its admin socket")


async def read(request: Request, kind: type[BodyT], *, bytes_max: int = BODY_BYTES_MAX) -> BodyT:
    """The request's body. Raises UsageError when it is too long, too slow, or not what the route takes."""
    data = bytearray()
    with trio.move_on_after(BODY_S) as scope:
        async with aclosing(request.stream()) as pieces:
            async for piece in pieces:
                data += piece
                if len(data) > bytes_max:
                    raise UsageError(f"a request of more than {bytes_max} bytes")
    if scope.cancelled_caught:
        raise UsageError(f"the request's body did not arrive within {BODY_S:g} s")
    try:
        return kind.model_validate_json(bytes(data) or b"{}")
    except ValidationError as error:
        first: Any = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{request.url.path}: {where}: {first['msg']}") from error
