"""A mount whose cache is on a disk that is full: EIO with the reason, nothing wrong, recovery."""

import errno
import os
import signal
from pathlib import Path

import pytest
from tests.e2e.harness import (
    Image,
    forget,
    once_it_works,
    pagein_in,
    read_errno,
    serve,
    sums,
    wait_for,
)
from tests.library.fulldisk import KINDS, full, tiny

from pagein.testing.webserver import WebServer

pytestmark = pytest.mark.root

MIB = 1 << 20


@pytest.mark.parametrize("kind", KINDS)
def test_full_and_then_not(kind: str, small: Image, server: WebServer, public_tmp: Path) -> None:
    with (
        tiny(kind, public_tmp / "cache", 26) as cache,
        pagein_in(public_tmp, cache=cache) as pagein,
    ):
        pagein.mount(*serve(server, meta=small.meta, blob=small.blob), options=("--timeout", "20"))
        large, source = pagein.target / "large", small.tree / "large"
        assert piece(large / "0") == piece(source / "0")
        disk = os.statvfs(cache)
        kept = disk.f_blocks * disk.f_frsize // 100  # never given to a cache (facts 11)
        with full(cache, left=kept + 700_000):
            offsets = range(0, 4 * MIB, 128 << 10)
            answers = {read_errno(large / "1", at, 128 << 10) for at in offsets}
            # Of btrfs nothing is free by its own account, long before it is full.
            assert answers == ({errno.EIO} if kind == "btrfs" else {0, errno.EIO})
            assert "No space left" in pagein.log()
            forget(large / "0")
            assert piece(large / "0") == piece(source / "0")
            kill_kernel_half(pagein.processes())  # the next one binds the full directory
            forget(large / "0")
            assert piece(large / "0") == piece(source / "0")
        assert once_it_works(lambda: sums(pagein.target)) == sums(small.tree)
        pagein.umount()
        wait_for(lambda: not pagein.leftovers())
        pagein.assert_cached_right(small.meta, small.blob)
        assert "Traceback" not in pagein.log()


def piece(path: Path) -> bytes:
    """The first pages of a file."""
    with path.open("rb") as file:
        return file.read(16 << 10)


def kill_kernel_half(processes: dict[int, str]) -> None:
    """Without a warning."""
    (pid,) = [pid for pid, line in processes.items() if "pagein.kernelhalf" in line]
    os.kill(pid, signal.SIGKILL)
