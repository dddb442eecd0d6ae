"""A small program that plays the daemon for tests of the supervisor: it speaks the protocol, and does as it is told.

``python -m tests.daemon.actor FOLDER PART…`` with the options that a supervisor appends. The nth daemon plays the nth
part (the last one from then on), a list of words; each one writes a line about itself to FOLDER/cast. A zygote plays
nothing itself. An ``unfit`` file in FOLDER makes zygotes say that nobody could take over, with its text as the reason;
``broken`` makes them end with status 3, ``slow`` take their time.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

from daemon import handed, lifeline, zygote
from daemon.processes import set_name
from daemon.systemd import Notify

LOOKUP, GETATTR, INIT = 1, 3, 26


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--supervisor-pid", "--standby-fd", "--died-ns", "--restarts", "--ready-fd"):
        parser.add_argument(name, type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("parts", nargs="+")
    options = parser.parse_args()
    left = handed.take()
    address = os.environ["NOTIFY_SOCKET"]
    notify = Notify()
    died_ns, restarts = options.died_ns, options.restarts or 0
    if options.standby_fd is None:
        lifeline.hand_to(notify)
        set_name("damfs-daemon")
    else:
        for descriptor in left.values():
            os.close(descriptor)
        if (options.folder / "broken").exists():
            sys.exit(3)
        if (options.folder / "slow").exists():
            time.sleep(60)
        unfit = options.folder / "unfit"
        notify.standby(unfit.read_text() if unfit.exists() else "")
        start = zygote.serve(socket.socket(fileno=options.standby_fd))
        if start is None:
            sys.exit(0)
        died_ns, restarts, left = start.died_ns or None, start.restarts, start.descriptors
        options.ready_fd = start.ready_fd
    actor = Actor(options.folder, notify, address, left)
    actor.enter(supervisor_pid=options.supervisor_pid, ready_fd=options.ready_fd, died_ns=died_ns, restarts=restarts,
                standby=options.standby_fd is not None)  # fmt: skip
    for word in options.parts[min(restarts, len(options.parts) - 1)].split():
        name, _, value = word.partition(":")
        getattr(actor, name)(value)


class Actor:
    """A method for each word."""

    def __init__(self, folder: Path, notify: Notify, address: str, left: dict[str, int]) -> None:
        self.folder, self.notify, self.address, self.left = folder, notify, address, left
        signal.signal(signal.SIGTERM, lambda *_: self.end())
        signal.signal(signal.SIGUSR2, lambda *_: threading.Timer(0.2, os._exit, [75]).start())

    def enter(self, **facts: object) -> None:
        texts = {name: text_of(descriptor) for name, descriptor in self.left.items()}
        facts |= {"pid": os.getpid(), "left": texts, "at_ns": time.monotonic_ns(), "numbers": list(self.left.values())}
        facts["dice"] = random.random()
        with (self.folder / "cast").open("a") as cast:
            cast.write(json.dumps(facts) + "\n")

    def ready(self, _: str) -> None:
        self.notify.ready("on stage")

    def stopping(self, _: str) -> None:
        self.notify.stopping()

    def end(self) -> None:
        self.notify.stopping()
        os._exit(0)

    def wait(self, _: str) -> None:
        while True:
            time.sleep(60)

    def deaf(self, _: str) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def pause(self, seconds: str) -> None:
        time.sleep(float(seconds))

    def exit(self, status: str) -> None:
        os._exit(int(status))

    def crash(self, _: str) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def stuck(self, _: str) -> None:
        """Be killed while a thread waits in the kernel where SIGKILL does not reach it.

        A real mount, a LOOKUP that nobody answers, and a notice about that name, which waits for the same lock.
        """
        fuse = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0".encode()
        libc = ctypes.CDLL(None, use_errno=True)
        flags = 1 | 2 | 4  # MS_RDONLY, MS_NOSUID, MS_NODEV
        if libc.mount(b"damfs", os.fsencode(self.folder / "mnt"), b"fuse.damfs", flags, options) != 0:
            sys.exit(os.strerror(ctypes.get_errno()))
        self.notify.store("fuse", fuse)
        self.notify.ready("stuck soon")
        asking = subprocess.Popen(["stat", self.folder / "mnt/name"], stdout=subprocess.DEVNULL)
        operation = 0
        while operation != LOOKUP:
            operation, unique = struct.unpack_from("<4xIQ", os.read(fuse, 65536))
            if operation == INIT:
                answer(fuse, unique, struct.pack("<IIII", 7, 31, 65536, 0).ljust(64, b"\0"))
            elif operation == GETATTR:
                answer(fuse, unique, struct.pack("<Q8x6Q10I", 9, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 1, 0, 0, 0, 0, 0))
        notice = struct.pack("<QII", 1, 4, 0) + b"name\0"
        threading.Thread(target=answer, args=(fuse, 0, notice, 3), daemon=True).start()  # 3: NOTIFY_INVAL_ENTRY
        time.sleep(0.3)
        assert asking.poll() is None
        self.crash("")

    def store(self, value: str) -> None:
        name, _, text = value.partition("=")
        memory = os.memfd_create(name)
        os.write(memory, text.encode())
        self.notify.store(name, memory)
        self.notify.barrier(5)

    def append(self, value: str) -> None:
        name, _, text = value.partition("=")
        os.lseek(self.left[name], 0, os.SEEK_END)
        os.write(self.left[name], text.encode())

    def forget(self, name: str) -> None:
        self.notify.forget(name)
        self.notify.barrier(5)

    def many(self, count: str) -> None:
        for number in range(int(count)):
            self.store(f"n{number}=x")

    def garbage(self, _: str) -> None:
        """Everything that a daemon would not send."""
        pipe = os.pipe()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect(self.address)
            for data in (b"", b"\xff\xfe", b"READY", b"=1", b"FDSTORE=1", b"FDSTORE=1\nFDNAME=../x", b"BARRIER=1",
                         b"RELOADING=1", b"X=" + b"y" * 10_000, b"\0" * 4096):  # fmt: skip
                sender.send(data)
                socket.send_fds(sender, [data or b"\n"], list(pipe))
                socket.send_fds(sender, [data or b"\n"], [pipe[0]] * 100)
                socket.send_fds(sender, [data or b"\n"], [pipe[1]])
        self.notify.barrier(5)

    def reload(self, _: str) -> None:
        reason = self.notify.reload(20)
        (self.folder / "reload").write_text(reason or "ok")

    def orphan(self, _: str) -> None:
        """Leave a child behind."""
        child = subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL, start_new_session=True)
        (self.folder / "orphan").write_text(str(child.pid))

    def impostor(self, _: str) -> None:
        """A process that is no daemon says that the daemon stops."""
        if os.fork() == 0:
            os.environ["NOTIFY_SOCKET"] = self.address
            Notify().stopping()
            os._exit(0)
        os.wait()
        self.notify.barrier(5)


def text_of(descriptor: int) -> str:
    return os.pread(descriptor, 100, 0).decode() if stat.S_ISREG(os.fstat(descriptor).st_mode) else "a device"


def answer(fuse: int, unique: int, body: bytes, error: int = 0) -> None:
    os.write(fuse, struct.pack("<IiQ", 16 + len(body), error, unique) + body)


if __name__ == "__main__":
    main()
