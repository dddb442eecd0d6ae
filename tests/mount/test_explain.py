"""``damfs explain`` on a real mount: where a file is, what reading it cost, what is in the way, and who may ask."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.daemon.test_documents import sections
from tests.harness import Mount, studio, wait_until
from tests.mount.conftest import KEYS, make_bucket, mounting_with, random_bytes, read_error, write_tree
from tests.proxy import Mode, Proxy, proxy
from vfs.binding import kernel_why_not

FRAME_BYTES = 3_000_000
LARGE_BYTES = 24_000_000
FRAMES = [f"plate.{n}.exr" for n in (1001, 1002, 1003, 1005)]
FOLDERS = ("cold", "read", "flight", "pinned", "played", "switched")
"""Of each test its own; no two files have the same bytes."""
OWNER, GROUP, STRANGER, MEMBER = 4001, 4002, 4003, 4004


@pytest.fixture(scope="module")
def wire(s3_endpoint: str) -> Iterator[Proxy]:
    """A proxy in front of the S3 server."""
    parts = urlsplit(s3_endpoint)
    assert parts.hostname
    assert parts.port
    with proxy((parts.hostname, parts.port)) as made:
        yield made


@pytest.fixture(scope="module")
def mount(s3_endpoint: str, wire: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """A mount of which nothing was read yet; each test takes files of its own."""
    folder = tmp_path_factory.mktemp("explain")
    make_bucket(s3_endpoint, bucket := f"studio-{os.urandom(6).hex()}")
    environment = {"AWS_ENDPOINT_URL_S3": wire.url, "DAMFS_READS__DEADLINE_S": "60", **KEYS}
    with studio(folder / "studio", f"s3://{bucket}/dam", **environment) as made:
        made.run("init", made.url, "--show", "apollo", "--show", "gemini")
        for number, name in enumerate(FOLDERS, 1):
            files = {"empty.txt": b"", "large.mov": random_bytes(LARGE_BYTES, 100 + number), "small.nk": name.encode()}
            files |= {frame: random_bytes(FRAME_BYTES, 10 * number + n) for n, frame in enumerate(FRAMES)}
            made.run("publish", write_tree(folder / name, files), f"apollo:{name}/v001", "--tag", "latest")
        yield made.mount("--cache-size", "400MB")


def explain(mount: Mount, place: str) -> dict[str, Any]:
    found: dict[str, Any] = mount.studio.json("explain", place)
    return found


def test_what_is_told_is_what_is_documented(mount: Mount) -> None:
    documented = sections("STATUS.md")
    of_file, of_folder = explain(mount, "apollo:cold/v001/large.mov"), explain(mount, "apollo:cold/v001")
    assert set(of_file) | set(of_folder) == documented["An explanation"] | {"mountpoint"}
    assert set(of_file["file"]) == documented["A file, explained"]
    assert set(of_folder["folder"]) == documented["A folder, explained"]
    assert set(of_folder["folder"]["sequences"][0]) == documented["A sequence, explained"]


def file_of(mount: Mount, place: str) -> dict[str, Any]:
    found = explain(mount, place)
    assert found["kind"] == "file"
    file: dict[str, Any] = found["file"]
    return file


def read_whole(path: Path) -> None:
    """Read it, and wait until the cache has it."""
    path.read_bytes()
    wait_until(lambda: os.getxattr(path, "user.damfs.cached") == b"100", f"{path} to be cached", 30)


def test_a_cold_file_is_not_here_and_the_way_to_it_is_told(mount: Mount) -> None:
    found = explain(mount, "apollo:cold/v001/large.mov")
    file = found["file"]
    assert (found["revision"] >= 1, found["path"], found["offline"]) == (True, "cold/v001/large.mov", False)
    assert (file["here_bytes"], file["percent"], file["ranges"], file["whole"]) == (0, 0, [], False)
    assert (file["size_bytes"], file["here_chunks"]) == (LARGE_BYTES, 0)
    assert file["chunks"]["count"] > 3
    assert file["chunks"]["smallest_bytes"] <= file["chunks"]["median_bytes"] <= file["chunks"]["largest_bytes"]
    assert file["digest"].startswith("b3:")
    assert (file["last_read"], file["fetched"], file["pins"]) == (None, [], [])
    assert (file["next_open_by"], file["why_daemon"]) == ("daemon", "not all of it is on this workstation")
    assert [source["name"] for source in found["sources"]] == ["central"]
    assert {one["priority"] for one in found["queue"]} == {"demand", "read_ahead", "prefetch", "pin"}
    assert found["advice"].startswith("100 % of this file is not on this workstation; it comes from the source central")
    assert "damfs prefetch apollo@" in found["advice"]
    said = mount.studio.run("explain", mount.path / "apollo/cold/v001/large.mov")
    assert "here      0%" in said
    assert len(said.splitlines()) < 24


def test_a_file_that_was_read_in_part_tells_which_part_and_what_that_cost(mount: Mount) -> None:
    path = mount.path / "apollo/read/v001/large.mov"
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    assert os.pread(descriptor, 1000, LARGE_BYTES - 1000) == random_bytes(LARGE_BYTES, 102)[-1000:]
    os.close(descriptor)
    wait_until(lambda: file_of(mount, str(path))["here_bytes"] > 0, "a chunk to be kept")
    file = file_of(mount, str(path))
    assert file["last_read"]["total_s"] >= file["last_read"]["fetch_s"] >= 0
    assert file["slowest_read"]["total_s"] >= file["last_read"]["total_s"]
    assert file["slowest_read"]["fetch_s"] > 0
    (fetched,) = [one for one in file["fetched"] if one["source"] == "central"]
    assert fetched["source_s"] > 0
    assert fetched["verify_s"] > 0
    assert fetched["store_s"] > 0
    assert fetched["bytes"] >= file["here_bytes"]
    source = explain(mount, str(path))["sources"][0]
    assert 0 < source["latency_p50_s"] <= source["latency_p95_s"]
    assert source["bytes_per_s"] > 0
    assert source["breaker"] == "closed"


def test_a_whole_file_is_read_by_the_kernel_itself(mount: Mount) -> None:
    path = mount.path / "apollo/read/v001/plate.1001.exr"
    read_whole(path)
    if kernel_why_not() is None:
        wait_until(lambda: file_of(mount, str(path))["next_open_by"] == "kernel", "the file to be checked as a whole")
        with path.open("rb"):
            wait_until(lambda: file_of(mount, str(path))["read_by"] == "kernel", "the kernel to read it")
    found = explain(mount, str(path))
    assert (found["file"]["percent"], found["file"]["ranges"]) == (100, [[0, FRAME_BYTES]])
    assert found["advice"].startswith("All of this file is on this workstation")


@pytest.mark.skipif(kernel_why_not() is not None, reason=f"no kernel binding: {kernel_why_not()}")
def test_a_file_that_was_opened_before_it_was_here_is_read_through_the_daemon_until_it_is_closed(mount: Mount) -> None:
    path = mount.path / "apollo/read/v001/plate.1002.exr"
    with path.open("rb") as opened:
        assert len(opened.read()) == FRAME_BYTES

        def is_told() -> bool:
            file = file_of(mount, str(path))
            return (file["percent"], file["may_lend"]) == (100, True)

        wait_until(is_told, "the file to be checked as a whole", 30)
        file = file_of(mount, str(path))
        assert (file["read_by"], file["next_open_by"]) == ("daemon", "daemon")
        assert "close it in all programs and open it again" in file["why_daemon"]
        assert "close it in all programs" in explain(mount, str(path))["advice"]
    wait_until(lambda: file_of(mount, str(path))["next_open_by"] == "kernel", "the file to be closed")


def test_small_and_empty_files_are_told_as_what_they_are(mount: Mount) -> None:
    small, empty = (mount.path / "apollo/read/v001" / name for name in ("small.nk", "empty.txt"))
    assert file_of(mount, str(small))["here_bytes"] == 0
    read_whole(small)
    file = file_of(mount, str(small))
    assert (file["small"], file["here_bytes"], file["whole"], file["next_open_by"]) == (True, 4, True, "daemon")
    assert "64 KiB" in file["why_daemon"]
    file = file_of(mount, str(empty))
    assert (file["size_bytes"], file["here_bytes"], file["percent"], file["chunks"]) == (0, 0, 100, None)
    assert explain(mount, str(empty))["advice"] == "It is empty: nothing has to be fetched."


def test_a_link_is_followed_and_a_wrong_path_is_an_error(mount: Mount) -> None:
    found = explain(mount, str(mount.path / "apollo/cold/latest/small.nk"))
    assert (found["asked"], found["path"]) == ("cold/latest/small.nk", "cold/v001/small.nk")
    assert "leads here" in mount.studio.run("explain", mount.path / "apollo/cold/latest/small.nk")
    assert mount.studio.complete("explain", "apollo:cold/v001/no-such-file").returncode == 4
    assert mount.studio.complete("explain", "apollo@99:cold").returncode == 4
    assert mount.studio.complete("explain", "hubble:cold").returncode == 4
    assert mount.studio.complete("explain", "apollo:../x").returncode == 2
    assert mount.studio.complete("explain", mount.path / "apollo/cold/v001/plate.####.dpx").returncode == 4


def test_what_is_being_fetched_and_what_waits_is_told_while_the_source_is_silent(mount: Mount, wire: Proxy) -> None:
    path = mount.path / "apollo/flight/v001/large.mov"
    wire.mode = Mode.STALL
    reader = threading.Thread(target=read_error, args=(path,))
    reader.start()
    try:
        wait_until(lambda: file_of(mount, str(path))["coming"]["fetching"] > 0, "the read to be under way")
        found = explain(mount, str(path))
        coming = found["file"]["coming"]
        assert coming["priority"] == "demand"
        assert coming["longest_s"] > 0
        assert coming["bytes"] > 0
        assert found["queue"][0]["under_way"] >= 1
        assert "being fetched now as demand" in found["advice"] or "does not answer" in found["advice"]
        assert "being fetched as demand" in mount.studio.run("explain", path)
    finally:
        wire.mode = Mode.PASS
        reader.join(60)
    wait_until(lambda: file_of(mount, str(path))["coming"]["fetching"] == 0, "the read to be over")
    assert file_of(mount, str(path))["slowest_read"]["fetch_s"] > 0


def test_a_pinned_file_names_its_pin(mount: Mount) -> None:
    made = mount.studio.json("pin", "apollo:pinned/v001/plate.1001.exr")
    file = file_of(mount, "apollo:pinned/v001/plate.1001.exr")
    assert (file["pins"], file["percent"]) == ([made["id"]], 100)
    assert "pinned" in mount.studio.run("explain", "apollo:pinned/v001/plate.1001.exr")


def test_a_folder_and_a_sequence_tell_what_is_here_of_each_sequence(mount: Mount) -> None:
    folder = mount.path / "apollo/played/v001"
    read_whole(folder / "plate.1002.exr")
    found = explain(mount, str(folder))
    assert (found["kind"], found["folder"]["files"], found["folder"]["folders"]) == ("folder", 7, 0)
    (plate,) = [one for one in found["folder"]["sequences"] if one["first"] is not None]
    assert plate["name"] == "plate.####.exr"
    assert (plate["first"], plate["last"], plate["files"], plate["gaps"]) == (1001, 1005, 4, 1)
    assert (plate["percent"], plate["whole"], plate["absent"]) == (25, 1, [[1001, 1001], [1003, 1003], [1005, 1005]])
    (only,) = explain(mount, f"{folder}/plate.####.exr")["folder"]["sequences"]
    assert only == plate
    assert explain(mount, f"{folder}/plate.%04d.exr")["folder"]["sequences"] == [plate]
    above = explain(mount, "apollo:played")
    assert (above["folder"]["files"], above["folder"]["folders"]) == (0, 1)
    said = mount.studio.run("explain", folder)
    assert "plate.####.exr 1001-1005, 1 of 4 frames here, 1 number not published; not whole: 1001, 1003, 1005" in said


def test_offline_it_says_so_and_asks_nobody(mount: Mount, wire: Proxy) -> None:
    path = mount.path / "apollo/switched/v001/plate.1001.exr"
    mount.studio.run("offline", "on")
    try:
        wire.mode, before = Mode.REFUSE, wire.connections
        found = explain(mount, str(path))
        assert (found["offline"], found["offline_switched"]) == (True, True)
        assert "damfs offline off" in found["advice"]
        assert "OFFLINE" in mount.studio.run("explain", path)
        assert read_error(path) != 0
        assert "nothing is fetched" in file_of(mount, str(path))["last_read"]["error"]
        assert wire.connections == before
    finally:
        wire.mode = Mode.PASS
        mount.studio.run("offline", "off")


# Who may ask


@contextmanager
def shared(options: str, binding: str = "") -> Iterator[Mount]:
    """A mount that belongs to OWNER and GROUP, in a folder that everybody may enter."""
    folder = Path(tempfile.mkdtemp(prefix="damfs-explain-"))
    folder.chmod(0o755)
    modes = {"secret.exr": 0o600, "shared.exr": 0o640, "public.exr": 0o644, "private/inside.exr": 0o644}
    try:
        with studio(folder / "studio", **mounting_with(binding)) as made:
            made.run("init", made.url, "--show", "apollo")
            files = {name: random_bytes(200_000, n) for n, name in enumerate(modes)}
            files["twin.exr"] = files["private/inside.exr"]
            source = write_tree(folder / "source", files)
            for name, mode in modes.items():
                (source / name).chmod(mode)
            (source / "private").chmod(0o700)
            made.run("publish", source, "apollo:v001")
            mount = made.mount("-o", f"{options}uid={OWNER},gid={GROUP}")
            (made.folder / "run").chmod(0o755)
            yield mount
    finally:
        shutil.rmtree(folder)


AS_SOMEBODY = """
import json, os, sys
from daemon.client import Client
from manifest.errors import DamfsError
from manifest.names import parse_address
uid, groups, mountpoint, *places = sys.argv[1:]
os.setgroups([int(group) for group in groups.split(",") if group])
os.setgid(int(uid))
os.setuid(int(uid))
client = Client.for_mountpoint(mountpoint)
answers = []
for place in places:
    try:
        answers.append(client.explain(parse_address(place)))
    except DamfsError as error:
        answers.append({"error": type(error).__name__, "message": str(error)})
