"""What is in memory reaches neither half, and what is cold is fetched once."""

import hashlib
import itertools
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tests.e2e.harness import DEADLINE, Image, Pagein, ranges_of, serve, sums, wait_for
from tests.ending import killed
from tests.pagecache import drops, in_memory

from pagein.testing.webserver import WebServer

pytestmark = pytest.mark.root

Ticks = tuple[int, int]
UNDISTURBED = 3
"""How often a check fails, with nobody else to be seen, until it has failed."""
EMPTY = hashlib.sha256(b"").hexdigest()


def ticks(pid: int) -> Ticks:
    """Processor time that a process has used, as user and as system, in ticks."""
    fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    return int(fields[11]), int(fields[12])


def at_rest(pids: Sequence[int]) -> list[Ticks]:
    """The ticks of processes once they do nothing more."""
    last = [ticks(pid) for pid in pids]

    def unchanged() -> bool:
        nonlocal last
        time.sleep(0.3)
        before, last = last, [ticks(pid) for pid in pids]
        return before == last

    wait_for(unchanged)
    return last


@contextmanager
def mount_watch() -> Iterator[Callable[[], bool]]:
    """Yields how to ask whether somebody has mounted something, which wakes every kernel half."""
    with open("/proc/self/mountinfo") as file:
        poll = select.poll()
        poll.register(file, select.POLLPRI)
        yield lambda: bool(poll.poll(0))


def undisturbed(check: Callable[[], None]) -> None:
    """Do a check; again if somebody else on this machine interfered meanwhile.

    Also a few times if nobody seems to have: some day a half ends a connection that it kept alive.
    """
    alone = 0
    with mount_watch() as mounted:
        for _ in range(30):
            mounted()
            dropped = drops()
            try:
                return check()
            except AssertionError:
                alone += not mounted() and drops() == dropped
                if alone == UNDISTURBED:
                    raise
    pytest.fail("this machine is too busy to tell")


@pytest.mark.parametrize("form", ["fuse", "direct"])
def test_a_repeated_read_reaches_neither_half(
    form: str, small: Image, server: WebServer, pagein: Pagein
) -> None:
    urls = serve(server, meta=small.meta, blob=small.blob)
    pagein.mount(*urls)
    expected = sums(pagein.target)
    if form == "direct":
        pagein.umount()
        pagein.mount(*urls)
        assert sums(pagein.target) == expected
    before = pagein.status()
    assert before["mounts"][0]["direct"] is (form == "direct")
    pids = [before["pid"], before["daemon_pid"]]
    sent = server.bytes_sent

    def check() -> None:
        requests = pagein.status()["fuse_requests"]
        resting = at_rest(pids)
        for _ in range(3):
            assert sums(pagein.target) == expected
        after = [ticks(pid) for pid in pids]
        assert pagein.status()["fuse_requests"] == requests
        assert after == resting

    with in_memory(pagein.target / name for name in small.files if expected[f"./{name}"] != EMPTY):
        undisturbed(check)
    assert server.bytes_sent == sent
    pagein.umount()


def test_an_idle_pagein_sleeps(small: Image, server: WebServer, pagein: Pagein) -> None:
    pagein.mount(*serve(server, single=small.single))
    (pagein.target / "large/0").read_bytes()
    found = pagein.status()
    with mount_watch() as mounted:

        def idle() -> bool:
            mounted()
            before = switches(pagein)
            time.sleep(2.5)
            after = switches(pagein)
            # Some day the daemon's loop has to end the connections it keeps alive.
            after[found["daemon_pid"]] = before[found["daemon_pid"]]
            if mounted():
                after[found["pid"]] = before[found["pid"]]  # was told so, and looked
            return before == after

        wait_for(idle)  # what it does at the end of its work may take a while
    pagein.umount()


def switches(pagein: Pagein) -> dict[int, str]:
    """How often each thread of a pagein was stopped or has gone to sleep."""
    found = {}
    for pid in pagein.processes():
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):  # it has ended
                status = (task / "status").read_text()
                found[int(task.name)] = status.partition("voluntary_ctxt_switches")[2]
    return found


READERS = """
import hashlib, os, sys, threading
path, offset, length, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
barrier = threading.Barrier(count)
found = set()
def read():
    fd = os.open(path, os.O_RDONLY)
    barrier.wait()
    found.add(hashlib.sha256(os.pread(fd, length, offset)).hexdigest())
    os.close(fd)
threads = [threading.Thread(target=read) for _ in range(count)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(*found)
"""


def test_many_readers_of_a_cold_range_cause_one_fetch(
    small: Image, server: WebServer, pagein: Pagein
) -> None:
    server.latency = 0.2  # so that all of them are waiting when the bytes come
    pagein.mount(*serve(server, meta=small.meta, blob=small.blob))
    assert ranges_of(server, "/blob") == []
    arguments = [str(pagein.target / "large/0"), str(1 << 20), "4096", "32"]
    done = subprocess.run(
        [sys.executable, "-c", READERS, *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE,
    )
    data = (small.tree / "large/0").read_bytes()[1 << 20 :][:4096]
    assert done.stdout.split() == [hashlib.sha256(data).hexdigest()]
    fetched = ranges_of(server, "/blob")
    assert len(fetched) == 1
    assert pagein.status()["oldest_read"] is None
    pagein.umount()


def test_readers_in_processes_of_their_own_fetch_nothing_twice(
    small: Image, server: WebServer, pagein: Pagein
) -> None:
    server.latency = 0.02
    pagein.mount(*serve(server, meta=small.meta, blob=small.blob))
    command = ["sha256sum", str(pagein.target / "large/1")]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    with killed(*readers):
        found = {reader.communicate(timeout=DEADLINE)[0].split()[0] for reader in readers}
    assert found == {sums(small.tree)["./large/1"]}
    fetched = sorted(ranges_of(server, "/blob"))
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(fetched))
    pagein.umount()
