"""The exit statuses of ``damfs``: what each one means, in one table.

A command that ends with a DamfsError exits with that error's ``exit_code``; the test of this module checks that
every error of the tree has a number that stands here.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit status of ``damfs``. Scripts may rely on the numbers."""

    OK = 0
    BUG = 1
    USAGE = 2
    CONFIGURATION = 3
    NOT_FOUND = 4
    CONFLICT = 5
    UNREACHABLE = 6
    INTEGRITY = 7
    TRUST = 8
    UNKNOWN = 9
    INTERRUPTED = 130


MEANINGS: dict[ExitCode, str] = {
    ExitCode.OK: "done",
    ExitCode.BUG: "a bug of damfs; run again with -v and report what it prints",
    ExitCode.USAGE: "the words of the command are off",
    ExitCode.CONFIGURATION: "this machine is set up wrongly: a setting, a file, a missing right, a mountpoint in use",
    ExitCode.NOT_FOUND: "no such library, show, revision, path or mount",
    ExitCode.CONFLICT: "somebody else changed it first, it is write-once, or it is there already",
    ExitCode.UNREACHABLE: "the library or the daemon is not reachable, not within the deadline, or denies access",
    ExitCode.INTEGRITY: "bytes are not what they were published as",
    ExitCode.TRUST: "a signature that no trusted key made",
    ExitCode.UNKNOWN: "a commit that may or may not have happened; run the same publish again",
    ExitCode.INTERRUPTED: "interrupted with Ctrl-C",
}
