"""Complete blobs mounted as plain files: nothing may touch them. And mounts that cannot be so."""

import contextlib
import errno
import functools
import os
import signal
import subprocess
from pathlib import Path

import pytest
from tests.e2e.devices import daemon_on, device_of
from tests.e2e.harness import (
    DEADLINE,
    Image,
    Pagein,
    forget,
    mkfs,
    serve,
    sums,
    wait_for,
)

from pagein.testing.webserver import WebServer, serve_in_thread

pytestmark = pytest.mark.root

KEYS = ("key:erofs,test/meta", "key:erofs,test/blob")
OTHER = ("key:erofs,test/other", "key:erofs,test/blob")


def assert_right(pagein: Pagein, expected: dict[str, str], target: Path) -> None:
    """What is mounted is right when it is read from the disk, not from memory."""
    forget(*(target / name for name in expected))
    forget(*pagein.cache_files(), written=True)
    assert sums(target) == expected


def cached(pagein: Pagein) -> list[tuple[str, bytes, int]]:
    """The cache files, with the sizes of their objects and when they were changed."""
    return [
        (path.name, os.getxattr(path, "user.CacheFiles.cache"), path.stat().st_mtime_ns)
        for path in pagein.cache_files()
    ]


def mount_directly(pagein: Pagein, *sources: str) -> None:
    """Mount, read all, and mount again what is complete now."""
    pagein.mount(*sources)
    sums(pagein.target)
    pagein.umount()
    pagein.mount(*sources)
    (mount,) = pagein.status()["mounts"]
    assert mount["direct"] is True


def test_a_daemon_cannot_change_what_is_mounted_directly(small: Image, pagein: Pagein) -> None:
    pagein.cache.mkdir()
    # An image of the same blob, not in the cache: its mount opens the blob's object once more.
    again = pagein.directory / "again"
    split = ("--chunksize=1048576", f"--blobdev={again}", "-T7")
    other = mkfs(pagein.directory / "other", small.tree, *split)
    expected = sums(small.tree)
    second = pagein.dir("mnt2")
    with device_of(pagein) as path:
        files = {"meta": small.meta, "blob": small.blob, "other": other}
        with daemon_on(pagein, path, **files) as daemon:
            mount_directly(pagein, *KEYS)
            pagein.mount(*OTHER, target=second)
            assert [m["direct"] for m in pagein.status()["mounts"]] == [True, False]
            assert sums(second) == expected
            for offset in (0, 1 << 20):
                assert daemon.write("blob", offset) == errno.EBUSY
                assert_right(pagein, expected, pagein.target)
                assert_right(pagein, expected, second)
            assert daemon.write("other", 0) == 0  # which nobody has mounted directly
            pagein.umount(second)
            assert_right(pagein, expected, pagein.target)
            # With nobody else the object's file may be written again.
            pagein.umount()
        os.unlink(next(path for path in pagein.cache_files() if path.name == "Dother"))
        with daemon_on(pagein, path, **files) as daemon:
            pagein.mount(*OTHER, target=second)
            assert daemon.write("blob", 0) == 0
            pagein.umount(second)


def test_another_size_does_not_replace_what_is_mounted_directly(
    small: Image, pagein: Pagein
) -> None:
    pagein.cache.mkdir()
    expected = sums(small.tree)
    with device_of(pagein) as path:
        with daemon_on(pagein, path, meta=small.meta, blob=small.blob):
            mount_directly(pagein, *KEYS)
        before = cached(pagein)
        larger = f"{small.blob}:{small.blob.stat().st_size + 4096}"
        with daemon_on(pagein, path, meta=small.meta, blob=larger):
            target = pagein.dir("mnt2")
            done = pagein.run("mount", KEYS[0], "--device", KEYS[1], target)
            assert (done.returncode, done.stderr.count("\n")) == (1, 1), done
            assert f"{KEYS[1]}: cache file is in use" in done.stderr
            assert_right(pagein, expected, pagein.target)
            assert cached(pagein) == before
            # Once it is not mounted any more the stale file goes.
            pagein.umount()
            pagein.mount(*KEYS)
            assert cached(pagein) != before
            assert sums(pagein.target) == expected
            pagein.umount()


