"""`pagein cull` beside a pagein that runs: what is mounted stays, what is not goes."""

import json
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.devices import device_of
from tests.e2e.harness import Image, Pagein, pagein_in, serve, sums, wait_for
from tests.library.fulldisk import full, tiny

from pagein.testing.webserver import WebServer

pytestmark = pytest.mark.root

MIB = 1 << 20


@pytest.fixture
def small_cache(public_tmp: Path) -> Iterator[Pagein]:
    """A pagein whose cache is a file system of 64 MiB."""
    with (
        tiny("ext4 -b4096", public_tmp / "cache", 64) as cache,
        pagein_in(public_tmp, cache=cache) as mine,
    ):
        yield mine


def ready(fd: int) -> int:
    """What poll(2) says, with a deadline."""
    poller = select.poll()
    poller.register(fd, select.POLLIN | select.POLLOUT)
    return dict(poller.poll(100_000)).get(fd, 0)


def culled(text: str) -> list[str]:
    return [json.loads(line)["name"] for line in text.splitlines()]


def test_room_is_made_of_what_is_not_mounted(
    small_cache: Pagein, small: Image, server: WebServer
) -> None:
    pagein = small_cache
    sources = serve(server, meta=small.meta, blob=small.blob)
    pagein.mount(*sources)
    assert sums(pagein.target) == sums(small.tree)
    assert pagein.ok("cull").startswith("nothing goes: ")

    with full(pagein.cache, left=2 * MIB):
        done = pagein.run("cull")
        assert done.returncode == 1
        assert done.stdout.startswith("nothing goes; left alone, in use: 2: ")
        assert "what is left of it is in use" in done.stderr
        assert sums(pagein.target) == sums(small.tree)

        pagein.umount()
        wait_for(lambda: not pagein.leftovers())
        would = pagein.ok("cull", "--dry-run")
        assert "would be culled" in would
        assert would.splitlines()[-1].endswith(f"would be free where {pagein.cache} is")
        assert len(culled(pagein.ok("cull", "--dry-run", "--json"))) == len(would.splitlines()) - 1
        went = pagein.ok("cull").splitlines()
        assert "is free" in went[-1]
        assert 1 <= len(went) - 1 <= 2
        assert pagein.ok("cull").startswith("nothing goes: ")

    pagein.mount(*sources)  # and comes again
    assert sums(pagein.target) == sums(small.tree)
    pagein.umount()


def test_what_it_cannot_do_is_one_line(pagein: Pagein) -> None:
    done = pagein.run("cull")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"pagein: {pagein.cache}: No such file or directory\n"
    done = pagein.run("cull", "--dry-run", "--device", "/dev/null")
    assert done.returncode == 1
    assert done.stderr.startswith("pagein: --dry-run says what would go now")
    done = pagein.run("cull", "--run", "1")
    assert done.returncode == 2


def test_limits_outlive_the_kernel_half(small_cache: Pagein) -> None:
    """A new one has what a daemon set on the old one, whose open device it takes over."""
    pagein = small_cache
    with device_of(pagein) as path:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            for command in ("brun 99%", "bcull 98%", f"dir {pagein.cache}", "bind ondemand"):
                os.write(fd, command.encode())
            assert ready(fd) == select.POLLOUT  # no file system is that empty
            (half,) = [p for p, line in pagein.processes().items() if "pagein.kernelhalf" in line]
            os.kill(half, signal.SIGKILL)
            assert os.write(fd, b"bstop 97%") == 9  # which 5 % of cull would not allow
            assert ready(fd) == select.POLLOUT
            assert half not in pagein.processes()
        finally:
            os.close(fd)
