"""The switch by itself: what is kept of a wish, and what is in force. On a real mount: tests/mount/test_offline.py."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from cache import durable
from daemon.offline import OfflineSwitch, load
from manifest.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path


class Parts:
    """What a switch switches; ``said`` is what the cache was told."""

    def __init__(self) -> None:
        self.said: list[str | None] = []
        self.library = SimpleNamespace(shut_because=None)
        contact = SimpleNamespace(shut=lambda _reason: None, open=lambda: None)
        self.sync = SimpleNamespace(contact=contact, wake=lambda: None)

    def switch(self, file: Path) -> OfflineSwitch:
        parts: Any = (file, load(file), self.library, self.said.append, self.sync)
        return OfflineSwitch(*parts)


async def test_a_wish_that_was_refused_is_none_for_a_later_mount_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, file = Parts(), tmp_path / "offline.json"
    switch = parts.switch(file)
    write = durable.write

    def write_and_fail(path: Path, data: bytes) -> None:
        write(path, data)
        raise OSError(errno.EIO, "as if the folder could not be synced")

    with monkeypatch.context() as patch:
        patch.setattr(durable, "write", write_and_fail)
        with pytest.raises(ConfigurationError, match="cannot be kept"):
            await switch.set(on=True, uid=1)
    assert (switch.wish, parts.said, load(file)) == (None, [], None)
    await switch.set(on=True, uid=1)
    assert load(file) == switch.wish is not None


async def test_on_and_off_and_on_ends_as_the_last_one_says(tmp_path: Path) -> None:
    parts, file = Parts(), tmp_path / "offline.json"
    switch = parts.switch(file)
    for on in (True, False, True):
        await switch.set(on=on, uid=7)
    assert switch.wish is not None
    assert parts.library.shut_because == parts.said[-1] == str(switch.wish)
    again = Parts()
    assert again.switch(file).wish == switch.wish
    assert again.said == [str(switch.wish)]
