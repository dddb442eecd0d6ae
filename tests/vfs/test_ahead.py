"""What is fetched before it is asked for, on a real mount whose source says what it was asked for.

One mount for each binding; each test has files of its own, whose bytes nothing else has. They are cut as a publish cuts
them: the first 64 KiB apart.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from manifest import layout
from manifest.digest import Digest
from manifest.post import File
from manifest.recipe import Recipe
from tests import media
from tests.harness import wait_until
from tests.vfs.mounted import Mounted, mounted
from tests.vfs.publisher import T0_NS
from vfs.binding import kernel_why_not

KIB = 1024
MIB = 1024 * KIB
HEADER_BYTES = 64 * KIB
FRAME_BYTES = 2 * MIB
PACE_S = 0.04
LATENCY_S = 0.02
_numbers = itertools.count(1)


def noise(size_bytes: int) -> bytes:
    """Bytes that no other call returns."""
    return random.Random(next(_numbers)).randbytes(size_bytes)


class Shot:
    """A folder of files that nobody else reads, and what the source was asked for of them."""

    def __init__(self, mount: Mounted, files: Mapping[str, bytes], chunk_bytes: int = MIB) -> None:
        self.mount = mount
        self.files = files
        name = f"shot{next(_numbers)}"
        self.folder = mount.path / "apollo" / name
        self._chunks: dict[str, list[tuple[str, int]]] = {}
        self._stored: set[str] = set()
        mount.publish({f"{name}/{file}": self._post(file, data, chunk_bytes) for file, data in files.items()})
        self._stats = self._said()

    def _post(self, name: str, data: bytes, chunk_bytes: int) -> File:
        head = [0, HEADER_BYTES] if len(data) > MIB else [0]
        cuts = [*head, *range(head[-1] + chunk_bytes, len(data), chunk_bytes), len(data)]
        chunks = [data[start:stop] for start, stop in itertools.pairwise(cuts)]
        digests = [Digest.of(chunk) for chunk in chunks]
        for digest, chunk in zip(digests, chunks, strict=True):
            if digest.hex() not in self._stored:
                self.mount.library.put(layout.chunk_key("apollo", digest), chunk)
                self._stored.add(digest.hex())
            self._chunks.setdefault(digest.hex(), []).append((name, digests.index(digest)))
        recipe = Recipe.of((digest, len(chunk)) for digest, chunk in zip(digests, chunks, strict=True))
        return File(0o644, len(data), T0_NS, Digest.of(data), recipe.content, recipe)

    def read(self, name: str) -> None:
        assert (self.folder / name).read_bytes() == self.files[name]

    def look(self, name: str) -> None:
        """Read a header, as hosts and browsers do."""
        descriptor = os.open(self.folder / name, os.O_RDONLY)
        try:
            assert os.pread(descriptor, 8, 0) == self.files[name][:8]
            assert os.pread(descriptor, 4096, 8) == self.files[name][8:4104]
        finally:
            os.close(descriptor)

    def asked(self) -> Counter[tuple[str, int]]:
        """How often the source was asked for each chunk of each file."""
        digests = self.mount.command(do="asked")["digests"]
        return Counter(place for digest in digests for place in self._chunks.get(digest, []))

    def names_asked(self) -> set[str]:
        return {name for name, _ in self.asked()}

    def stat(self, name: str) -> int:
        """What one of the counters has counted since the files were published."""
        return int(self._said()[name] - self._stats[name])

    def _said(self) -> dict[str, Any]:
        return {name: value for name, value in self.mount.command(do="asked").items() if name != "digests"}


def frame(number: int) -> str:
    return f"plate.{number:04d}.exr"


def still(number: int) -> str:
    """A name that is of no sequence."""
    return f"still.{chr(ord('a') + number - 1001)}.exr"


class Reel(Shot):
    """A sequence of frames; some of them are stills too, with the same bytes under another name."""

    def __init__(self, mount: Mounted, numbers: Iterable[int], stills_of: Iterable[int] = ()) -> None:
        self.numbers = list(numbers)
        frames = {n: noise(FRAME_BYTES) for n in self.numbers}
        stills = {still(n): frames[n] for n in stills_of}
        super().__init__(mount, {frame(n): data for n, data in frames.items()} | stills)

    def play(self, numbers: Iterable[int], pace_s: float = PACE_S) -> None:
        """Read whole frames one after the other, at this pace or slower."""
        for number in numbers:
            began = time.monotonic()
            self.read(frame(number))
            time.sleep(max(0.0, began + pace_s - time.monotonic()))

    def frames_asked(self) -> set[int]:
        """The frames of which more than the header was asked for."""
        return {n for n in self.numbers if any(name == frame(n) and i for name, i in self.asked())}

    def wait_for(self, *numbers: int) -> None:
        wait_until(
            lambda: set(numbers) <= self.frames_asked(), f"frames {numbers} to be asked for, before they are read"
        )

    def wait_for_rest(self) -> None:
        """Until nobody is followed: the player has stopped."""
        wait_until(lambda: self._said()["players"] == 0, "the player to be given up")


@pytest.fixture(scope="module", params=["pyfuse3", "kernel"])
def slow(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """A mount whose source takes its time, with either binding."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no access to /dev/fuse")
    if request.param == "kernel" and (why_not := kernel_why_not()):
        pytest.skip(f"no kernel binding: {why_not}")
    flags = [request.param, f"latency={LATENCY_S}", "deadline=20"]
    with mounted(tmp_path_factory.mktemp("mount"), flags=flags, deadline_s=240) as made:
        yield made


