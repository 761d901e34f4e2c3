"""The daemon is killed, at any moment; the device is held, and the next one says `restore`."""

import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.harness import DEADLINE, Image, drop_caches, serve, sums, wait_for
from tests.realkernel.rig import Held, checksums, reader

from pagein.testing.webserver import WebServer

pytestmark = pytest.mark.realkernel

KILLS = 20


@pytest.fixture
def held(public_tmp: Path) -> Iterator[Held]:
    """A daemon on a device that is held here."""
    mine = Held(public_tmp)
    try:
        mine.start()
        yield mine
    finally:
        mine.close()


def anonymous_fds(pid: int) -> int:
    """How many objects a process has open."""
    links = Path(f"/proc/{pid}/fd").iterdir()
    return sum("[cachefiles]" in str(link.readlink()) for link in links)


def test_a_daemon_with_nothing_to_do_is_replaced(
    image: Image, held: Held, server: WebServer
) -> None:
    held.mount(*serve(server, single=image.single))
    held.kill()
    held.start()
    assert sums(held.target) == sums(image.tree)
    assert held.daemon is not None
    assert anonymous_fds(held.daemon.pid) == 1
    held.umount()
    wait_for(lambda: held.daemon is not None and not anonymous_fds(held.daemon.pid))
    held.stop()


def test_a_read_that_was_delivered_is_answered_by_the_next_daemon(
    image: Image, held: Held, server: WebServer
) -> None:
    held.mount(*serve(server, single=image.single))
    server.rate = 1.0
    before = len(server.requests)
    reading = reader(held.target)
    wait_for(lambda: len(server.requests) > before)
    held.kill()
    server.rate = None
    assert reading.poll() is None
    held.start()
    assert checksums(reading) == sums(image.tree)
    held.umount()
    held.stop()


def test_a_mount_that_waits_for_its_daemon_is_answered_by_the_next(
    image: Image, held: Held, server: WebServer
) -> None:
    """OPEN is there and not yet delivered: the daemon sleeps from the moment it is asked of it."""
    source = serve(server, single=image.single)[0]
    assert held.daemon is not None
    held.mount(source)
    held.umount()
    cookie = held.ask({"op": "resolve", "source": source})["cookie"]
    held.daemon.send_signal(signal.SIGSTOP)
    options = f"fsid={cookie},domain_id=pagein"
    mounting = subprocess.Popen(["mount", "-t", "erofs", "-o", options, "pagein", held.target])
    # In D: waits for OPEN, or for the CLOSE of the mount before, which has not been read either.
    wait_for(lambda: " D " in Path(f"/proc/{mounting.pid}/stat").read_text())
    held.kill()
    held.start()
    assert mounting.wait(DEADLINE) == 0
    assert sums(held.target) == sums(image.tree)
    held.umount()
    held.stop()


def test_kills_at_random_moments_cost_no_byte_and_no_reader(
    image: Image, packed: Path, held: Held, server: WebServer
) -> None:
    names = {"meta": image.meta, "blob": image.blob, "packed": packed}
    meta, blob, pack = serve(server, **names)
    targets = [held.dir("a"), held.dir("b")]
    held.mount(meta, blob, target=targets[0])
    held.mount(pack, target=targets[1])
    right, source = sums(image.tree), random.Random(5)
    size = sum(path.stat().st_size for path in names.values())
    server.rate = size / 60  # so that the kills fall into the fetching

    readers = [reader(target) for target in targets * 2]
    busy = 0
    for number in range(KILLS):
        time.sleep(source.uniform(0.0, 0.5))
        busy += any(each.poll() is None for each in readers)
        held.kill()
        if number % 5 == 0:
            drop_caches()
        held.start()
    server.rate = None
    assert busy >= KILLS // 2
    assert [checksums(each) for each in readers] == [right] * 4
    assert held.daemon is not None
    assert anonymous_fds(held.daemon.pid) <= len(names)
    for target in targets:
        held.umount(target)
    held.stop()
    held.assert_cached_right(*names.values())
