"""`--background`: what nobody has read comes too, and a mount after that is a direct one."""

import os
import signal

import pytest
from tests.e2e.harness import Image, Pagein, serve, sums, wait_for

from pagein.testing.webserver import WebServer

pytestmark = pytest.mark.root


def resident(pagein: Pagein) -> bool:
    """Whether all of each blob is here."""
    return all(blob["resident"] == blob["size"] for blob in pagein.status()["blobs"])


def test_a_mount_in_the_background_is_complete_without_a_reader(
    small: Image, pagein: Pagein, server: WebServer
) -> None:
    sources = serve(server, meta=small.meta, blob=small.blob)
    pagein.mount(*sources, options=("--background", "idle"))
    wait_for(lambda: resident(pagein))
    pagein.umount()
    pagein.mount(*sources)
    (mount,) = pagein.status()["mounts"]
    assert mount["direct"] is True
    assert sums(pagein.target) == sums(small.tree)


def test_the_user_half_that_takes_over_goes_on_after_the_next_read(
    small: Image, pagein: Pagein, server: WebServer
) -> None:
    sources = serve(server, meta=small.meta, blob=small.blob)
    pagein.mount(*sources, options=("--background", "200k"))
    first = pagein.status()["daemon_pid"]
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: pagein.replaced("daemon_pid", first))
    (pagein.target / "dir-1/5").read_bytes()  # until then no object is open for it
    fetched = sum(blob["resident"] for blob in pagein.status()["blobs"])
    wait_for(lambda: sum(blob["resident"] for blob in pagein.status()["blobs"]) > fetched)


def test_without_it_nothing_is_fetched_that_nobody_reads(
    small: Image, pagein: Pagein, server: WebServer
) -> None:
    pagein.mount(*serve(server, meta=small.meta, blob=small.blob))
    blob = max(pagein.status()["blobs"], key=lambda each: each["size"])
    assert blob["resident"] == 0


def test_what_is_no_policy_is_refused(small: Image, pagein: Pagein) -> None:
    done = pagein.run("mount", "--background", "fast", small.single, pagein.target)
    assert done.returncode == 1
    assert "--background fast: use off, idle, or bytes per second" in done.stderr
    assert done.stderr.count("\n") == 1