# Sequences


@pytest.mark.parametrize("step", [1, -1, 2, -3])
def test_the_next_frames_of_a_player_are_fetched_in_its_direction_and_steps(slow: Mounted, step: int) -> None:
    reel = Reel(slow, range(1001, 1050, abs(step)) if step > 0 else range(1050, 1001, step))
    first = reel.numbers[0]
    reel.play(first + step * i for i in range(5))
    reel.wait_for(first + 5 * step, first + 6 * step)
    reel.wait_for_rest()
    assert reel.frames_asked() == set(reel.numbers[: len(reel.frames_asked())])
    assert len(reel.frames_asked()) <= 5 + 5


def test_one_frame_or_two_that_are_far_apart_are_no_playback(slow: Mounted) -> None:
    reel = Reel(slow, range(1001, 1041))
    reel.play([1005, 1030])
    reel.wait_for_rest()
    assert reel.frames_asked() == {1005, 1030}


def test_a_header_scan_fetches_headers_and_no_bodies(slow: Mounted) -> None:
    body = noise(FRAME_BYTES - HEADER_BYTES)
    scan = Shot(slow, {frame(n): noise(HEADER_BYTES) + body for n in range(1, 201)})
    for name in scan.files:
        scan.look(name)
    assert scan.asked() == {(name, 0): 1 for name in scan.files}


def test_opens_in_any_order_that_read_nothing_fetch_nothing(slow: Mounted) -> None:
    reel = Reel(slow, range(1001, 1021))
    numbers = [*reel.numbers, *reversed(reel.numbers), *random.Random(1).sample(reel.numbers, 20)]
    for number in numbers:
        (reel.folder / frame(number)).open("rb", buffering=0).close()
    reel.wait_for_rest()
    assert not reel.asked()


def test_a_player_that_jumps_leaves_little_behind(slow: Mounted) -> None:
    reel = Reel(slow, range(1001, 1061))
    reel.play(range(1001, 1013))
    reel.play(range(1041, 1045))
    reel.wait_for(1045, 1046)
    reel.wait_for_rest()
    in_vain = {n for n in reel.frames_asked() if 1013 <= n <= 1040}
    assert len(in_vain) <= 12, "more than were played"
    assert in_vain == set(range(1013, 1013 + len(in_vain)))


def test_nothing_behind_the_last_frame_is_asked_for_and_a_second_round_asks_for_nothing(slow: Mounted) -> None:
    reel = Reel(slow, range(1001, 1013))
    for _ in range(2):
        reel.play(reel.numbers, pace_s=0.01)
    reel.wait_for_rest()
    assert reel.asked() == {(frame(n), i): 1 for n in reel.numbers for i in range(3)}


def test_frames_that_are_missing_end_no_sequence(slow: Mounted) -> None:
    reel = Reel(slow, [*range(1001, 1006), *range(1011, 1016)])
    reel.play(range(1001, 1006))
    reel.wait_for(1011)


def test_a_player_of_cached_frames_is_followed_into_those_that_are_not(slow: Mounted) -> None:
    """Such frames are read past the daemon: it knows of their opens only."""
    cached = range(1001, 1013)
    reel = Reel(slow, range(1001, 1031), stills_of=cached)
    for n in cached:
        reel.read(still(n))
        path = reel.folder / frame(n)
        wait_until(lambda path=path: os.getxattr(path, "user.damfs.cached") == b"100", "it to be cached")  # type: ignore[misc]
    assert reel.frames_asked() == set(cached)
    reel.play(cached)
    reel.wait_for(1013, 1014)


def test_two_players_of_one_sequence_are_both_followed(slow: Mounted) -> None:
    reel = Reel(slow, range(1001, 1101))
    reel.play(n for pair in zip(range(1001, 1007), range(1080, 1074, -1), strict=True) for n in pair)
    reel.wait_for(1007, 1008, 1074, 1073)


def test_a_player_that_reads_the_beginning_of_each_frame_has_no_more_than_that_fetched(slow: Mounted) -> None:
    numbers = range(1001, 1021)
    shot = Shot(slow, {frame(n): noise(8 * MIB) for n in numbers})
    for n in list(numbers)[:8]:
        with (shot.folder / frame(n)).open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # else the kernel reads further
            for offset in range(0, 2 * MIB, 256 * KIB):
                assert os.pread(file.fileno(), 256 * KIB, offset) == shot.files[frame(n)][offset : offset + 256 * KIB]
        time.sleep(PACE_S)
    wait_until(lambda: frame(1009) in shot.names_asked(), "the next frame to be asked for")
    last = max(i for name, i in shot.asked() if name >= frame(1009))
    assert last <= 3


