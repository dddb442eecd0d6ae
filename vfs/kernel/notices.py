"""The process that writes notices to the kernel, and the daemon's end of it.

A notice about a folder waits in the kernel for every look-up in that folder to be answered, in a sleep that not even
SIGKILL ends. A thread of the daemon in such a sleep would keep the whole killed daemon, with its descriptors, its
database locks and its lock on the cache, while its successor must answer the very look-up. So the sleeping is done by
a small process that has nothing but /dev/fuse and a socket; once that socket is at its end, so is the process.

One request at a time: ``<u32 length><message>…`` as one packet of at most PACKET_BYTES_MAX; the answer is one i32
errno for each message.

This file is run by its path, in an isolated interpreter: it imports nothing of damfs before ``NoticeWriter``.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

PACKET_BYTES_MAX = 64 * 1024
_ANSWER_BYTES_MAX = 64 * 1024
_LENGTH = struct.Struct("<I")
_END_S = 0.5


class NoticeWriter:
    """The daemon's end; made with the mount, used by the one thread that writes notices."""

    def __init__(self, device_fd: int) -> None:
        """Start the process. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self._socket = ours
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-X", "utf8", __file__, str(theirs.fileno()), str(device_fd)],
                    pass_fds=(theirs.fileno(), device_fd),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    cwd="/",
                    start_new_session=True,
                )
        except BaseException:
            ours.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def write(self, messages: Sequence[bytes]) -> list[int]:
        """Write these; the errno of each (0: taken). Blocks for as long as the kernel does.

        Raises ConnectionAbortedError when the process is gone, and with it the mount's notices.
        """
        results: list[int] = []
        packet: list[bytes] = []
        room = PACKET_BYTES_MAX
        for message in messages:
            size = _LENGTH.size + len(message)
            if size > room:
                results += self._send(packet)
                packet, room = [], PACKET_BYTES_MAX
            packet += (_LENGTH.pack(len(message)), message)
            room -= size
        return results + self._send(packet)

    def close(self) -> None:
        """End the process; one that sleeps in the kernel ends when the kernel lets it."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _send(self, packet: list[bytes]) -> list[int]:
        if not packet:
            return []
        try:
            self._socket.sendall(b"".join(packet))
            answer = self._socket.recv(_ANSWER_BYTES_MAX)
        except OSError as error:
            raise ConnectionAbortedError(f"the process that writes notices is gone: {error}") from error
        if len(answer) != 2 * len(packet):  # an i32 for each two pieces, a length and a message
            raise ConnectionAbortedError("the process that writes notices is gone")
        return [number for (number,) in struct.iter_unpack("<i", answer)]


def serve(control: socket.socket, device_fd: int) -> None:
    """Write what comes, until the other end is closed."""
    while packet := control.recv(PACKET_BYTES_MAX):
        at = 0
        results = []
        while at < len(packet):
            (size,) = _LENGTH.unpack_from(packet, at)
            at += _LENGTH.size
            results.append(_write(device_fd, packet[at : at + size]))
            at += size
        control.sendall(struct.pack(f"<{len(results)}i", *results))


def _write(device_fd: int, message: bytes) -> int:
    try:
        os.write(device_fd, message)
    except OSError as error:
        return error.errno or -1
    return 0


if __name__ == "__main__":
    with suppress(ConnectionError), socket.socket(fileno=int(sys.argv[1])) as _control:
        serve(_control, int(sys.argv[2]))