def test_what_else_happens_around_a_direct_mount(
    small: Image, server: WebServer, pagein: Pagein
) -> None:
    urls = serve(server, meta=small.meta, blob=small.blob)
    expected = sums(small.tree)
    mount_directly(pagein, *urls)

    second = pagein.dir("mnt2")
    pagein.mount(*urls, target=second)
    assert [m["direct"] for m in pagein.status()["mounts"]] == [True, True]
    assert_right(pagein, expected, pagein.target)
    pagein.umount(second)
    assert_right(pagein, expected, pagein.target)

    found = pagein.status()
    for half in ("pid", "daemon_pid"):
        os.kill(found[half], signal.SIGKILL)
        wait_for(functools.partial(pagein.replaced, half, found[half]))
        assert_right(pagein, expected, pagein.target)

    rival = Pagein(pagein.dir("rival"), cache=pagein.cache)
    refused = rival.run("device")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "in use" in refused.stderr
    assert_right(pagein, expected, pagein.target)

    pagein.mount(*urls, target=second)
    pagein.umount()
    pagein.umount(second)
    assert pagein.leftovers() == []
    assert pagein.assert_cached_right(small.meta, small.blob) > 0


def test_a_file_with_a_writer_is_not_mounted_directly(
    small: Image, server: WebServer, pagein: Pagein
) -> None:
    (url,) = serve(server, single=small.single)
    mount_directly(pagein, url)
    pagein.umount()
    (file,) = pagein.cache_files()
    with file.open("r+b"):
        pagein.mount(url)
        assert pagein.status()["mounts"][0]["direct"] is False
        assert sums(pagein.target) == sums(small.tree)
        pagein.umount()
    pagein.mount(url)
    assert pagein.status()["mounts"][0]["direct"] is True
    pagein.umount()


def test_a_file_that_somebody_copies_is_still_filled(
    small: Image, server: WebServer, pagein: Pagein
) -> None:
    (url,) = serve(server, single=small.single)
    pagein.mount(url)
    pagein.umount()
    (file,) = pagein.cache_files()
    with file.open("rb"):
        pagein.mount(url)
        assert sums(pagein.target) == sums(small.tree)
        pagein.umount()


# ---- through loop devices, from tmpfs -----------------------------------------------------------


def loop_devices_of(pagein: Pagein) -> list[str]:
    """The files below this pagein that loop devices stand on."""
    files = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # somebody else's, detached just now
            files.append(path.read_text().strip())
    return [file for file in files if file.startswith(str(pagein.directory))]


def test_loop_devices(small: Image, server: WebServer, pagein: Pagein) -> None:
    urls = serve(server, meta=small.meta, blob=small.blob)
    expected = sums(small.tree)
    for _ in range(2):  # from an empty cache, and from a complete one
        pagein.mount(*urls, options=("--loop",))
        assert len(loop_devices_of(pagein)) == 2
        assert pagein.status()["mounts"][0]["direct"] is False
        assert sums(pagein.target) == expected
        pagein.umount()
        wait_for(lambda: not loop_devices_of(pagein))
        assert pagein.leftovers() == []
    pagein.assert_cached_right(small.meta, small.blob)


def test_a_cache_on_tmpfs(small: Image, pagein: Pagein) -> None:
    pagein.cache.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(pagein.cache)]
    subprocess.run(command, check=True, timeout=DEADLINE)
    try:
        with serve_in_thread(WebServer({})) as server:
            urls = serve(server, meta=small.meta, blob=small.blob)
            pagein.mount(*urls)
            assert sums(pagein.target) == sums(small.tree)
            pagein.umount()
        # Complete, but EROFS cannot be mounted from a file on tmpfs.
        pagein.mount(*urls, options=("--timeout", "5"))
        assert pagein.status()["mounts"][0]["direct"] is False
        assert_right(pagein, sums(small.tree), pagein.target)
        pagein.umount()
        assert loop_devices_of(pagein) == []
        pagein.assert_cached_right(small.meta, small.blob)
    finally:
        subprocess.run(["umount", str(pagein.cache)], check=True, timeout=DEADLINE)