def test_tiles_of_textures_are_no_frames(slow: Mounted) -> None:
    udims = [f"diffuse.{n}.tx" for n in range(1001, 1009)]
    shot = Shot(slow, {name: noise(FRAME_BYTES) for name in udims})
    for name in udims[:5]:
        shot.read(name)
    assert shot.names_asked() == set(udims[:5])


def test_what_is_fetched_ahead_is_not_evicted_before_it_is_played(by_kernel: str, tmp_path: Path) -> None:
    flags = [by_kernel, f"latency={LATENCY_S}", "deadline=20", f"cache={36 * MIB}"]
    with mounted(tmp_path, flags=flags) as mount:
        reel = Reel(mount, range(1001, 1041))
        reel.play(reel.numbers)
        assert reel.asked() == {(frame(n), i): 1 for n in reel.numbers for i in range(3)}
        assert reel.stat("frame_bytes") > 10 * FRAME_BYTES
        assert mount.command(do="asked")["held_bytes"] <= 36 * MIB / 8


def test_real_images_are_played_from_what_was_fetched_ahead(slow: Mounted, tmp_path: Path) -> None:
    media.make_version_1(tmp_path, media.SMALL)
    local = tmp_path / "v001/exr"
    shot = Shot(slow, {path.name: path.read_bytes() for path in sorted(local.iterdir())})
    name = "sh020_beauty.%04d.exr"
    assert media.frame_checksums(shot.folder / name, start=1001) == media.frame_checksums(local / name, start=1001)
    assert set(shot.asked().values()) == {1}


# One file


def test_a_file_that_is_read_on_is_read_ahead_and_nothing_is_fetched_twice(slow: Mounted) -> None:
    shot = Shot(slow, {"scan.dpx": noise(24 * MIB)})
    with (shot.folder / "scan.dpx").open("rb", buffering=0) as file:
        for _ in range(12):
            file.read(256 * KIB)
        wait_until(lambda: ("scan.dpx", 6) in shot.asked(), "more to be asked for than is read")
        assert ("scan.dpx", 20) not in shot.asked()
    shot.read("scan.dpx")
    assert shot.asked() == {("scan.dpx", i): 1 for i in range(25)}
    assert shot.stat("file_bytes") > 0


def test_random_reads_fetch_the_chunks_that_they_need_and_no_others(slow: Mounted) -> None:
    data = noise(12 * MIB)
    shot = Shot(slow, {"wood.tx": data, "cloud.exr": data[::-1]}, chunk_bytes=256 * KIB)
    chance = random.Random(3)
    for name in shot.files:
        needed = set()
        descriptor = os.open(shot.folder / name, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            for _ in range(40):
                offset = chance.randrange(len(data) // 4096 - 3) * 4096
                assert os.pread(descriptor, 12 * KIB, offset) == shot.files[name][offset : offset + 12 * KIB]
                needed |= {_chunk_of(offset, 256 * KIB), _chunk_of(offset + 12 * KIB - 1, 256 * KIB)}
        finally:
            os.close(descriptor)
        assert {i for file, i in shot.asked() if file == name} == needed


def _chunk_of(offset: int, chunk_bytes: int) -> int:
    return 0 if offset < HEADER_BYTES else 1 + (offset - HEADER_BYTES) // chunk_bytes


def test_the_index_at_the_end_of_a_movie_is_fetched_with_its_first_bytes(slow: Mounted, tmp_path: Path) -> None:
    end, front = tmp_path / "end.mov", tmp_path / "front.mov"
    media.ffmpeg("-f", "lavfi", "-i", "testsrc2=size=640x360:rate=24", "-vf", "noise=alls=60:allf=t", "-frames:v", "8",
                 "-c:v", "rawvideo", "-pix_fmt", "rgb24", str(end))  # fmt: skip
    media.ffmpeg("-i", str(end), "-c", "copy", "-movflags", "+faststart", str(front))
    shot = Shot(slow, {path.name: path.read_bytes() for path in (end, front)})
    for name, data in shot.files.items():
        assert len(data) > 4 * MIB
        shot.look(name)
    last = _chunk_of(len(shot.files["end.mov"]) - 1, MIB)
    wait_until(lambda: ("end.mov", last) in shot.asked(), "the index to be asked for")
    assert shot.asked() == {("end.mov", 0): 1, ("end.mov", last): 1, ("front.mov", 0): 1}


def test_nothing_is_fetched_ahead_when_that_is_switched_off(by_kernel: str, tmp_path: Path) -> None:
    with mounted(tmp_path, flags=[by_kernel, "noahead"]) as mount:
        reel = Reel(mount, range(1001, 1011))
        reel.play(range(1001, 1007), pace_s=0.0)
        time.sleep(0.2)
        assert reel.frames_asked() == set(range(1001, 1007))
