"""Small files that are there as a whole or not at all, also after a power cut.

State: none. What a kill leaves behind is a temporary file, ``.<name>.<12 hex>``, that nobody reads.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def write(path: Path, data: bytes, *, mode: int | None = None) -> None:
    """Make ``data`` what ``path`` holds: temporary file, fsync, rename, fsync the folder. Blocking. Raises OSError.

    ``mode``: the rights of the file; None: as the umask has it.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with temporary.open("xb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
