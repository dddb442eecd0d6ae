"""The one table from exceptions to what an application sees. Nowhere else is an errno chosen.

Rules: the first class of the exception's own line of ancestors that stands in the table decides. What is not in
the table is a bug of ours: EIO, and whoever asked logs it.
"""

from __future__ import annotations

import errno

from manifest.errors import (
    AccessDenied,
    ConfigurationError,
    DamfsError,
    IntegrityError,
    IsAFolder,
    NotAFolder,
    NotALink,
    NotFound,
    TransportError,
    TrustError,
    UserError,
)


class ReadOnly(UserError):
    """Something was to be changed in the mount, which is read-only."""


class Stale(UserError):
    """An inode of a folder that no longer is: the kernel looks the path up again, once."""


class NoAttribute(UserError):
    """The file or folder has no extended attribute of this name."""


class NameTooLong(UserError):
    """A name longer than any that can be published."""


class NoNamespace(UserError):
    """Extended attributes of a kind that no file here has."""


class TooManyHandles(UserError):
    """The limit of open handles is reached."""


TABLE: dict[type[BaseException], int] = {
    NotFound: errno.ENOENT,
    NotAFolder: errno.ENOTDIR,
    IsAFolder: errno.EISDIR,
    NotALink: errno.EINVAL,
    ReadOnly: errno.EROFS,
    Stale: errno.ESTALE,
    NoAttribute: errno.ENODATA,
    NoNamespace: errno.EOPNOTSUPP,
    NameTooLong: errno.ENAMETOOLONG,
    TooManyHandles: errno.ENFILE,
    UserError: errno.EINVAL,
    AccessDenied: errno.EIO,  # EACCES would say that the file's mode is to blame
    TransportError: errno.EIO,
    IntegrityError: errno.EIO,
    TrustError: errno.EIO,
    ConfigurationError: errno.EIO,
    DamfsError: errno.EIO,
    MemoryError: errno.ENOMEM,
}


ORDINARY = frozenset((errno.ENOENT, errno.ENODATA, errno.EOPNOTSUPP))
"""What programs are told all day, and nobody needs to be told of."""


def errno_of(error: BaseException) -> int:
    """The errno that a reply carries for this exception; EIO for what is not in the table."""
    for kind in type(error).__mro__:
        number = TABLE.get(kind)
        if number is not None:
            return number
    return errno.EIO


def is_known(error: BaseException) -> bool:
    """Whether the exception is one that damfs raises on purpose, and not a bug."""
    return isinstance(error, (DamfsError, MemoryError))
