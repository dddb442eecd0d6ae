"""Credentials within a deadline.

boto3's chain may run programs and go to the network (STS, SSO, instance metadata), and wait for minutes; obstore asks
it in the middle of a request, outside the request's time-out. Here it is asked in a thread of its own, at most one
at a time, and whoever waits does so for a limited time. A late answer is not lost: boto3 keeps it for the
next request.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_TIMEOUT_S = 10.0
"""For walking down the chain for the first time; a cloud's metadata service is given 1 s a try by boto3."""
RENEWAL_TIMEOUT_S = 2.0
"""For new credentials in the middle of a request."""
UNREACHABLE = "credentials cannot be had now"
"""Begins the message of every failure that may pass by itself."""

T = TypeVar("T")


class BoundedCredentials(Generic[T]):
    """A credential provider around ``provider``. Thread-safe."""

    def __init__(
        self,
        provider: Callable[[], T],
        passing: tuple[type[Exception], ...] = (),
        timeout_s: float = RENEWAL_TIMEOUT_S,
    ) -> None:
        """``passing``: the exceptions of ``provider`` that say that it could not ask, not that there are none."""
        self._provider = provider
        self._passing = passing
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._asking: Future[T] | None = None

    def __call__(self) -> T:
        """Fresh credentials. Raises TimeoutError, and what ``provider`` raises."""
        with self._lock:
            asking = self._asking
            if asking is None:
                asking = self._asking = Future()
                threading.Thread(target=self._ask, args=(asking,), name="credentials", daemon=True).start()
        try:
            return asking.result(self._timeout_s)
        except TimeoutError:
            raise TimeoutError(f"{UNREACHABLE}: no answer within {self._timeout_s:g} s") from None
        except self._passing as error:
            raise ConnectionError(f"{UNREACHABLE}: {error}") from error

    def _ask(self, asking: Future[T]) -> None:
        try:
            credentials = self._provider()
        except BaseException as error:  # noqa: BLE001 (raised again in whoever waits)
            self._forget()
            asking.set_exception(error)
        else:
            self._forget()
            asking.set_result(credentials)

    def _forget(self) -> None:
        with self._lock:
            self._asking = None
