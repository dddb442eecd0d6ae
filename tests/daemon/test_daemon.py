"""The daemon as a process: it starts, follows, stops, and survives what happens to it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from cache.sources.breaker import FRESH_S
from daemon import mounts, paths
from daemon.client import Client
from daemon.stop import DRAIN_S
from manifest import layout
from manifest.digest import Digest
from manifest.errors import Busy, NotFound, Unavailable
from tests.daemon.conftest import House, is_mounted, within
from tests.daemon.test_documents import sections

FILE = "seq010/sh020/plate/v001/plate.1001.exr"
DATA = b"pixels " * 20_000


def test_a_mount_that_says_ready_answers_and_serves_the_bytes(house: House) -> None:
    house.publish({FILE: DATA})
    running = house.mount()
    assert os.listdir(house.mountpoint) == ["apollo"]
    assert (house.mountpoint / "apollo" / FILE).read_bytes() == DATA
    assert running.reply["pid"] == running.process.pid
    assert running.reply["mountpoint"] == str(house.mountpoint)


def test_the_status_says_what_there_is(house: House) -> None:
    house.publish({FILE: DATA})
    running = house.mount()
    (house.mountpoint / "apollo" / FILE).read_bytes()
    status = running.client.status()
    assert status["pid"] == running.process.pid
    assert status["library"] == house.url
    assert status["library_id"] == house.identity.id
    assert (status["endpoint"], status["region"], status["trust"]) == (None, None, str(house.trust_file))
    assert status["binding"] == running.reply["binding"]
    assert status["offline"] is False
    assert status["shows"]["apollo"]["revision"] == 1
    assert status["shows"]["apollo"]["stalled"] is None
    assert status["cache"]["folder"] == str(house.folder / "cache")
    assert status["cache"]["misses"] > 0
    assert status["sources"][0]["fetched_bytes"] == len(DATA)
    assert [client.mountpoint for client in Client.all()] == [house.mountpoint]
    assert Client.for_mountpoint(house.mountpoint / "apollo" / FILE).mountpoint == house.mountpoint


def test_a_publish_of_1000_files_is_seen_within_two_seconds(house: House) -> None:
    house.publish({FILE: DATA})
    house.mount()
    last = house.mountpoint / "apollo/seq010/v002/f.0999"
    assert not last.exists()
    house.publish({f"seq010/v002/f.{n:04d}": b"x%d" % n for n in range(1000)})
    assert within(2, last.exists) < 2
    assert len(os.listdir(last.parent)) == 1000


def test_after_a_sync_the_revision_is_there_and_no_old_name_is(house: House) -> None:
    house.publish({FILE: DATA})
    running = house.mount(**{"sync.interval_s": 600.0})
    path = house.mountpoint / "apollo/new.nk"
    for number in range(2, 6):
        assert not path.with_name(f"new{number}.nk").exists()
        revision = house.publish({f"new{number}.nk": b"%d" % number})
        assert running.client.sync("apollo", revision) == revision == number
        assert path.with_name(f"new{number}.nk").read_bytes() == b"%d" % number


def test_a_sync_without_a_revision_reads_the_log_now(house: House) -> None:
    house.publish({FILE: DATA})
    running = house.mount(**{"sync.interval_s": 600.0})
    house.publish({"second": b"2"})
    assert running.client.sync("apollo") == 2


def test_a_sync_waits_for_a_revision_that_is_still_to_come(house: House) -> None:
    house.publish({FILE: DATA})
    running = house.mount()
    found: list[int] = []
    waiting = threading.Thread(target=lambda: found.append(running.client.sync("apollo", 2, timeout_s=20)))
    waiting.start()
    time.sleep(1.5)
    assert found == []
    house.publish({"second": b"2"})
    waiting.join(20)
    assert found == [2]


@pytest.mark.alone
def test_a_sync_that_is_not_satisfied_in_time_says_where_the_show_stands(house: House) -> None:
    house.publish({FILE: DATA})
    running = house.mount()
    started = time.monotonic()
    with pytest.raises(Unavailable, match="at revision 1, not 9"):
        running.client.sync("apollo", 9, timeout_s=1)
    assert time.monotonic() - started < 3


def test_an_unknown_show_is_named_in_the_error(house: House) -> None:
    running = house.mount()
    with pytest.raises(NotFound, match=r"no show zeus.*apollo"):
        running.client.sync("zeus")
    assert not (house.mountpoint / "zeus").exists()


def test_a_new_show_appears_and_can_be_synced_at_once(house: House) -> None:
    running = house.mount()
    assert os.listdir(house.mountpoint) == ["apollo"]
    house.add_show("zeus")
    house.publish({FILE: DATA}, show="zeus")
    assert running.client.sync("zeus", 1) == 1
    assert (house.mountpoint / "zeus" / FILE).read_bytes() == DATA
    assert sorted(os.listdir(house.mountpoint)) == ["apollo", "zeus"]


def test_a_new_show_appears_by_itself(house: House) -> None:
    house.mount()
    house.add_show("zeus")
    within(8, lambda: "zeus" in os.listdir(house.mountpoint))


def test_a_stop_frees_the_mountpoint_and_leaves_nothing(house: House) -> None:
    house.publish({FILE: DATA})
    running = house.mount()
    running.client.stop()
    assert not is_mounted(house.mountpoint)
    assert running.wait() == 0
    assert list(paths.run_folder().iterdir()) == []
    with pytest.raises(NotFound, match="no damfs is mounted"):
        Client.for_mountpoint(house.mountpoint)


def test_a_mount_in_use_is_not_stopped_and_goes_on(house: House) -> None:
    house.publish({FILE: DATA})
    running = house.mount()
    with (house.mountpoint / "apollo" / FILE).open("rb") as file:
        with pytest.raises(Busy, match="in use"):
            running.client.stop()
        assert file.read() == DATA
    assert running.client.status()["pid"] == running.process.pid


def test_a_lazy_stop_frees_the_name_and_open_files_read_on(house: House) -> None:
    house.publish({FILE: DATA})
    running = house.mount()
    with (house.mountpoint / "apollo" / FILE).open("rb") as file:
        running.client.stop(lazy=True)
        assert os.listdir(house.mountpoint) == []
        assert file.read() == DATA
    assert running.wait(5) == 0


@pytest.mark.parametrize("plain", [False, True], ids=["damfs", "umount"])
def test_after_a_lazy_unmount_what_is_open_is_served_until_it_is_closed(house: House, plain: bool) -> None:
    house.publish({FILE: DATA, "cold": os.urandom(1_000_000)})
    running = house.mount()
    with (house.mountpoint / "apollo" / FILE).open("rb") as file, (house.mountpoint / "apollo/cold").open("rb") as cold:
        if plain:
            subprocess.run(["umount", "-l", house.mountpoint], check=True, timeout=10)
        else:
            running.client.stop(lazy=True)
        assert not is_mounted(house.mountpoint)
        time.sleep(DRAIN_S + 2)
        assert file.read() == DATA
        assert len(cold.read()) == 1_000_000
        assert running.process.poll() is None
    assert running.wait(5) == 0


def test_a_mount_on_a_place_that_is_still_served_says_who_serves_it(house: House) -> None:
    house.publish({FILE: DATA})
    running = house.mount()
    with (house.mountpoint / "apollo" / FILE).open("rb") as file:
        subprocess.run(["umount", "-l", house.mountpoint], check=True, timeout=10)
        code, message = house.refuse()
        assert code == 3
        assert f"pid {running.process.pid}: it was unmounted from {house.mountpoint}" in message
        other = house.mount(**{"cache.folder": house.folder / "cache2"})
        assert (house.mountpoint / "apollo" / FILE).read_bytes() == DATA
        assert file.read() == DATA
    assert running.wait(5) == 0
    assert (house.mountpoint / "apollo" / FILE).read_bytes() == DATA
    assert other.client.status()["pid"] == other.process.pid
    other.client.stop()
    other.wait()
    house.mount()


def test_a_signal_ends_what_was_unmounted_lazily_after_a_while_and_no_other_mount(house: House) -> None:
    house.publish({FILE: DATA})
    running = house.mount()
    with (house.mountpoint / "apollo" / FILE).open("rb") as file:
        running.client.stop(lazy=True)
        other = house.mount(**{"cache.folder": house.folder / "cache2"})
        running.signal(signal.SIGTERM)
        time.sleep(2)
        assert file.read(10) == DATA[:10]
        assert running.wait(DRAIN_S + 5) == 0
        with pytest.raises(OSError, match=r"not connected|connection abort"):
            os.fstatvfs(file.fileno())
        with suppress(OSError):
            file.close()
    assert (house.mountpoint / "apollo" / FILE).read_bytes() == DATA
    assert other.client.status()["pid"] == other.process.pid


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_unmounts(house: House, number: signal.Signals) -> None:
    running = house.mount()
    running.signal(number)
    assert running.wait(5) == 0
    assert not is_mounted(house.mountpoint)


def test_a_signal_detaches_a_mount_in_use_and_ends_after_a_while(house: House) -> None:
    house.publish({FILE: DATA})
    running = house.mount()
    with (house.mountpoint / "apollo" / FILE).open("rb") as file:
        running.signal(signal.SIGTERM)
        within(3, lambda: not is_mounted(house.mountpoint))
        assert file.read(10) == DATA[:10]
        assert running.wait(DRAIN_S + 5) == 0
        with pytest.raises(OSError, match=r"not connected|connection abort"):
            os.getxattr(file.fileno(), "user.damfs.digest")


def test_a_second_signal_ends_at_once(house: House) -> None:
    house.publish({FILE: DATA})
    running = house.mount()
    with (house.mountpoint / "apollo" / FILE).open("rb") as file:
        running.signal(signal.SIGTERM)
        within(3, lambda: not is_mounted(house.mountpoint))
        running.signal(signal.SIGTERM)
        assert running.wait(4) == 0
        with pytest.raises(OSError, match=r"not connected|connection abort"):
            os.getxattr(file.fileno(), "user.damfs.digest")


def test_somebody_elses_umount_ends_the_daemon(house: House) -> None:
    running = house.mount()
    subprocess.run(["umount", house.mountpoint], check=True, timeout=10)
    assert running.wait(5) == 0
    assert list(paths.run_folder().iterdir()) == []


def test_after_kill_9_the_next_start_takes_the_mountpoint_over(house: House) -> None:
    house.publish({FILE: DATA})
    first = house.mount()
    assert (house.mountpoint / "apollo" / FILE).read_bytes() == DATA
    first.signal(signal.SIGKILL)
    first.wait()
    with pytest.raises(Unavailable, match="umount --lazy"):
        first.client.status()
    house.mount()
    assert (house.mountpoint / "apollo" / FILE).read_bytes() == DATA
    assert [mount.mountpoint for mount in mounts.ours() if mount.mountpoint == house.mountpoint] == [house.mountpoint]


def test_a_second_daemon_on_the_cache_folder_is_refused_and_told_who_has_it(house: House) -> None:
    running = house.mount()
    (house.folder / "second").mkdir()
    code, message = house.refuse(house.folder / "second")
    assert code == 3
    assert str(running.process.pid) in message
    assert str(house.mountpoint) in message
    assert not is_mounted(house.folder / "second")


def test_a_cache_folder_of_another_library_is_refused_and_nothing_is_lost(house: House) -> None:
    data = os.urandom(100_000)
    house.publish({"a": data})
    first = house.mount()
    assert (house.mountpoint / "apollo/a").read_bytes() == data
    first.client.stop()
    (house.folder / "second").mkdir()
    other = House(house.folder / "second")
    code, message = house.refuse(**{"library.url": other.url, "library.trust": other.trust_file})
    assert code == 3
    for part in (str(house.folder / "cache"), house.identity.id, house.url, other.identity.id, "--cache", "remove"):
        assert part in message
    chunk = house.library_folder / layout.chunk_key("apollo", Digest.of(data))
    chunk.unlink()
    house.mount()
    assert (house.mountpoint / "apollo/a").read_bytes() == data


def test_a_second_daemon_on_the_mountpoint_is_refused(house: House) -> None:
    running = house.mount()
    code, message = house.refuse(**{"cache.folder": house.folder / "cache2"})
    assert code == 3
    assert f"already mounted, by pid {running.process.pid}" in message
    assert os.listdir(house.mountpoint) == ["apollo"]


def test_a_first_mount_without_the_library_is_a_clear_error(house: House) -> None:
    house.take_away()
    code, message = house.refuse()
    assert code == 6
    assert house.url in message
    assert not is_mounted(house.mountpoint)


def test_a_later_mount_without_the_library_serves_what_is_here(house: House) -> None:
    house.publish({FILE: DATA, "other": DATA[::-1]})
    first = house.mount()
    assert (house.mountpoint / "apollo" / FILE).read_bytes() == DATA
    first.client.stop()
    first.wait()
    house.take_away()
    running = house.mount()
    assert running.reply["offline"] is True
    status = running.client.status()
    assert status["offline"] is True
    assert "library" in status["offline_reason"]
    assert (house.mountpoint / "apollo" / FILE).read_bytes() == DATA
    assert sorted(os.listdir(house.mountpoint / "apollo")) == ["other", "seq010"]
    with pytest.raises(OSError, match=r"Errno 5"):
        (house.mountpoint / "apollo/other").read_bytes()
    house.bring_back()
    within(8, lambda: not running.client.status()["offline"])
    assert (house.mountpoint / "apollo/other").read_bytes() == DATA[::-1]


def test_a_mount_recovers_by_itself_and_sees_what_was_published_meanwhile(house: House) -> None:
    house.publish({FILE: DATA})
    running = house.mount()
    assert (house.mountpoint / "apollo" / FILE).exists()
    house.take_away()
    within(10, lambda: running.client.status()["offline"])
    house.bring_back()
    house.publish({"meanwhile": b"m"})
    within(8, (house.mountpoint / "apollo/meanwhile").exists)
    within(2, lambda: not running.client.status()["offline"])


def test_a_read_that_succeeds_after_an_outage_is_contact(house: House) -> None:
    house.publish({FILE: DATA, "other": DATA[::-1]})
    running = house.mount()
    assert running.client.sync("apollo", 1) == 1
    house.take_away()
    within(10, lambda: running.client.status()["offline"])
    time.sleep(3)  # the pauses between attempts have grown
    house.bring_back()
    time.sleep(2 * FRESH_S)  # a look just before it was back is news for so long
    assert (house.mountpoint / "apollo/other").read_bytes() == DATA[::-1]
    assert running.client.status()["offline"] is False


def test_who_asks_for_the_status_hears_of_the_return_soon(house: House) -> None:
    house.publish({FILE: DATA})
    running = house.mount()
    house.take_away()
    within(10, lambda: running.client.status()["offline"])
    time.sleep(3)
    house.bring_back()
    assert within(8, lambda: not running.client.status()["offline"]) < 2


def test_a_sync_request_during_an_outage_tries_at_once(house: House) -> None:
    house.publish({FILE: DATA})
    running = house.mount()
    assert running.client.sync("apollo", 1) == 1
    house.take_away()
    within(10, lambda: running.client.status()["offline"])
    with pytest.raises(Unavailable, match="stays at revision 1"):
        running.client.sync("apollo", timeout_s=5)
    house.bring_back()
    house.publish({"meanwhile": b"m"})
    assert running.client.sync("apollo", 2, timeout_s=5) == 2


def test_what_is_no_library_is_refused(house: House) -> None:
    (house.folder / "empty").mkdir()
    code, message = house.refuse(**{"library.url": (house.folder / "empty").as_uri()})
    assert code in (4, 6)
    assert "damfs.json" in message


def test_a_trust_file_of_another_library_is_refused(house: House) -> None:
    other = house.trust_file.read_bytes().replace(house.identity.id.encode(), b"0" * 32)
    house.trust_file.write_bytes(other)
    code, message = house.refuse()
    assert code == 3
    assert house.identity.id in message


def test_a_folder_that_is_not_empty_is_refused(house: House) -> None:
    (house.mountpoint / "file").touch()
    code, message = house.refuse()
    assert (code, "not empty" in message) == (3, True)


def test_settings_that_are_off_end_with_their_code(house: House) -> None:
    command = [sys.executable, "-m", "daemon", "--mountpoint", str(house.mountpoint), "--settings-json"]
    done = subprocess.run([*command, '{"cache":{"size":"x"}}'], capture_output=True, timeout=20, check=False)
    assert done.returncode == 3
    assert b"cache.size" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_metrics_are_served_and_each_is_documented(house: House) -> None:
    house.publish({FILE: DATA})
    running = house.mount()
    (house.mountpoint / "apollo" / FILE).read_bytes()
    url = running.client.status()["metrics"]
    assert url.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(url, timeout=5) as response:
        page = response.read().decode()
    assert 'damfs_show_revision{show="apollo"} 1.0' in page
    assert "damfs_offline 0.0" in page
    served = {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE damfs_")}
    served = {name.removesuffix("_total") for name in served if not name.endswith("_created")}
    documented = set().union(*sections("METRICS.md").values())
    assert served == documented


def test_metrics_can_be_off(house: House) -> None:
    assert house.mount(**{"metrics.listen": "off"}).client.status()["metrics"] is None


def test_sigusr1_writes_tasks_and_threads_to_the_log(house: House) -> None:
    running = house.mount()
    running.client.sync("apollo")
    running.signal(signal.SIGUSR1)
    within(5, lambda: "end of tasks" in running.log)
    assert "follow apollo" in running.log
    assert "Current thread" in running.log
    assert running.client.status()["pid"] == running.process.pid


def test_a_log_line_is_one_message(house: House) -> None:
    running = house.mount()
    running.client.stop()
    running.wait()
    assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z [A-Z]+ +[\w.]+: .", line) for line in running.log.splitlines())


@pytest.mark.alone
def test_the_event_loop_keeps_turning_while_100000_entries_are_synced(house: House) -> None:
    house.publish({FILE: DATA})
    running = house.mount()
    path = house.mountpoint / "apollo" / FILE
    house.publish({f"many/{n // 1000:03d}/f.{n:06d}": b"" for n in range(100_000)})
    slowest = 0.0
    end = time.monotonic() + 40
    while running.client.status()["shows"]["apollo"]["revision"] < 2:
        assert time.monotonic() < end
        started = time.monotonic()
        path.stat()
        assert not path.with_name(f"none.{started}").exists()
        slowest = max(slowest, time.monotonic() - started)
        time.sleep(0.01)
    assert slowest < 1
    with urllib.request.urlopen(running.client.status()["metrics"], timeout=5) as response:
        page = response.read().decode()
    worst = re.findall(r'damfs_event_loop_latency_seconds_bucket\{le="0.5"\} ([\d.]+)', page)
    count = re.findall(r"damfs_event_loop_latency_seconds_count ([\d.]+)", page)
    assert worst == count, "the loop was held up for more than half a second"
    assert len(os.listdir(house.mountpoint / "apollo/many/042")) == 1000


def test_ready_is_told_in_one_line_of_json(house: House) -> None:
    reply = house.mount().reply
    assert json.loads(json.dumps(reply)) == reply
    assert set(reply) == {"ready", "pid", "mountpoint", "binding", "binding_reason", "offline", "metrics"}


def test_the_service_manager_hears_ready_when_the_mount_answers(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(20)
        manager.bind(str(house.folder / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(house.folder / "notify"))
        running = house.launch()
        assert manager.recv(1000).startswith(b"READY=1\nSTATUS=")
        assert os.listdir(house.mountpoint) == ["apollo"]
        running.client.stop()
        assert manager.recv(1000).startswith(b"STOPPING=1")


def test_the_daemon_keeps_no_folder_of_its_starter(house: House) -> None:
    running = house.mount()
    assert Path(f"/proc/{running.process.pid}/cwd").readlink() == Path("/")
