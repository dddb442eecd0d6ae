"""The object store: what is there, what is absent, what cannot be reached, and that the three are never mixed up."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from manifest import layout
from manifest.errors import AccessDenied, ConfigurationError, Conflict, DamfsError, FormatError, NotFound, Unavailable
from manifest.library import Library
from manifest.library_folder import make_folders
from tests import stores

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = "shows/apollo/chunks/ab/abcd"


def folder_of(library: Library) -> Path:
    return Path(library.url.removeprefix("file://"))


# What every store does.


def test_what_was_put_is_read_back(library: Library) -> None:
    library.put(KEY, b"bytes")
    assert library.get(KEY) == b"bytes"
    assert library.size(KEY) == 5
    library.put(KEY, memoryview(b"--other--")[2:-2])
    assert library.get(KEY) == b"other"


def test_an_empty_object_is_there(library: Library) -> None:
    library.put(KEY, b"")
    assert library.get(KEY) == b""
    assert library.size(KEY) == 0


def test_a_buffer_is_a_read_only_view_of_the_bytes_received(library: Library) -> None:
    data = os.urandom(3_000_000)
    library.put(KEY, data)
    buffer = library.get_buffer(KEY)
    assert isinstance(buffer, memoryview)
    assert buffer.readonly
    assert buffer == data
    assert type(buffer.obj).__module__.startswith("obstore")


def test_what_is_not_there_is_not_found(library: Library) -> None:
    with pytest.raises(NotFound, match="there is no shows/apollo/chunks/ab/abcd in library"):
        library.get(KEY)
    assert library.size(KEY) is None
    with pytest.raises(NotFound):
        library.get_start(KEY, 10)


def test_a_create_of_what_is_there_is_a_conflict_and_changes_nothing(library: Library) -> None:
    library.create(KEY, b"first")
    with pytest.raises(Conflict, match="exists already"):
        library.create(KEY, b"second")
    assert library.get(KEY) == b"first"


def test_of_many_creators_one_wins(library: Library) -> None:
    start = threading.Barrier(16)

    def create(number: int) -> bool:
        start.wait(20)
        try:
            library.create(KEY, b"%d" % number)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(create, range(16)))
    assert won.count(True) == 1
    assert library.get(KEY) == b"%d" % won.index(True)


def test_an_object_larger_than_allowed_is_refused_before_it_is_read(library: Library) -> None:
    library.put(KEY, b"x" * 1000)
    assert len(library.get(KEY, bytes_max=1000)) == 1000
    with pytest.raises(FormatError, match="has 1000 bytes: expected at most 999"):
        library.get(KEY, bytes_max=999)
    assert library.get_start(KEY, 10) == b"x" * 10
    assert library.get_start(KEY, 5000) == b"x" * 1000


def test_a_listing_goes_over_many_pages_and_begins_behind_a_key(library: Library) -> None:
    keys = [layout.log_key("apollo", seq) for seq in range(1, 1203)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: library.put(key, b"12345"), keys))
    library.put("shows/apollo/show.json", b"")
    assert sorted(library.list("shows/apollo/log/")) == [(key, 5) for key in keys]
    assert sorted(library.list("shows/apollo/log/", after=keys[1199])) == [(keys[1200], 5), (keys[1201], 5)]
    assert list(library.list("shows/apollo/changes/")) == []


def test_a_prefix_is_a_whole_folder(library: Library) -> None:
    library.put("shows/apollo/show.json", b"")
    library.put("shows/apollo2/show.json", b"")
    assert [key for key, _ in library.list("shows/apollo/")] == ["shows/apollo/show.json"]
    assert library.folders("shows/") == ["apollo", "apollo2"]
    assert library.folders("shows/apollo/") == []


def test_one_library_serves_many_threads(library: Library) -> None:
    def work(number: int) -> bytes:
        key = f"shows/apollo/chunks/00/{number}"
        library.put(key, b"%d" % number)
        return library.get(key)

    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(work, range(200))) == [b"%d" % number for number in range(200)]


def test_delete_removes_and_does_not_mind_what_is_gone(library: Library) -> None:
    library.put(KEY, b"x")
    library.delete(KEY)
    library.delete(KEY)
    assert library.size(KEY) is None


# URLs and credentials.


@pytest.mark.parametrize(
    "url",
    [
        "", "dam", "/srv/dam", "ftp://host/dam", "file://", "file://srv/dam", "file://host/../x", "memory://x", "s3://",
        "s3://UPPER/x", "s3://a", "s3://bucket/../x", "s3://bucket//x", "s3://bucket/a b", "s3://bucket/x?y=z",
        "s3:bucket",
    ],
)  # fmt: skip
def test_an_unusable_url_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigurationError, match="is no library URL"):
        Library.open(url)


def test_a_plain_path_is_told_how_to_be_a_url() -> None:
    with pytest.raises(ConfigurationError, match="did you mean file:///srv/dam"):
        Library.open("/srv/dam")


def test_a_url_has_one_spelling(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Library.open("file:///srv//x/../dam%20one/").url == "file:///srv/dam%20one"
    assert Library.open("s3://bucket/dam/").url == "s3://bucket/dam"
    assert Library.open("s3://bucket").url == "s3://bucket"


@pytest.mark.parametrize("endpoint", ["minio:9000", "ftp://x", "http://", "http://key:secret@host"])
def test_an_unusable_endpoint_is_a_configuration_error(endpoint: str) -> None:
    with pytest.raises(ConfigurationError, match="is no endpoint"):
        Library.open("s3://bucket", endpoint=endpoint)


@pytest.mark.alone
def test_without_credentials_the_error_says_how_to_set_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    begun = time.monotonic()
    with pytest.raises(ConfigurationError, match=r"no S3 credentials: none were found; set AWS_ACCESS_KEY_ID"):
        Library.open("s3://bucket")
    assert time.monotonic() - begun < 2


def test_an_unknown_profile_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ConfigurationError, match="nobody"):
        Library.open("s3://bucket")


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
def test_the_endpoint_comes_from_the_environment(
    s3_server: stores.Server, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv(name, s3_server.endpoint)
    library = Library.open(f"s3://{s3_server.new_bucket()}")
    library.put(KEY, b"x")
    assert library.get(KEY) == b"x"


def test_a_given_endpoint_goes_before_the_environment(
    s3_server: stores.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    library = Library.open(f"s3://{s3_server.new_bucket()}", endpoint=s3_server.endpoint)
    library.put(KEY, b"x")
    assert library.get(KEY) == b"x"


def test_credentials_that_the_store_does_not_know_are_denied() -> None:
    with stores.moto_server({"INITIAL_NO_AUTH_ACTION_COUNT": "0"}) as server:
        library = Library.open("s3://bucket", endpoint=server.endpoint)
        for call in every_call(library):
            with pytest.raises(AccessDenied, match="check the credentials"):
                call()


# Absent is a fact about the library, not about the way to it.


def every_call(library: Library, *, timeout_s: float = 2) -> list[Callable[[], object]]:
    return [
        lambda: library.get(layout.log_key("apollo", 1), timeout_s=timeout_s),
        lambda: library.get(layout.IDENTITY, timeout_s=timeout_s),
        lambda: library.get_buffer(KEY, timeout_s=timeout_s),
        lambda: library.get_start(KEY, 5, timeout_s=timeout_s),
        lambda: library.size(KEY, timeout_s=timeout_s),
        lambda: library.put(KEY, b"x", timeout_s=timeout_s),
        lambda: library.create(KEY, b"x", timeout_s=timeout_s),
        lambda: list(library.list("shows/apollo/log/", timeout_s=timeout_s)),
        lambda: library.folders("shows/", timeout_s=timeout_s),
    ]


def test_in_a_folder_that_is_not_there_nothing_is_absent_and_nothing_is_made(tmp_path: Path) -> None:
    library = Library.open((tmp_path / "library").as_uri())
    for call in every_call(library):
        with pytest.raises(Unavailable, match="is its file system mounted"):
            call()
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_is_unmounted_is_unavailable_and_comes_back(file_library: Library, tmp_path: Path) -> None:
    file_library.put(KEY, b"x")
    folder = folder_of(file_library)
    folder.rename(tmp_path / "elsewhere")
    folder.mkdir()  # the bare mountpoint
    calls = every_call(file_library)
    del calls[1]  # the identity of what may be a new library
    for call in calls:
        with pytest.raises(Unavailable, match=r"its damfs\.json is not there"):
            call()
    assert list(folder.iterdir()) == []
    folder.rmdir()
    for call in every_call(file_library):
        with pytest.raises(Unavailable):
            call()
    assert not folder.exists()
    (tmp_path / "elsewhere").rename(folder)
    assert file_library.get(KEY) == b"x"


def test_in_a_bucket_that_does_not_exist_nothing_is_absent(s3_server: stores.Server) -> None:
    library = Library.open("s3://no-such-bucket/dam", endpoint=s3_server.endpoint)
    for call in every_call(library):
        with pytest.raises(Unavailable, match="the bucket does not exist"):
            call()


def response(status: str, body: bytes, *, length: int | None = None) -> Callable[[socket.socket, bytes], None]:
    head = (
        f'HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nETag: "x"\r\nConnection: close\r\n'
        f"Last-Modified: Fri, 20 Nov 2026 10:30:54 GMT\r\nContent-Length: {length or len(body)}\r\n\r\n"
    ).encode()

    def answer(connection: socket.socket, request: bytes) -> None:
        connection.sendall(head if request.startswith(b"HEAD") else head + body)

    return answer


def s3_error(status: str, code: str) -> Callable[[socket.socket, bytes], None]:
    return response(status, f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode())


def test_a_404_that_is_not_the_stores_is_not_believed() -> None:
    with stores.canned_server(response("404 Not Found", b"<html>our proxy knows nothing</html>")) as url:
        library = Library.open("s3://bucket/dam", endpoint=url)
        for call in every_call(library):
            with pytest.raises(Unavailable, match="404"):
                call()


@pytest.mark.parametrize(
    ("answer", "expected", "message"),
    [
        (s3_error("403 Forbidden", "InvalidAccessKeyId"), AccessDenied, "InvalidAccessKeyId"),
        (s3_error("401 Unauthorized", "Foo"), AccessDenied, "access denied"),
        (s3_error("400 Bad Request", "ExpiredToken"), AccessDenied, "ExpiredToken"),
        (s3_error("400 Bad Request", "AuthorizationHeaderMalformed"), Unavailable, "AuthorizationHeaderMalformed"),
        (s3_error("500 Internal Server Error", "InternalError"), Unavailable, "answered 500 InternalError"),
        (s3_error("503 Slow Down", "SlowDown"), Unavailable, "answered 503 SlowDown"),
        (s3_error("409 Conflict", "OperationAborted"), Unavailable, "409"),
        (s3_error("412 Precondition Failed", "PreconditionFailed"), Unavailable, "412"),
        (s3_error("301 Moved Permanently", "PermanentRedirect"), Unavailable, "region"),
        (response("200 OK", b"half", length=100), Unavailable, "body"),
        (lambda connection, _: connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n"), Unavailable, "error"),
        (lambda connection, _: connection.close(), Unavailable, "error"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_wrong_answer_to_a_get_is_translated(
    answer: Callable[[socket.socket, bytes], None], expected: type[DamfsError], message: str
) -> None:
    with stores.canned_server(answer) as url:
        library = Library.open("s3://bucket/dam", endpoint=url)
        with pytest.raises(expected, match=message) as caught:
            library.get(KEY, timeout_s=5)
    assert KEY in str(caught.value)
    assert "s3://bucket/dam" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("code", ["409 Conflict", "412 Precondition Failed"])
def test_a_refused_condition_is_a_conflict_whoever_wrote(code: str) -> None:
    with stores.canned_server(s3_error(code, "PreconditionFailed")) as url:
        library = Library.open("s3://bucket/dam", endpoint=url)
        with pytest.raises(Conflict):
            library.create(KEY, b"x")
        with pytest.raises(Unavailable):
            library.put(KEY, b"x")


# Never a hang.


def silence(connection: socket.socket, _: bytes) -> None:
    connection.recv(1)  # until the other side gives up


@pytest.mark.alone
def test_a_silent_server_is_unavailable_within_the_time_out() -> None:
    with stores.canned_server(silence) as url:
        library = Library.open("s3://bucket/dam", endpoint=url)

        def check(call: Callable[[], object]) -> None:
            begun = time.monotonic()
            with pytest.raises(Unavailable, match="no answer in time"):
                call()
            assert time.monotonic() - begun < 3

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(check, every_call(library, timeout_s=2)))


@pytest.mark.alone
def test_a_server_that_stops_in_the_middle_of_the_bytes_is_unavailable_within_the_time_out() -> None:
    begin = response("200 OK", b"half", length=1000)

    def answer(connection: socket.socket, request: bytes) -> None:
        begin(connection, request)
        silence(connection, request)

    with stores.canned_server(answer) as url:
        library = Library.open("s3://bucket/dam", endpoint=url)
        begun = time.monotonic()
        with pytest.raises(Unavailable, match="no answer in time"):
            library.get_buffer(KEY, timeout_s=2)
        assert time.monotonic() - begun < 3


@pytest.mark.alone
def test_a_server_that_takes_no_bytes_is_unavailable_within_the_time_out() -> None:
    stop = threading.Event()

    def answer(_connection: socket.socket, _request: bytes) -> None:
        stop.wait(30)

    with stores.canned_server(answer) as url:
        library = Library.open("s3://bucket/dam", endpoint=url)
        begun = time.monotonic()
        with pytest.raises(Unavailable, match="no answer in time"):
            library.put(KEY, bytes(16 * 1024 * 1024), timeout_s=2)
        assert time.monotonic() - begun < 3
        stop.set()


@pytest.mark.alone
def test_a_host_that_does_not_answer_is_unavailable_after_the_connect_time_out() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        with socket.socket() as filler:  # a full backlog drops further SYNs
            filler.setblocking(False)
            filler.connect_ex(address)
            library = Library.open("s3://bucket/dam", endpoint=f"http://127.0.0.1:{address[1]}")
            begun = time.monotonic()
            with pytest.raises(Unavailable):
                library.get(KEY, timeout_s=30)
            assert time.monotonic() - begun < 4


@pytest.mark.alone
@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1", "http://no-such-host.invalid"])
def test_who_is_not_there_is_told_at_once(endpoint: str) -> None:
    library = Library.open("s3://bucket/dam", endpoint=endpoint)
    for call in every_call(library, timeout_s=30):
        begun = time.monotonic()
        with pytest.raises(Unavailable, match=r"Connection refused|cannot be resolved"):
            call()
        assert time.monotonic() - begun < 2


def test_a_read_that_waits_holds_no_other_thread_up() -> None:
    """The GIL is released while obstore waits."""
    with stores.canned_server(silence) as url:
        library = Library.open("s3://bucket/dam", endpoint=url)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(library.get, KEY, timeout_s=2)
            turns = 0
            while not waiting.done():
                time.sleep(0.01)
                turns += 1
            assert isinstance(waiting.exception(), Unavailable)
        assert turns > 50


def test_credentials_that_cannot_be_had_say_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    credential_process(monkeypatch, tmp_path, "echo no ticket >&2; exit 3")
    with pytest.raises(ConfigurationError, match=r"no ticket.*AWS_PROFILE"):
        Library.open("s3://bucket/dam", endpoint="http://127.0.0.1:1")


def test_credentials_that_cannot_be_renewed_are_denied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    over = tmp_path / "over"
    credential_process(monkeypatch, tmp_path, f"if [ -e {over} ]; then echo no ticket >&2; exit 3; fi")
    library = Library.open("s3://bucket/dam", endpoint="http://127.0.0.1:1")
    over.touch()
    with pytest.raises(AccessDenied, match=r"no ticket.*AWS_PROFILE"):
        library.get(KEY)


@pytest.mark.alone
def test_a_chain_of_credentials_that_hangs_is_unavailable_and_heals(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, s3_server: stores.Server
) -> None:
    """As an STS or SSO server that does not answer: obstore itself would wait for it without a limit."""
    wait = tmp_path / "wait"
    credential_process(monkeypatch, tmp_path, f"while [ -e {wait} ]; do sleep 0.1; done")
    library = Library.open(f"s3://{s3_server.new_bucket()}/dam", endpoint=s3_server.endpoint)
    wait.touch()
    begun = time.monotonic()
    try:
        with pytest.raises(Unavailable, match="no answer within 2 s"):
            library.put(KEY, b"x", timeout_s=2)
        assert time.monotonic() - begun < 3
    finally:
        wait.unlink()
    library.put(KEY, b"x", timeout_s=2)


def credential_process(monkeypatch: pytest.MonkeyPatch, folder: Path, first: str) -> None:
    """A program that gives credentials which are always about to expire, after it has done ``first``."""
    program = folder / "credentials"
    soon = (datetime.now(UTC) + timedelta(minutes=1)).isoformat()
    program.write_text(
        f"""#!/bin/sh\n{first}\n"""
        f"""echo '{{"Version":1,"AccessKeyId":"a","SecretAccessKey":"b","SessionToken":"c","Expiration":"{soon}"}}'\n"""
    )
    program.chmod(0o755)
    (folder / "config").write_text(f"[profile process]\ncredential_process = {program}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "config"))
    monkeypatch.setenv("AWS_PROFILE", "process")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")


# Folders.


def test_a_create_in_a_folder_is_synced_before_and_after_it_has_its_name(tmp_path: Path) -> None:
    """strace shows the order: fsync of the bytes, link, fsync of the folder."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    (tmp_path / "library").mkdir()
    program = (
        "import sys; from manifest import library_folder; from pathlib import Path;"
        "library_folder.create(Path(sys.argv[1]), 'shows/a/log/1', b'entry')"
    )
    traced = tmp_path / "trace"
    command = ["strace", "-f", "-o", str(traced), "-e", "trace=fsync,link,linkat,mkdir", sys.executable, "-c", program]
    subprocess.run([*command, str(tmp_path / "library")], check=True, timeout=50)
    calls = [line.split("(")[0].split()[-1] for line in traced.read_text().splitlines() if "(" in line]
    assert calls[-3:] in (["fsync", "link", "fsync"], ["fsync", "linkat", "fsync"])
    assert (tmp_path / "library/shows/a/log/1").read_bytes() == b"entry"


def test_a_create_in_a_folder_leaves_no_temporary_file(file_library: Library) -> None:
    file_library.create(KEY, b"x")
    with pytest.raises(Conflict):
        file_library.create(KEY, b"y")
    assert [path.name for path in (folder_of(file_library) / KEY).parent.iterdir()] == ["abcd"]


def test_a_temporary_file_that_a_crash_left_is_not_listed(file_library: Library) -> None:
    file_library.create(KEY, b"x")
    (folder_of(file_library) / f"{KEY}#12345").write_bytes(b"half")
    assert list(file_library.list("shows/apollo/chunks/")) == [(KEY, 1)]


def test_folders_are_made_below_the_root_but_never_the_root(tmp_path: Path) -> None:
    root = tmp_path / "library"
    with pytest.raises(FileNotFoundError):
        make_folders(root, root / "shows" / "apollo")
    root.mkdir()
    make_folders(root, root / "shows" / "apollo")
    make_folders(root, root / "shows" / "apollo")
    assert (root / "shows" / "apollo").is_dir()


def test_sync_writes_the_librarys_file_system_back(file_library: Library) -> None:
    file_library.put(KEY, b"x")
    file_library.sync()
    shutil.rmtree(folder_of(file_library))
    with pytest.raises(Unavailable):
        file_library.sync()


def test_a_folder_that_may_not_be_written_denies(file_library: Library) -> None:
    if subprocess.run(["chattr", "+i", folder_of(file_library)], check=False, capture_output=True).returncode:
        pytest.skip("chattr needs root and a file system that knows it")
    try:
        with pytest.raises(AccessDenied, match="check the rights"):
            file_library.create(KEY, b"x")
        with pytest.raises(AccessDenied, match="check the rights"):
            file_library.put(KEY, b"x")
    finally:
        subprocess.run(["chattr", "-i", folder_of(file_library)], check=True)


def test_memory_is_a_store_of_its_own() -> None:
    library = Library.open("memory://")
    library.create(KEY, b"x")
    with pytest.raises(Conflict):
        library.create(KEY, b"y")
    assert library.get(KEY) == b"x"
    assert Library.open("memory://").size(KEY) is None
    library.sync()
