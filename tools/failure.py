"""How a command ends that did not do what it was asked to: what people and scripts are told, and the exit status.

State: none. Rule: whatever is not an error that damfs raises on purpose, nor one of the operating system, is a bug.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from manifest.errors import ConfigurationError, DamfsError
from tools.exit_codes import ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Failure:
    """The end of a command. ``kind`` is a class of manifest/errors.py, Interrupted or Bug; ``lines`` are for people."""

    kind: str
    lines: Sequence[str]
    exit_code: int

    @classmethod
    def of(cls, error: BaseException) -> Self:
        """What ``error`` comes to."""
        kind = type(error).__name__
        if isinstance(error, DamfsError):
            # A class that a module keeps to itself is what it derives from.
            kind = next(known.__name__ for known in type(error).__mro__ if known.__module__ == DamfsError.__module__)
            return cls(kind, [str(error) or kind], error.exit_code)
        if isinstance(error, KeyboardInterrupt):
            return cls("Interrupted", ["interrupted"], ExitCode.INTERRUPTED)
        if isinstance(error, OSError):
            message = f"{error.filename or 'the output'}: {error.strerror or error}"
            return cls(ConfigurationError.__name__, [message], ConfigurationError.exit_code)
        lines = [f"this is a bug: {kind}: {error}", "run it again with -v and report what it prints"]
        return cls("Bug", lines, ExitCode.BUG)

    def to_json(self) -> dict[str, Any]:
        """What scripts are told."""
        return {"kind": self.kind, "message": "; ".join(self.lines), "exit_code": int(self.exit_code)}
