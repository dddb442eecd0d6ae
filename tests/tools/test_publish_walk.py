"""What is published of a source, and what is refused by name before anything is uploaded."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from manifest.errors import NotFound, UsageError
from tools.publish.walk import SourceFile, SourceFolder, SourceLink, walk


def tree(folder: Path, **files: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def test_a_folders_contents_land_under_the_path_and_a_file_by_its_name(tmp_path: Path) -> None:
    tree(tmp_path / "plate", a=b"1")
    tree(tmp_path / "plate/sub", b=b"22")
    tree(tmp_path, note=b"333")
    found = walk([tmp_path / "plate", tmp_path / "note"], "seq/v001")
    assert [(item.path, type(item)) for item in found] == [
        ("seq/v001/a", SourceFile), ("seq/v001/note", SourceFile), ("seq/v001/sub", SourceFolder),
        ("seq/v001/sub/b", SourceFile),
    ]  # fmt: skip
    assert [item.size for item in found if isinstance(item, SourceFile)] == [1, 3, 2]


def test_everything_lands_in_the_root_of_a_show_without_a_path(tmp_path: Path) -> None:
    assert [item.path for item in walk([tree(tmp_path / "a", x=b"")], "")] == ["x"]


def test_a_link_is_published_as_a_link_whether_it_leads_anywhere_or_not(tmp_path: Path) -> None:
    tree(tmp_path / "a", x=b"")
    (tmp_path / "a/good").symlink_to("x")
    (tmp_path / "a/bad").symlink_to("../../nowhere")
    (tmp_path / "a/folder").symlink_to("/")
    links = {item.path: item.target for item in walk([tmp_path / "a"], "p") if isinstance(item, SourceLink)}
    assert links == {"p/good": "x", "p/bad": "../../nowhere", "p/folder": "/"}


def test_an_argument_that_is_a_link_to_a_folder_stands_for_the_folder(tmp_path: Path) -> None:
    tree(tmp_path / "a", x=b"")
    (tmp_path / "current").symlink_to("a")
    assert [item.path for item in walk([tmp_path / "current"], "p")] == ["p/x"]


def test_an_argument_that_is_a_link_to_a_file_stands_for_the_file(tmp_path: Path) -> None:
    tree(tmp_path / "a", x=b"12")
    (tmp_path / "once").symlink_to("a/x")
    (tmp_path / "twice").symlink_to("once")
    assert walk([tmp_path / "twice"], "p") == [SourceFile("p/twice", str(tmp_path / "a/x"), 2)]


def test_an_argument_that_is_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "lost").symlink_to("nowhere")
    with pytest.raises(NotFound, match=r"lost: it is a link that leads nowhere"):
        walk([tmp_path / "lost"], "p")


@pytest.mark.parametrize("device", ["/dev/null", "/dev/stdin"])
def test_a_device_or_a_pipe_on_the_command_line_is_refused(device: str) -> None:
    code = f"from pathlib import Path\nfrom tools.publish.walk import walk\nwalk([Path({device!r})], 'p')"
    done = subprocess.run(
        [sys.executable, "-c", code], input="piped", capture_output=True, text=True, timeout=60, check=False
    )
    kind = "a character device" if device == "/dev/null" else "a named pipe"
    assert f"is {kind}, and only files, folders and links can be published" in done.stderr


def test_an_empty_folder_inside_a_source_is_published(tmp_path: Path) -> None:
    (tmp_path / "a/empty").mkdir(parents=True)
    assert walk([tmp_path / "a"], "p") == [SourceFolder("p/empty", str(tmp_path / "a/empty"), 0o755, empty=True)]


def test_a_source_that_holds_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no file"):
        walk([tmp_path], "p")


def test_a_source_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nosuch"):
        walk([tmp_path / "nosuch"], "p")


def test_two_sources_for_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"both are to become p/x"):
        walk([tree(tmp_path / "a", x=b"1"), tree(tmp_path / "b", x=b"2")], "p")
    (tmp_path / "c/x").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"both are to become p/x"):
        walk([tmp_path / "a", tmp_path / "c"], "p")


def test_two_sources_may_share_a_folder(tmp_path: Path) -> None:
    tree(tmp_path / "a/sub", x=b"1")
    tree(tmp_path / "b/sub", y=b"2")
    assert [item.path for item in walk([tmp_path / "a", tmp_path / "b"], "p")] == ["p/sub", "p/sub/x", "p/sub/y"]


def test_a_pipe_and_a_socket_are_refused_by_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "queue")
    with pytest.raises(UsageError, match="queue is a named pipe"):
        walk([tmp_path], "p")
    (tmp_path / "queue").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "door"))
        with pytest.raises(UsageError, match="door is a socket"):
            walk([tmp_path], "p")


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")).write_bytes(b"")
    with pytest.raises(UsageError, match=r"caf\\xe9: .*not valid UTF-8"):
        walk([tmp_path], "p")


def test_a_path_that_becomes_too_long_is_refused(tmp_path: Path) -> None:
    tree(tmp_path / "a", x=b"")
    with pytest.raises(UsageError, match="4097 bytes, at most 4095"):
        walk([tmp_path / "a"], "/".join(["d" * 255] * 16))


def test_two_spellings_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "caf\u00e9").write_bytes(b"")
    (tmp_path / "cafe\u0301").write_bytes(b"")
    with pytest.raises(UsageError, match="NFC"):
        walk([tmp_path], "p")


def test_a_letter_that_becomes_an_ascii_one_is_a_twin_too(tmp_path: Path) -> None:
    (tmp_path / "K").write_bytes(b"")
    (tmp_path / "\u212a").write_bytes(b"")
    with pytest.raises(UsageError, match="NFC"):
        walk([tmp_path], "p")


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_an_unreadable_file_and_an_unlistable_folder_are_named(tmp_path: Path) -> None:
    folder = tree(tmp_path / "a", secret=b"1", open=b"2")
    (folder / "secret").chmod(0)
    (folder / "closed").mkdir(mode=0o700)
    script = (
        "import os\nfrom pathlib import Path\nfrom tools.publish.walk import walk\n"
        f"os.chdir({str(folder)!r})\nos.setresuid(65534, 65534, 65534)\n"
        "try: walk([Path('.')], 'p')\nexcept Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert "secret cannot be read by this user" in done.stdout
    assert "closed cannot be listed: Permission denied" in done.stdout
