"""What an unprivileged user does with a mount, in a process that is one.

python -m tests.vfs.unprivileged FOLDER
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.vfs.mounted import is_mounted, mounted


def main(folder: Path) -> None:
    with mounted(folder) as mount:
        mount.publish({"d/a": b"x" * 3_000_000, "d/b": b"y"})
        assert (mount.path / "apollo/d/a").read_bytes() == b"x" * 3_000_000
        mount.publish({"d/a": b"changed"})
        assert (mount.path / "apollo/d/a").read_bytes() == b"changed"
        limits = mount.command(do="stats")["limits"]
        assert (limits["max_tasks"], limits["max_background"]) == (4096, 256)
        assert limits["not_raised"].startswith("read_ahead_kib: "), limits
        with (mount.path / "apollo/d/b").open("rb"):
            assert mount.command(do="unmount") == {"error": "Busy"}
        assert mount.command(do="unmount") == {}
        assert not is_mounted(mount.path)
        assert mount.stop() == 0
    print(f"mounted, read, and unmounted as {os.getuid()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
