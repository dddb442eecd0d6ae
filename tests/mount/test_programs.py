"""Unmodified programs on a mount: what they read is what was published, whatever of it is cached, and how they read.

fsx is not packaged for Debian; its read operations are in reader.py, and fio compares what it wrote itself. Every
program has files of its own in each state: *uncached*, *partial* and *complete* in the cache.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.harness import Mount, Studio, drilled, studio, wait_until
from tests.mount import reader
from tests.mount.conftest import mounting_with, random_bytes, write_tree

STATES = ["uncached", "partial", "complete"]
TIMEOUT_S = 60
COPYING = ["cp-reflink", "cp-sparse", "rsync", "tar", "sendfile", "copy-file-range"]
FIO_ENGINES = {"psync": [], "mmap": [], "libaio": ["--direct=1", "--iodepth=16"]}
FIO_PATTERNS = {"randread": "4k", "read": "1m"}
FIO_BYTES = 3 << 20
LARGE_BYTES = 6_000_000


class Shown(NamedTuple):
    """The mount that all programs run on, and the folder that was published as ``apollo:v001``."""

    user: Studio
    mount: Mount
    source: Path
    live: Path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, plates: Path) -> Path:
    """Everything that is published, made once."""
    folder = tmp_path_factory.mktemp("programs") / "source"
    for state in STATES:
        for number, name in enumerate(COPYING):
            write_tree(folder / name / state, some_files(f"{state} {number}"))
        write_tree(folder / "fsx" / state, {"cache.vdb": random_bytes(LARGE_BYTES, STATES.index(state))})
        (folder / "sqlite" / state).mkdir(parents=True)
        for name in DATABASES:
            make_database(folder / "sqlite" / state / name, f"{state} {name}")
    write_with_fio(folder / "fio")
    shutil.copytree(plates / "v001/exr", folder / "oiio/exr")
    run("maketx", folder / "oiio/exr/sh020_beauty.1001.exr", "-o", folder / "oiio/beauty.tx")
    (folder / "oiio/latest.exr").symlink_to("exr/sh020_beauty.1001.exr")
    return folder


@pytest.fixture(scope="module")
def shown(binding: str, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    with studio(tmp_path_factory.mktemp("studio") / "studio", **mounting_with(binding)) as user:
        user.run("init", user.url, "--show", "apollo")
        user.run("publish", source, "apollo:v001")
        mount = user.mount()
        yield Shown(user, mount, source, mount.path / "apollo/v001")


def some_files(seed: str) -> dict[str, bytes]:
    sizes = {"empty": 0, "one": 1, "script.nk": 4097, "frame.1001.exr": 70_000, "sub/frame.1002.exr": 300_000}
    files = {name: random.Random(f"{seed} {name}").randbytes(size) for name, size in sizes.items()}
    holes = random.Random(seed).randbytes(1_000_000) + bytes(2_000_000) + random.Random(seed).randbytes(1_500_000)
    return files | {"sub/holes.vdb": holes}


def cached(path: Path) -> int:
    return int(os.getxattr(path, "user.damfs.cached"))


def bring(folder: Path, state: str) -> None:
    """Have the files of a folder in a state of the cache."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
    assert files
    for path in files:
        assert cached(path) == 0, f"{path} was read before"
        if state == "partial":
            with path.open("rb", buffering=0) as file:
                os.pread(file.fileno(), 100, path.stat().st_size * 2 // 3)
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        elif state == "complete":
            path.read_bytes()
            wait_until(lambda path=path: cached(path) == 100, f"{path} to be cached")  # type: ignore[misc]
    if state == "partial":
        wait_until(lambda: any(0 < cached(path) < 100 for path in files), f"a part of {folder} to be cached")


def run(*arguments: str | Path, code: int = 0, timeout_s: float = TIMEOUT_S) -> str:
    """Run a program to its end; returns what it printed, on stderr too."""
    done = subprocess.run([*map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          timeout=timeout_s, check=False, stdin=subprocess.DEVNULL)  # fmt: skip
    assert done.returncode == code, f"{arguments}: exit {done.returncode}\n{done.stdout}"
    return done.stdout


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# fsx and fio


@pytest.mark.drill
@pytest.mark.parametrize("state", STATES)
def test_every_way_to_read_that_fsx_knows_gives_the_published_bytes(shown: Shown, state: str) -> None:
    bring(shown.live / "fsx" / state, state)
    name = f"fsx/{state}/cache.vdb"
    readers = [
        subprocess.Popen([sys.executable, reader.__file__, shown.live / name, shown.source / name, f"{seed}",
                          str(drilled(400, 20_000))], stdout=subprocess.PIPE, cwd="/")
        for seed in range(2)
    ]  # fmt: skip
    for process in readers:
        said, _ = process.communicate(timeout=drilled(TIMEOUT_S, 3600))
        assert process.returncode == 0
        report = json.loads(said)
        assert report["faults"] == []
        assert len(report["done"]) == 16


def write_with_fio(folder: Path) -> None:
    """A file for each state, engine and pattern, of 4 KiB blocks that know their place and their checksum."""
    folder.mkdir(parents=True)
    jobs = [
        f"--name={state}.{engine}.{pattern} --filename={folder}/{state}/{engine}.{pattern} --randseed={seed}"
        for seed, (state, engine, pattern) in enumerate(
            (state, engine, pattern) for state in STATES for engine in FIO_ENGINES for pattern in FIO_PATTERNS
        )
    ]
    for state in STATES:
        (folder / state).mkdir()
    common = ["--rw=write", "--bs=4k", f"--size={FIO_BYTES}", "--verify=crc32c", "--do_verify=0",
              "--verify_state_save=0", "--thread"]  # fmt: skip
    run("fio", *common, *(word for job in jobs for word in job.split()))


def verify_with_fio(folder: Path, code: int = 0) -> str:
    """Read all blocks of a folder's files, each with its engine and pattern, all at once."""
    jobs: list[str] = []
    for engine, options in FIO_ENGINES.items():
        for pattern, block in FIO_PATTERNS.items():
            jobs += [f"--name={engine}.{pattern}", f"--filename={folder}/{engine}.{pattern}", f"--rw={pattern}",
                     f"--ioengine={engine}", f"--bs={block}", f"--size={FIO_BYTES}", *options]  # fmt: skip
    return run("fio", "--readonly", "--thread", "--verify=crc32c", "--verify_interval=4096", "--verify_fatal=1",
               "--verify_state_save=0", *jobs, code=code)  # fmt: skip


@pytest.mark.parametrize("state", STATES)
def test_fio_verifies_what_it_wrote(shown: Shown, state: str) -> None:
    bring(shown.live / "fio" / state, state)
    said = verify_with_fio(shown.live / "fio" / state)
    assert said.count("err= 0") == len(FIO_ENGINES) * len(FIO_PATTERNS)


def test_fio_would_notice_a_wrong_byte(source: Path, tmp_path: Path) -> None:
    """The test of the test above, on a plain folder."""
    folder = tmp_path / "fio"
    shutil.copytree(source / "fio/complete", folder)
    verify_with_fio(folder)
    with (folder / "mmap.randread").open("r+b") as file:
        file.seek(FIO_BYTES // 2 + 100)
        file.write(b"wrong")
    assert "verify" in verify_with_fio(folder, code=1)


# Databases

DATABASES = ["ro.db", "immutable.db", "plain.db", "cli.db", "wal.db"]
ROWS = 3000


def make_database(path: Path, seed: str) -> None:
    dice = random.Random(seed)
    database = sqlite3.connect(path)
    if path.name == "wal.db":
        database.execute("PRAGMA journal_mode = wal")
    database.execute("CREATE TABLE takes (number INTEGER PRIMARY KEY, name TEXT, data BLOB)")
    database.execute("CREATE INDEX by_name ON takes (name)")
    database.executemany(
        "INSERT INTO takes VALUES (?, ?, ?)", ((n, dice.randbytes(8).hex(), dice.randbytes(300)) for n in range(ROWS))
    )
    database.commit()
    database.close()


QUERY = "SELECT count(*), sum(length(data)), min(name), max(name) FROM takes"


@pytest.mark.parametrize("state", STATES)
def test_sqlite_opens_a_published_database(shown: Shown, state: str) -> None:
    bring(shown.live / "sqlite" / state, state)
    for name, options in (("ro.db", "?mode=ro"), ("immutable.db", "?immutable=1"), ("plain.db", ""),
                          ("wal.db", "?immutable=1")):  # fmt: skip
        path = shown.live / "sqlite" / state / name
        reference = sqlite3.connect(f"file:{shown.source}/sqlite/{state}/{name}?immutable=1", uri=True)
        expected = reference.execute(QUERY).fetchone()
        reference.close()
        one, two = (sqlite3.connect(f"file:{path}{options}", uri=True, isolation_level=None) for _ in range(2))
        two.execute(f"PRAGMA mmap_size = {1 << 30}")
        for database in (one, two):
            database.execute("BEGIN")  # holds a shared lock, where there are locks
            assert database.execute(QUERY).fetchone() == expected
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            middle = database.execute("SELECT name FROM takes WHERE number = ?", (ROWS // 2,)).fetchone()
            assert database.execute("SELECT number FROM takes WHERE name = ?", middle).fetchone() == (ROWS // 2,)
        with pytest.raises(sqlite3.OperationalError, match=r"readonly|read-only"):
            two.execute("DELETE FROM takes")
        one.close()
        two.close()
    path = shown.live / "sqlite" / state / "cli.db"
    expected = run("sqlite3", shown.source / "sqlite" / state / "cli.db", QUERY)
    assert run("sqlite3", path, QUERY) == run("sqlite3", "-readonly", path, QUERY) == expected


# Copies


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("tool", COPYING)
def test_a_copy_has_every_byte(shown: Shown, tmp_path: Path, tool: str, state: str) -> None:
    mounted, expected = shown.live / tool / state, contents(shown.source / tool / state)
    copy = tmp_path / "copy"
    bring(mounted, state)
    if tool == "cp-reflink":
        run("cp", "-a", "--reflink=auto", mounted, copy)
    elif tool == "cp-sparse":
        run("cp", "-a", "--sparse=always", mounted, copy)
        holes = (copy / "sub/holes.vdb").stat()
        assert holes.st_blocks * 512 < holes.st_size - 1_000_000
    elif tool == "rsync":
        copy.mkdir()
        run("rsync", "-a", "--checksum", f"{mounted}/", f"{copy}/")
        assert run("rsync", "-a", "--checksum", "--itemize-changes", f"{mounted}/", f"{copy}/") == ""
    elif tool == "tar":
        run("tar", "-C", mounted, "--format=posix", "-cf", tmp_path / "tar", ".")
        assert "differ" not in run("tar", "-C", mounted, "-df", tmp_path / "tar")
        copy.mkdir()
        run("tar", "-C", copy, "-xf", tmp_path / "tar")
    else:
        for name in expected:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            COPY[tool](mounted / name, copy / name)
    assert contents(copy) == expected
    if tool not in COPY:
        for name in expected:
            one, other = (mounted / name).stat(), (copy / name).stat()
            assert (one.st_mode, one.st_size) == (other.st_mode, other.st_size)
            assert other.st_mtime_ns == one.st_mtime_ns


def by_sendfile(source: Path, target: Path) -> None:
    """A part by sendfile, and the rest spliced through a pipe."""
    with source.open("rb", buffering=0) as one, target.open("wb", buffering=0) as other:
        size = os.fstat(one.fileno()).st_size
        at = 0
        while at < size // 2 and (sent := os.sendfile(other.fileno(), one.fileno(), at, size // 2 - at)):
            at += sent
        one.seek(at)
        reading, writing = os.pipe()
        while moved := os.splice(one.fileno(), writing, 50_000):
            while moved:
                moved -= os.splice(reading, other.fileno(), moved)
        os.close(reading)
        os.close(writing)


def by_copy_file_range(source: Path, target: Path) -> None:
    """Where the kernel does not copy between file systems, programs copy by reading."""
    with source.open("rb", buffering=0) as one, target.open("wb", buffering=0) as other:
        with suppress(OSError):
            while os.copy_file_range(one.fileno(), other.fileno(), 1 << 20):
                pass
        shutil.copyfileobj(one, other)


COPY = {"sendfile": by_sendfile, "copy-file-range": by_copy_file_range}


# Names that move on


def publish_texts(shown: Shown, folder: str, texts: dict[str, str]) -> None:
    """Publish the next version of files, and wait until they are served."""
    write_tree(shown.user.folder, {name: text.encode() for name, text in texts.items()})
    sync(shown, "publish", *(shown.user.folder / name for name in texts), f"apollo:{folder}")


def sync(shown: Shown, *command: str | Path) -> None:
    """Run a command that makes a revision, and wait until it is served."""
    revision = shown.user.json(*command)["revision"]
    shown.user.run("sync", "apollo", "--at-least", str(revision))


def test_tail_follows_a_descriptor_or_a_name(shown: Shown, tmp_path: Path) -> None:
    publish_texts(shown, "scripts", {"render.log": "frame 1001\n"})
    path = shown.mount.path / "apollo/scripts/render.log"
    tails = {}
    for follow in ("descriptor", "name"):
        with (tmp_path / follow).open("wb") as out:
            tails[follow] = subprocess.Popen(["tail", f"--follow={follow}", "--sleep-interval=0.1", path], stdout=out,
                                             stderr=subprocess.STDOUT, cwd="/")  # fmt: skip
    try:
        for follow in tails:
            wait_until(lambda follow=follow: (tmp_path / follow).read_text() == "frame 1001\n", follow)  # type: ignore[misc]
        publish_texts(shown, "scripts", {"render.log": "all of it again, and longer\n"})
        wait_until(lambda: "all of it again, and longer\n" in (tmp_path / "name").read_text(), "tail to follow")
        sync(shown, "rm", "apollo:scripts/render.log")
        wait_until(lambda: "No such file" in (tmp_path / "name").read_text(), "tail to see that the name is gone")
        assert (tmp_path / "descriptor").read_text() == "frame 1001\n"
        assert tails["descriptor"].poll() is None
    finally:
        for process in tails.values():
            process.kill()
            process.wait(TIMEOUT_S)


MAPPED = """
import mmap, sys
maps = []
with open(sys.argv[1], "rb") as file:
    maps = [mmap.mmap(file.fileno(), 0, kind, mmap.PROT_READ) for kind in (mmap.MAP_SHARED, mmap.MAP_PRIVATE)]
print("mapped", flush=True)
for line in sys.stdin:
    for one in maps:
        one.madvise({"need": mmap.MADV_WILLNEED, "drop": mmap.MADV_DONTNEED}[line.strip()])
    print(*sorted({bytes(one[:20]).decode() + "…" + bytes(one[-20:]).decode() for one in maps}), flush=True)
"""


class Mapper:
    """A process that has mapped a file in two ways and closed it."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", MAPPED, path], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, cwd="/")  # fmt: skip
        assert self._line() == "mapped"

    def ask(self, advice: str) -> str:
        """The beginning and the end of the mappings, after madvise."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{advice}\n")
        self.process.stdin.flush()
        return self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def end(self) -> int:
        self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode


def test_mappings_live_on_when_their_file_is_closed_and_its_name_moves_on(shown: Shown) -> None:
    folder = shown.mount.path / "apollo/mapped"
    old = {
        f"mapped.{state}": f"the first version of {state}" + random_bytes(400_000, len(state)).hex() + "its end " * 3
        for state in ("uncached", "complete")
    }
    publish_texts(shown, "mapped", old)
    (folder / "mapped.complete").read_bytes()
    wait_until(lambda: cached(folder / "mapped.complete") == 100, "the file to be cached")
    expected = [f"{text[:20]}…{text[-20:]}" for text in old.values()]
    mappers = [Mapper(folder / name) for name in old]
    try:
        publish_texts(shown, "mapped", dict.fromkeys(old, "the second version, which is short"))
        assert {(folder / name).read_text() for name in old} == {"the second version, which is short"}
        for advice in ("need", "drop", "drop"):
            assert [mapper.ask(advice) for mapper in mappers] == expected
        sync(shown, "rm", "apollo:mapped")
        assert not folder.exists()
        for advice in ("drop", "need"):
            assert [mapper.ask(advice) for mapper in mappers] == expected
    finally:
        assert [mapper.end() for mapper in mappers] == [0, 0]


# Pictures and folders


def test_openimageio_reads_pictures_and_textures(shown: Shown, tmp_path: Path) -> None:
    frames = sorted(path.name for path in (shown.source / "oiio/exr").iterdir())
    for _ in ("uncached", "complete"):
        said = [
            re.sub(r"\S*/", "", run("iinfo", "--hash", *(folder / "oiio/exr" / name for name in frames)))
            for folder in (shown.live, shown.source)
        ]
        assert said[0].count("SHA-1") == len(frames)
        assert said[0] == said[1]
    resized = [
        re.findall(
            r"Stats .*",
            run("oiiotool", "--autotile", "64", folder / "oiio/beauty.tx", "--resize", "100x60", "--printstats"),
        )
        for folder in (shown.live, shown.source)
    ]
    assert resized[0] == resized[1] != []
    assert "PASS" in run("idiff", shown.live / "oiio/latest.exr", shown.source / "oiio/exr" / frames[0])


def test_find_du_and_ls_see_the_tree_that_was_published(shown: Shown) -> None:
    for files in ("-type f -printf %P|%s|%m|%T@\\n", "-type l -printf %P|%l\\n", "-type d -printf %P|%m\\n"):
        seen = [sorted(run("find", folder, *files.split()).splitlines()) for folder in (shown.live, shown.source)]
        assert seen[0] == seen[1]
        assert len(seen[0]) > 0
    sizes = [path.lstat().st_size for path in shown.source.rglob("*") if path.is_file() and not path.is_symlink()]
    links = len("exr/sh020_beauty.1001.exr")
    assert int(run("du", "--summarize", "--bytes", shown.live).split()[0]) == sum(sizes) + links
    blocks = sum(-(-size // 512) for size in sizes)
    assert int(run("du", "--summarize", "--block-size=512", shown.live).split()[0]) - blocks in (0, 1)
    listed = [re.sub(r"\S*/source|\S*/v001", "", run("ls", "-aR", folder)) for folder in (shown.live, shown.source)]
    assert listed[0] == listed[1]
    long = run("ls", "-laR", shown.live)
    assert "?" not in long
    assert len(long.splitlines()) >= len(listed[0].splitlines())


# The way of reading


def reads_of(mount: Mount) -> float:
    """How many reads of the kernel the daemon has answered."""
    with urllib.request.urlopen(mount.status()["metrics"], timeout=10) as page:
        lines = page.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("damfs_reads_total"))


def test_a_complete_file_is_read_by_the_kernel_alone(shown: Shown, binding: str) -> None:
    """What the states of the tests here are for: with the kernel binding they are three ways of reading."""
    if binding != "kernel":
        pytest.skip("pyfuse3 answers every read itself")
    path = shown.live / "fio/complete/psync.read"
    path.read_bytes()
    wait_until(lambda: cached(path) == 100, "the file to be cached")
    before = reads_of(shown.mount)
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert len(file.readall()) == FIO_BYTES
    assert reads_of(shown.mount) == before
