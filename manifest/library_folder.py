"""What a library in a folder (``file://``) needs beside obstore: durable creation, and knowing that it is there.

obstore's LocalStore renames or links finished files, but never syncs them, and makes a missing root folder anew:
on an unmounted NFS library that would be an empty library on the local disk. Hence:

- ``create`` writes and syncs the bytes before the name exists, and syncs the folder after, so that a log entry
  is never empty or torn after a power cut. The same happens when the name was there: whoever reads it back may
  rely on it.
- temporary names are ``<name>#<digits>``, which LocalStore leaves out of its listings.

Stateless; everything may block for as long as the file system does (a dead NFS server: for ever).
"""

from __future__ import annotations

import ctypes
import os
import secrets
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)


def create(root: Path, key: str, data: bytes | memoryview) -> None:
    """Make the file ``key`` below ``root`` with these bytes, durably. Raises FileExistsError and other OSErrors."""
    path = root / key
    if path.parent != root:
        make_folders(root, path.parent)
    temporary = path.with_name(f"{path.name}#{secrets.randbelow(10**15)}")
    try:
        with temporary.open("xb", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            os.fsync(file.fileno())
        os.link(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
        _sync_folder(path.parent)


def size(root: Path, key: str) -> int | None:
    """The length of the file ``key`` below ``root`` in bytes; None when there is none. Raises OSError.

    A publisher asks for every chunk, and most are not there: stat(2) answers in a tenth of the time of obstore.
    """
    try:
        status = os.stat(f"{root}/{key}")  # noqa: PTH116 - a Path takes longer to make than the call
    except FileNotFoundError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def make_folders(root: Path, folder: Path) -> None:
    """Make ``folder`` and what is missing between it and ``root``, durably; ``root`` itself must be there."""
    assert root in folder.parents
    try:
        folder.mkdir()
    except FileExistsError:
        return
    except FileNotFoundError:
        if folder.parent == root:
            raise
        make_folders(root, folder.parent)
        folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def sync_filesystem(root: Path) -> None:
    """Write back everything dirty on the file system that holds ``root``. Raises OSError.

    Source: syncfs(2); write-back errors are reported since Linux 5.8.
    """
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(root))
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
