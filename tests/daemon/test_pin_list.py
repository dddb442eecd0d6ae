"""The list of pins on disk: what is not as it was written is put aside, and the mount goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from daemon import pin_list
from daemon.pin_list import Pin

PIN = Pin(3, "apollo", "412", "seq010/plate", recursive=True, made_ns=5)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "pins.json"
    assert pin_list.load(file) == []
    pin_list.save(file, [PIN])
    assert pin_list.load(file) == [PIN]


@pytest.mark.parametrize(
    "change",
    [
        {"id": "3"}, {"show": "../x"}, {"path": "/etc"}, {"path": "a/../b"}, {"at": "tomorrow"}, {"recursive": 1},
        {"made_ns": None}, {"more": 1},
    ],
)  # fmt: skip
def test_a_list_that_is_not_as_it_was_written_is_put_aside(tmp_path: Path, change: dict[str, object]) -> None:
    file = tmp_path / "pins.json"
    pin_list.save(file, [PIN])
    value = json.loads(file.read_bytes())
    value["pins"][0] |= change
    file.write_text(json.dumps(value, sort_keys=True, separators=(",", ":")))
    damaged = file.read_bytes()
    assert pin_list.load(file) == []
    assert not file.exists()
    assert file.with_suffix(".damaged").read_bytes() == damaged


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b'{"_type":"damfs.pins/2","pins":[]}'])
def test_what_is_no_list_is_put_aside(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "pins.json"
    file.write_bytes(data)
    assert pin_list.load(file) == []
    assert file.with_suffix(".damaged").read_bytes() == data
