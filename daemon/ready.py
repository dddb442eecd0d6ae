"""How whoever started the daemon learns how it went: one line of JSON on a pipe, then its end.

``{"ready": true, "pid", "mountpoint", "binding", "binding_reason", "offline", "metrics"}`` once the mount answers, or
``{"error", "exit_code", "kind"}``. A pipe that ends without a line means that the daemon died.
"""

from __future__ import annotations

import json
import logging
import os

from manifest.errors import DamfsError

log = logging.getLogger(__name__)


class Ready:
    """The pipe, if there is one (``--ready-fd``); whatever is said first is the only thing said."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        if descriptor is not None:
            os.set_inheritable(descriptor, False)

    def up(self, **facts: object) -> None:
        """The mount answers."""
        self._say({"ready": True, **facts})

    def failed(self, error: BaseException) -> None:
        """It will not come up."""
        code = error.exit_code if isinstance(error, DamfsError) else 1
        text = str(error) if isinstance(error, DamfsError) else f"a bug of damfs: {error!r}"
        self._say({"error": text, "exit_code": code, "kind": type(error).__name__})

    def _say(self, message: dict[str, object]) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        try:
            os.write(descriptor, json.dumps(message).encode() + b"\n")
        except OSError as error:
            log.warning("whoever started this daemon does not wait for it any more: %s", error)
        finally:
            os.close(descriptor)


def cause_of(error: BaseException) -> BaseException:
    """The error that counts, out of nested exception groups: the first DamfsError, else the first of any kind."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    causes = [cause_of(inner) for inner in error.exceptions]
    return next((cause for cause in causes if isinstance(cause, DamfsError)), causes[0])
