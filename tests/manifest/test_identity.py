"""What makes a store a library, and a name a show."""

from __future__ import annotations

import pytest

from manifest import canonical, layout
from manifest.errors import Conflict, FormatError, NotFound, Unavailable
from manifest.identity import Identity, add_show, create_library, list_shows, read_identity, show_exists
from manifest.library import Library


def test_a_library_is_made_once_and_read_back(new_place: Library) -> None:
    identity = create_library(new_place)
    assert len(bytes.fromhex(identity.id)) == 16
    assert read_identity(new_place) == identity
    with pytest.raises(Conflict, match=f"there is a library at {new_place.url} already: {identity.id}"):
        create_library(new_place)
    assert read_identity(new_place) == identity
    assert [key for key, _ in new_place.list(layout.PROBE)] == []


def test_two_libraries_have_two_ids(file_library: Library, s3_library: Library) -> None:
    assert read_identity(file_library) != read_identity(s3_library)


def test_what_is_no_library_says_what_to_do(new_place: Library) -> None:
    new_place.make_root()
    with pytest.raises(NotFound, match=r"not a library: no damfs\.json at .*run `damfs init"):
        read_identity(new_place)


def test_a_folder_that_is_not_there_may_be_a_library_elsewhere() -> None:
    with pytest.raises(Unavailable, match="is its file system mounted"):
        read_identity(Library.open("file:///nonexistent/library"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not canonical JSON"),
        (b"[]", r"expected damfs\.library/1"),
        (b"{}", r"expected damfs\.library/1, got 'None'"),
        (b'{"_type":"damfs.library/2","id":"x"}', "made by a newer damfs: upgrade"),
        (b'{"_type":"other/1"}', r"got 'other/1'$"),
        (b'{"_type":"damfs.library/1","id":"%s"}' % (b"0" * 32), "expected the fields"),
        (b'{"_type":"damfs.library/1","id":"%s","more":1,"rules":{}}' % (b"0" * 32), "expected the fields"),
        (b'{"_type":"damfs.library/1","id":"%s","rules":{}}' % (b"A" * 32), "32 hex digits"),
        (b'{"_type":"damfs.library/1","id":7,"rules":{}}', "32 hex digits"),
        (b'{"_type":"damfs.library/1", "id":"%s","rules":{}}' % (b"0" * 32), "not canonical"),
        (b"x" * 70_000, "expected at most 65536"),
    ],
)
def test_a_malformed_identity_is_refused(file_library: Library, data: bytes, message: str) -> None:
    file_library.put(layout.IDENTITY, data)
    with pytest.raises(FormatError, match=message):
        read_identity(file_library)


def test_rules_that_are_not_known_here_are_no_reason_to_refuse(file_library: Library) -> None:
    value = {"_type": "damfs.library/1", "id": "0" * 32, "rules": {"chunks": {"future": 1}}}
    file_library.put(layout.IDENTITY, canonical.encode(value))
    assert read_identity(file_library) == Identity("0" * 32)


def test_shows_are_added_once_and_listed(library: Library) -> None:
    assert list_shows(library) == []
    assert not show_exists(library, "apollo")
    for show in ("gemini", "apollo", "apollo-2"):
        add_show(library, show)
    assert list_shows(library) == ["apollo", "apollo-2", "gemini"]
    assert show_exists(library, "apollo")
    assert not show_exists(library, "apoll")
    with pytest.raises(Conflict, match="has a show apollo already"):
        add_show(library, "apollo")


@pytest.mark.parametrize("show", ["", "Apollo", "a/b", "..", "a@1", "x" * 65, "-a"])
def test_a_name_that_no_show_can_have_is_refused(file_library: Library, show: str) -> None:
    with pytest.raises(FormatError, match="is no show name"):
        add_show(file_library, show)
    with pytest.raises(FormatError, match="is no show name"):
        show_exists(file_library, show)


def test_folders_that_are_no_shows_are_not_listed(library: Library) -> None:
    add_show(library, "apollo")
    library.put("shows/Not A Show/x", b"")
    assert list_shows(library) == ["apollo"]


def test_a_show_of_a_newer_format_is_refused(file_library: Library) -> None:
    file_library.put(layout.show_key("apollo"), canonical.encode({"_type": "damfs.show/2", "show": "apollo"}))
    with pytest.raises(FormatError, match="newer damfs"):
        show_exists(file_library, "apollo")
    file_library.put(layout.show_key("apollo"), canonical.encode({"_type": "damfs.show/1", "show": "gemini"}))
    with pytest.raises(FormatError, match="of another show"):
        show_exists(file_library, "apollo")
