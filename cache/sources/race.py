"""Two ways to the same bytes, the second one begun when the first is late: whichever is right first counts.

State: none. Rule: the one that is not needed any more is cancelled; an error of one leaves the other to go on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import trio

from manifest.errors import DamfsError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Way = Callable[[], Awaitable[memoryview | bytes]]
    When = Callable[[trio.Event], Awaitable[bool]]


class Result(NamedTuple):
    """The bytes, and whether the second way brought them."""

    data: memoryview | bytes
    by_second: bool


async def race(first: Way, second: Way, when: When) -> Result:
    """Go the first way, and the second one too once ``when`` says so.

    ``when`` is given an event that is set when the first way has failed; True: begin the second one. Raises the
    DamfsError of the first way when no way led to the bytes. Cancellation ends both.
    """
    result: Result | None = None
    errors: dict[bool, DamfsError] = {}
    failed = trio.Event()
    async with trio.open_nursery() as nursery:

        async def go(way: Way, *, is_second: bool) -> None:
            nonlocal result
            try:
                data = await way()
            except DamfsError as error:
                errors[is_second] = error
                if not is_second:
                    failed.set()
                return
            result = result or Result(data, is_second)
            nursery.cancel_scope.cancel()

        async def go_first() -> None:
            await go(first, is_second=False)

        nursery.start_soon(go_first)
        if await when(failed):
            await go(second, is_second=True)
    if result is None:
        raise errors[False]
    return result
