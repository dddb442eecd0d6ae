"""Real media, made by ffmpeg and kept between runs: a DPX plate, an EXR sequence, a ProRes movie, a script.

Everything is made once into a folder and renamed into place when whole, so an interrupted run leaves nothing
that looks finished.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

FFMPEG_TIMEOUT_S = 240
SCRIPT = """set cut_paste_input [stack 0]
version 15.1 v3
Read {{
 file plate/{version}/dpx/sh020_plate.####.dpx
 first 1001
 last {last}
 name Read1
}}
Grade {{
 white {white}
 name Grade1
}}
"""


@dataclass(frozen=True)
class Format:
    """How large the media are: the demo's are full size, most tests are content with small ones."""

    width: int
    height: int
    dpx_frames: int
    exr_frames: int
    movie_frames: int


DEMO = Format(2048, 1080, 48, 24, 48)
SMALL = Format(320, 180, 12, 6, 24)


def ffmpeg(*arguments: str) -> None:
    """Run ffmpeg quietly. Raises CalledProcessError (with its words) or TimeoutExpired."""
    subprocess.run(
        ["ffmpeg", "-nostdin", "-v", "error", "-y", *arguments], check=True, timeout=FFMPEG_TIMEOUT_S, text=True
    )


def make_version_1(folder: Path, size: Format) -> Path:
    """The plate as it came from the scanner, in ``folder``/v001. Returns that folder."""
    target = folder / "v001"
    if target.exists():
        return target
    work = _fresh(folder / "v001.part")
    source = f"testsrc2=size={size.width}x{size.height}:rate=24"
    noise = "noise=alls=12:allf=t"
    (work / "dpx").mkdir()
    ffmpeg("-f", "lavfi", "-i", source, "-vf", noise, "-frames:v", str(size.dpx_frames),
           "-pix_fmt", "gbrp10be", "-start_number", "1001", str(work / "dpx/sh020_plate.%04d.dpx"))  # fmt: skip
    (work / "exr").mkdir()
    ffmpeg("-f", "lavfi", "-i", source, "-vf", noise, "-frames:v", str(size.exr_frames), "-pix_fmt", "gbrpf32le",
           "-format", "half", "-compression", "zip16", "-start_number", "1001",
           str(work / "exr/sh020_beauty.%04d.exr"))  # fmt: skip
    ffmpeg("-f", "lavfi", "-i", source, "-vf", noise, "-frames:v", str(size.movie_frames), "-c:v", "prores_ks",
           "-profile:v", "4444", "-pix_fmt", "yuva444p10le", str(work / "sh020_plate.mov"))  # fmt: skip
    (work / "sh020_comp.nk").write_text(SCRIPT.format(version="v001", last=1000 + size.dpx_frames, white=1.0))
    work.rename(target)
    return target


def make_version_2(folder: Path, size: Format) -> Path:
    """``folder``/v002: the second half of the DPX frames regraded, the rest as in v001. Returns that folder."""
    first = make_version_1(folder, size)
    target = folder / "v002"
    if target.exists():
        return target
    work = folder / "v002.part"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(first, work)
    start = 1001 + size.dpx_frames // 2
    ffmpeg("-start_number", str(start), "-i", str(first / "dpx/sh020_plate.%04d.dpx"), "-vf", "lutrgb=r=val*0.8",
           "-pix_fmt", "gbrp10be", "-start_number", str(start), str(work / "dpx/sh020_plate.%04d.dpx"))  # fmt: skip
    (work / "sh020_comp.nk").write_text(SCRIPT.format(version="v002", last=1000 + size.dpx_frames, white=0.8))
    work.rename(target)
    return target


def frame_checksums(path: Path | str, *, start: int | None = None) -> list[str]:
    """The checksum of every decoded frame (ffmpeg's framemd5), of a movie or a ``%04d`` sequence."""
    number = ["-start_number", str(start)] if start is not None else []
    done = subprocess.run(
        ["ffmpeg", "-nostdin", "-v", "error", *number, "-i", str(path), "-map", "0:v", "-f", "framemd5", "-"],
        check=True, timeout=FFMPEG_TIMEOUT_S, capture_output=True, text=True)  # fmt: skip
    return [line.split(",")[-1].strip() for line in done.stdout.splitlines() if line and not line.startswith("#")]


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
