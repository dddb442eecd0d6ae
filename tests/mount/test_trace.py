"""Traces on a real mount: what a program reads is written down, brought again, and is then all that it needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from daemon import recorded
from tests.harness import Mount, Studio, studio, wait_until
from tests.mount.conftest import evict, mounting_with, random_bytes, write_tree
from tests.mount.test_prefetch import jobs, percent, without_store

if TYPE_CHECKING:
    from collections.abc import Iterator

BIG_BYTES = 24_000_000
READER = """
import mmap, os, subprocess, sys
folder = sys.argv[1]
big = os.open(f"{folder}/big.vdb", os.O_RDONLY)
os.posix_fadvise(big, 0, 0, os.POSIX_FADV_RANDOM)
assert len(os.pread(big, 10_000, 20_000_000)) == 10_000
assert len(os.pread(big, 10, 0)) == 10
with open(f"{folder}/mapped.vdb", "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
    mapped.madvise(mmap.MADV_RANDOM)
    assert len(mapped[8_000_000:8_000_100]) == 100
done, tell = os.pipe()
orphan = ["setsid", "--fork", "sh", "-c", f"cat {folder}/child.exr > /dev/null && echo ok >&{tell}"]
subprocess.run(orphan, check=True, pass_fds=[tell])
os.close(tell)
assert os.read(done, 10) == b"ok\\n"
"""
HEAD_10 = ["sh", "-c", "head -c 10 $0 > /dev/null"]
FILES = {"big.vdb": BIG_BYTES, "mapped.vdb": 12_000_000, "child.exr": 300_000, "unread.exr": 300_000}


@pytest.fixture(scope="module")
def shown(binding: str, plates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Studio, Mount]]:
    settings = {**mounting_with(binding), "DAMFS_CACHE__PREFETCH_TRACES": "true"}
    with studio(tmp_path_factory.mktemp("studio") / "studio", **settings) as user:
        folder = tmp_path_factory.mktemp("source")
        user.run("init", user.url, "--show", "apollo", "--show", "hubble")
        write_tree(folder / "data", {name: random_bytes(size, n) for n, (name, size) in enumerate(FILES.items())})
        user.run("publish", folder / "data", "apollo:cache/v001")
        user.run("publish", plates / "v001/exr", "apollo:plate/v001")
        user.run("publish", write_tree(folder / "h", {"x.exr": random_bytes(100_000, 9)}), "hubble:v001")
        yield user, user.mount("--cache-size", "400MB")


@pytest.fixture
def user(shown: tuple[Studio, Mount]) -> Studio:
    return shown[0]


@pytest.fixture
def live(shown: tuple[Studio, Mount]) -> Path:
    for place in ("apollo:cache", "apollo:plate"):
        evict(shown[0], place)
    return shown[1].path / "apollo"


def trace(user: Studio, file: Path, *program: str | Path) -> dict[str, recorded.TracedFile]:
    done = user.complete("trace", "-o", file, "--", *program)
    assert done.returncode == 0, done.stderr
    return {found.path: found for found in recorded.parse(file.read_bytes()).files}


def forget_pages(*paths: Path) -> None:
    """What the kernel has of these files in memory: read again from wherever it has to come."""
    program = "import os, sys\nfor p in sys.argv[1:]:\n os.posix_fadvise(os.open(p, 0), 0, 0, os.POSIX_FADV_DONTNEED)"
    subprocess.run([sys.executable, "-c", program, *map(str, paths)], check=True, timeout=60)


def test_what_a_program_and_its_children_read_is_brought_again_and_is_all_they_need(
    user: Studio, live: Path, tmp_path: Path
) -> None:
    folder = live / "cache/v001"
    program = [sys.executable, "-c", READER, str(folder)]
    found = trace(user, tmp_path / "t", *program)
    assert set(found) == {"cache/v001/big.vdb", "cache/v001/mapped.vdb", "cache/v001/child.exr"}
    big = found["cache/v001/big.vdb"]
    assert big.ranges[0][0] == 0
    assert any(start <= 20_000_000 and stop >= 20_010_000 for start, stop in big.ranges)
    assert sum(stop - start for start, stop in big.ranges) < 1_000_000
    assert any(start <= 8_000_000 < stop for start, stop in found["cache/v001/mapped.vdb"].ranges)
    evict(user, "apollo:cache")
    forget_pages(*(folder / name for name in FILES))
    user.run("prefetch", "--trace", tmp_path / "t", "--wait")
    assert 0 < percent(folder / "big.vdb") < 100
    assert percent(folder / "unread.exr") == 0
    with without_store(user):
        subprocess.run(program, check=True, timeout=60)


def test_a_picture_is_rendered_without_the_store_after_its_trace_was_brought(
    user: Studio, live: Path, tmp_path: Path
) -> None:
    frames = sorted((live / "plate/v001").glob("*.exr"))[:3]
    program = ["oiiotool", *map(str, frames), "--add", "--add", "-o", str(tmp_path / "sum.exr")]
    found = trace(user, tmp_path / "t", *program)
    assert [Path(path).name for path in found] == [frame.name for frame in frames]
    evict(user, "apollo:plate")
    forget_pages(*frames)
    user.run("prefetch", "--trace", tmp_path / "t", "--at", "apollo@2", "--wait")
    with without_store(user):
        subprocess.run(program, check=True, timeout=60, capture_output=True)


def test_what_is_cached_is_recorded_just_as_what_is_not(user: Studio, live: Path, tmp_path: Path) -> None:
    name = live / "cache/v001/child.exr"
    first = trace(user, tmp_path / "a", *HEAD_10, name)
    user.run("prefetch", name, "--wait")
    subprocess.run(["cat", name], check=True, timeout=60, capture_output=True)
    second = trace(user, tmp_path / "b", *HEAD_10, name)
    assert list(first) == list(second) == ["cache/v001/child.exr"]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_of_a_file_that_another_has_open_already_no_byte_is_missed(user: Studio, live: Path, tmp_path: Path) -> None:
    name = live / "cache/v001/child.exr"
    user.run("prefetch", name, "--wait")
    wait_until(lambda: percent(name) == 100, "it to be cached")
    with subprocess.Popen(["tail", "-f", name], stdout=subprocess.DEVNULL) as other:
        try:
            wait_until(lambda: str(name) in _open_files(other.pid), "another to have it open")
            found = trace(user, tmp_path / "t", *HEAD_10, name)
            assert found["cache/v001/child.exr"].ranges[0][0] == 0
        finally:
            other.kill()


def _open_files(pid: int) -> list[str]:
    return [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]


def test_others_are_not_recorded_and_the_exit_status_is_the_programs(user: Studio, live: Path, tmp_path: Path) -> None:
    marker = tmp_path / "go"
    script = f"while [ ! -e {marker} ]; do sleep 0.05; done; exit 7"
    tracing = user.start("trace", "-o", tmp_path / "t", "--", "sh", "-c", script)
    wait_until(lambda: "records what its children read" in user.log(), "the recording to begin")
    subprocess.run(["cat", live / "cache/v001/unread.exr"], check=True, timeout=60, capture_output=True)
    marker.touch()
    tracing.communicate(timeout=60)
    assert tracing.returncode == 7
    assert recorded.parse((tmp_path / "t").read_bytes()).files == []
    assert user.complete("trace", "-o", tmp_path / "t", "--", "no-such-program").returncode == 4


def published(user: Studio, folder: Path, traces: dict[str, bytes]) -> None:
    """Versions of ``comp`` with these traces, as somebody publishes them who means harm."""
    files = {f"{version}/{recorded.TRACE_NAME}": data for version, data in traces.items()}
    scripts = {f"{version}/comp.nk": version.encode() * 10 for version in traces}
    user.run("publish", write_tree(folder / "comp", files | scripts), "apollo:comp")
    user.run("sync", "apollo")


def test_a_version_carries_a_trace_that_warms_a_node(user: Studio, live: Path, tmp_path: Path) -> None:
    name = live / "cache/v001/child.exr"
    trace(user, tmp_path / "t", "md5sum", name)
    place, source = "apollo:comp/v001", write_tree(tmp_path / "v001", {"comp.nk": b"v001"})
    user.run("publish", source, place, "--with-trace", tmp_path / "t")
    user.run("sync", "apollo")
    evict(user, "apollo:cache")
    said = user.run("prefetch", place, "--traced", "--wait")
    assert "1 file of 293.0 KiB" in said
    assert percent(name) == 100
    done = user.complete("prefetch", "apollo:cache/v001", "--traced")
    assert done.returncode == 4
    assert "published without a trace" in done.stderr
    (tmp_path / "bad").write_text("{}\n")
    assert (
        user.complete("publish", tmp_path / "v001", "apollo:comp/v9", "--with-trace", tmp_path / "bad").returncode == 7
    )


def line(**values: Any) -> bytes:
    whole = {"content": "b3:" + "0" * 64, "path": "cache/v001/child.exr", "ranges": [[0, 10]], "revision": 1,
             "show": "apollo", "size": 2**62} | values  # fmt: skip
    return json.dumps(whole, sort_keys=True, separators=(",", ":")).encode() + b"\n"


HEAD = b'{"_type":"damfs.trace/1","cut":0}\n'


def test_a_trace_that_means_harm_does_none(user: Studio, live: Path, tmp_path: Path) -> None:
    before = len(jobs(user))
    hostile = HEAD + line(show="hubble", path="v001/x.exr") + line(ranges=[[0, 2**62]]) + line(path="etc/passwd")
    bad = {
        "v012": HEAD + b"\n" * recorded.TRACE_BYTES_MAX,
        "v013": HEAD + line(path="../x"),
        "v014": HEAD + line(ranges=[[5, 1]]),
    }
    published(user, tmp_path, {"v011": hostile, **bad})
    done = user.complete("prefetch", "apollo:comp/v011", "--traced", "--wait")
    assert done.returncode == 4
    assert "etc/passwd" in done.stderr
    assert percent(live.parent / "hubble/v001/x.exr") == 0
    assert percent(live / "cache/v001/child.exr") == 100
    for version in bad:
        done = user.complete("prefetch", f"apollo:comp/{version}", "--traced", "--wait")
        assert done.returncode == 7, done.stderr
    assert len(jobs(user)) == before + 1


def test_the_first_open_in_a_version_begins_the_prefetch_of_its_trace(user: Studio, live: Path, tmp_path: Path) -> None:
    name = live / "cache/v001/child.exr"
    trace(user, tmp_path / "t", "md5sum", name)
    evict(user, "apollo:cache")
    published(user, tmp_path, {"v021": (tmp_path / "t").read_bytes(), "v022": HEAD + line(ranges=[[5, 1]])})
    before = len(jobs(user))
    for version in ("v021", "v021", "v022"):
        assert (live / "comp" / version / "comp.nk").read_bytes() == version.encode() * 10
    wait_until(lambda: "is not prefetched: the trace of apollo" in user.log(), "a note of the one that is none")
    wait_until(lambda: [job["state"] for job in jobs(user)[before:]] == ["complete"], "the trace to be prefetched", 30)
    assert percent(name) == 100
