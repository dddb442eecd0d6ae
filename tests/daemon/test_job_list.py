"""Jobs on disk: what was saved is loaded, what is damaged is put aside, and the others go on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from daemon import job_list
from daemon.job_list import JobRecord
from daemon.wants import Want

WANTS = [
    Want("apollo", "412", "plate", recursive=True),
    Want("apollo", "412", "plate/p.####.exr", sequence=True, frames=(1001, 1003)),
    Want("apollo", "412", "x.vdb", content="b3:" + "0" * 64, ranges=((0, 5), (9, 12))),
    Want("apollo", "412", "comp/v001", traced=True),
]
JOB = JobRecord(3, job_list.what(WANTS), "plate", 5, WANTS, files=1, bytes=7)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "jobs"
    assert job_list.load(folder) == []
    done = replace(JOB, id=4, state="failed", ended_ns=9, error="x" * 5000, kind="Unavailable")
    job_list.save(folder, done)
    job_list.save(folder, JOB)
    assert job_list.load(folder) == [JOB, replace(done, wants=[], error="x" * 1000)]
    job_list.forget(folder, 3)
    job_list.forget(folder, 3)
    assert [job.id for job in job_list.load(folder)] == [4]


def test_wants_are_the_same_when_all_of_them_are() -> None:
    others = [WANTS[::-1], WANTS[1:], [replace(WANTS[0], at="413"), *WANTS[1:]]]
    assert len({job_list.what(wants) for wants in [WANTS, list(WANTS), *others]}) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"id": 4},
        {"id": "3"},
        {"state": "downloading"},
        {"bytes": -1},
        {"name": None},
        {"error": 5},
        {"ended_ns": "x"},
        {"more": 1},
        {"_type": "damfs.job/2"},
        {"wants": None},
        {"wants": [1]},
        {"wants": [{"path": "x"}]},
        {"wants": [{"show": "../x"}]},
        {"wants": [{"show": "a", "path": "/etc"}]},
        {"wants": [{"show": "a", "at": "x"}]},
        {"wants": [{"show": "a", "recursive": 1}]},
        {"wants": [{"show": "a", "frames": [1]}]},
        {"wants": [{"show": "a", "path": "x", "sequence": True}]},
        {"wants": [{"show": "a", "ranges": [[5, 1]]}]},
        {"wants": [{"show": "a", "content": "b3:"}]},
        {"wants": [{"show": "a", "more": 1}]},
    ],
)
def test_a_job_that_is_not_as_it_was_written_is_put_aside_and_the_others_are_not(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    job_list.save(tmp_path, JOB)
    other = replace(JOB, id=7)
    job_list.save(tmp_path, other)
    file = tmp_path / "3.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | change, sort_keys=True, separators=(",", ":")))
    assert job_list.load(tmp_path) == [other]
    assert (tmp_path / "3.damaged").exists()
    assert not file.exists()


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[]", b"[" * 1000])
def test_what_is_no_job_is_put_aside(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "1.json").write_bytes(data)
    assert job_list.load(tmp_path) == []
    assert (tmp_path / "1.damaged").read_bytes() == data
