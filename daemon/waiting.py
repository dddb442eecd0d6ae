"""A daemon process that is to stand by: everything is imported, nothing of the daemon that runs is touched.

What it may look at are its settings, and the journal that it was given, read-only, to say whether a successor could
take over. It opens no lock, no database and no socket; then it is a zygote (daemon/zygote.py).
"""

from __future__ import annotations

import importlib
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from daemon import zygote
from manifest.errors import DamfsError
from vfs.kernel import handover
from vfs.kernel.journal import read_facts

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from daemon.systemd import Notify

LATE = (
    "boto3.session",
    "encodings.idna",
    "hypercorn.protocol.h11",
    "hypercorn.protocol.h2",
    "obstore.auth.boto3",
    "sqlite_utils",
    "vfs.pyfuse3_binding",
)
"""What a daemon imports only when it needs it, and what may be missing."""


def stand_by(descriptor: int, notify: Notify, mountpoint: Path, handed: Mapping[str, int]) -> zygote.Start | None:
    """Say whether a successor could take over, and fork successors. Returns in one that is to be the daemon. Blocking.

    None: this process is not needed any more.
    """
    control = socket.socket(fileno=descriptor)
    control.set_inheritable(False)
    try:
        left = handover.from_descriptors(handed, 0)
        if left is not None:
            handover.check(left, mountpoint, read_facts(left.journal).library_id)
    except DamfsError as error:
        notify.standby(str(error))
        return None
    finally:
        for kept in handed.values():
            os.close(kept)  # what is stored then is given to the successor that is to go
    for name in LATE:
        with suppress(ImportError):
            importlib.import_module(name)
    if not zygote.has_one_thread():
        notify.standby("something that was imported has begun a thread: this process cannot be forked")
        return None
    notify.standby()
    return zygote.serve(control)
