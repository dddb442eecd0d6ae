"""Every error that damfs raises on purpose, by the party at fault.

    DamfsError
    ├── UserError                what was asked for cannot be
    │   ├── UsageError           the words of the command are off
    │   ├── NotFound             no such show, revision, path or object
    │   ├── NotAFolder · IsAFolder · NotALink
    │   ├── Conflict             somebody else changed it first, or it is write-once
    │   └── SourceChanged        a file changed while it was being published
    ├── ConfigurationError       this machine is set up wrongly
    │   ├── Busy                 another process holds what can be held once
    │   ├── NewerFormat          what was published needs a newer damfs
    │   └── ReplicaDamaged       a replica, which can be built anew, does not hold together
    ├── TransportError           the way to the bytes, not the bytes
    │   ├── Unavailable          not reachable, or not within the deadline
    │   │   └── KnownDown        not even asked, for it is known not to answer
    │   │       └── Offline      not asked, for this machine is to use no network
    │   ├── AccessDenied         reachable, but these credentials may not
    │   ├── StoreFull            reachable, but there is no room left in it
    │   └── OutcomeUnknown       a commit that may or may not have happened
    ├── IntegrityError           bytes are not what they were published as
    │   ├── FormatError          bytes that break a rule of docs/FORMAT.md
    │   └── DigestMismatch       bytes that do not have the digest they are named by
    └── TrustError               a signature that no trusted key made

Rules: a message says what was expected, what came, which object, and what to do. ``exit_code`` is what a
command exits with (README); the errno that an application sees is chosen in ``vfs/errno.py`` alone.
"""

from __future__ import annotations

from typing import ClassVar


class DamfsError(Exception):
    """The root of the tree. ``exit_code`` is the exit status of a command that ends with it."""

    exit_code: ClassVar[int] = 1


class UserError(DamfsError):
    """What was asked for cannot be."""

    exit_code = 2


class UsageError(UserError):
    """The words of the command are off."""


class NotFound(UserError):
    """No such show, revision, path or object."""

    exit_code = 4


class NotAFolder(UserError):
    """A path goes through, or a listing was asked of, something that is not a folder."""

    exit_code = 4


class IsAFolder(UserError):
    """The bytes of a folder were asked for."""

    exit_code = 4


class NotALink(UserError):
    """The target of something that is not a symbolic link was asked for."""

    exit_code = 4


class Conflict(UserError):
    """The change meets another one, or something that is write-once.

    ``path`` is relative to the show, and empty when the conflict is not about one path.
    """

    exit_code = 5

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class SourceChanged(UserError):
    """A file changed while it was being published; nothing of it was committed."""

    exit_code = 5


class ConfigurationError(DamfsError):
    """A setting, a file or a right on this machine is not as it has to be."""

    exit_code = 3


class Busy(ConfigurationError):
    """Another process holds what can be held once: a cache folder, a mountpoint."""


class NewerFormat(ConfigurationError):
    """What a trusted key has signed is of a format that this version does not know. Never a statement about it."""


class ReplicaDamaged(ConfigurationError):
    """The local replica does not hold together. Never a statement about the log, from which it is built anew."""


class TransportError(DamfsError):
    """The way to the bytes failed, not the bytes."""

    exit_code = 6


class Unavailable(TransportError):
    """Not reachable, or not within the deadline. Never a statement about what is stored."""


class KnownDown(Unavailable):
    """Not even asked, for it is known not to answer; the message says since when and why."""


class Offline(KnownDown):
    """Not asked: somebody has said that this mount is to use no network. Trying again does not help."""


class AccessDenied(TransportError):
    """Reachable, but these credentials may not."""


class StoreFull(TransportError):
    """Reachable, but there is no room left in it: waiting does not help."""


class OutcomeUnknown(TransportError):
    """A commit that may or may not have happened; the same publish can be run again safely."""

    exit_code = 9


class IntegrityError(DamfsError):
    """Bytes are not what they were published as."""

    exit_code = 7


class FormatError(IntegrityError):
    """Bytes that break a rule of docs/FORMAT.md."""


class DigestMismatch(IntegrityError):
    """Bytes that do not have the digest, or the length, that they are named by."""


class TrustError(DamfsError):
    """A signature that no trusted key made."""

    exit_code = 8