print(json.dumps(answers))
"""


def ask_as(mount: Mount, uid: int, paths: Iterable[str], groups: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """What a user is told of each path, or ``error``. Modules are loaded before the rights are given up."""
    done = subprocess.run(
        [sys.executable, "-c", AS_SOMEBODY, str(uid), ",".join(map(str, groups)), mount.path,
         *(f"apollo:{path}" for path in paths)],
        env=mount.studio.env(), cwd="/", capture_output=True, text=True, timeout=60, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_anybody_is_told_what_the_kernel_would_let_them_read_and_nothing_else() -> None:
    with shared("allow_other,") as mount:
        who = {"owner": (OWNER, ()), "member": (MEMBER, (GROUP,)), "stranger": (STRANGER, ())}
        may = {
            "v001/secret.exr": {"owner"}, "v001/shared.exr": {"owner", "member"},
            "v001/public.exr": {"owner", "member", "stranger"}, "v001/private/inside.exr": {"owner"},
            "v001/private": {"owner"}, "v001": {"owner", "member", "stranger"},
        }  # fmt: skip
        for name, (uid, groups) in who.items():
            for path, found in zip(may, ask_as(mount, uid, may, groups), strict=True):
                assert found.get("error") == (None if name in may[path] else "AccessDenied"), (path, name, found)
        there, absent, folder = ask_as(
            mount, STRANGER, ["v001/private/inside.exr", "v001/private/no-such-name", "v001"]
        )
        assert there == absent, "whether a name is there is not told either"
        assert (folder["folder"]["files"], folder["folder"]["unreadable"]) == (2, 2)
        assert [one["name"] for one in folder["folder"]["sequences"]] == ["public.exr", "twin.exr"]
        mount.path.parent.chmod(0o700)
        code, found = ask_as_through_the_socket(mount, STRANGER)
        assert (code, found["kind"]) == (403, "AccessDenied")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_nobody_learns_the_name_of_a_file_of_the_same_bytes_that_they_may_not_see() -> None:
    with shared("allow_other,") as mount:
        mount.studio.run("offline", "on")
        assert read_error(mount.path / "apollo/v001/private/inside.exr") != 0
        assert "inside" in file_of(mount, "apollo:v001/twin.exr")["last_read"]["error"]
        (found,) = ask_as(mount, STRANGER, ["v001/twin.exr"])
        assert found["file"]["last_read"]["error"]
        assert "inside" not in json.dumps(found)


def ask_as_through_the_socket(mount: Mount, uid: int) -> tuple[int, dict[str, Any]]:
    """As somebody who holds a connection to the socket in a folder that they could not enter any more."""
    program = """
import http.client, json, os, socket, sys
connection = socket.socket(socket.AF_UNIX)
folder = os.open(sys.argv[1], os.O_PATH)
os.setgroups([]); os.setgid(int(sys.argv[3])); os.setuid(int(sys.argv[3]))
connection.connect(f"/proc/self/fd/{folder}/{sys.argv[2]}")
client = http.client.HTTPConnection("localhost")
client.sock = connection
client.request("POST", "/v1/explain", json.dumps({"show": "apollo", "path": "v001/public.exr"}))
answer = client.getresponse()
print(json.dumps([answer.status, json.loads(answer.read())]))
"""
    (socket_path,) = (mount.studio.folder / "run").rglob("*.view.sock")
    done = subprocess.run(
        [sys.executable, "-c", program, socket_path.parent, socket_path.name, str(uid)], capture_output=True, text=True,
        timeout=60, check=True,
    )  # fmt: skip
    code, found = json.loads(done.stdout)
    return code, found


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_without_allow_other_nobody_else_is_told_anything() -> None:
    with shared("") as mount:
        (found,) = ask_as(mount, STRANGER, ["v001/public.exr"])
        assert found["error"] == "AccessDenied"
        assert mount.studio.run("explain", "apollo:v001/public.exr")
