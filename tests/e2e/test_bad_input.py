"""What a user gets wrong: exit code 1, one line that names it and says what to do, nothing left."""

import errno
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.e2e.harness import Image, Pagein, read_errno, serve
from tests.ports import quiet_port

from pagein.testing.webserver import Fault, WebServer

pytestmark = pytest.mark.root


def refused(pagein: Pagein, *arguments: object, naming: object, saying: str) -> None:
    """Run a command that must fail as the user should see it."""
    done = pagein.run(*arguments)
    print(done.stderr, end="")
    assert done.returncode == 1, (done, pagein.log())
    assert done.stdout == ""
    assert done.stderr.startswith("pagein: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert str(naming) in done.stderr
    assert saying in done.stderr
    assert "Traceback" not in pagein.log()


def refused_and_gone(pagein: Pagein, *arguments: object, naming: object, saying: str) -> None:
    """As `refused`; when the command ends, everything it started has ended."""
    refused(pagein, *arguments, naming=naming, saying=saying)
    assert pagein.leftovers() == []


@contextmanager
def mounted(*arguments: object, at: Path) -> Iterator[None]:
    """A mount that has nothing to do with pagein."""
    words = [str(word) for word in (*arguments, at)]
    subprocess.run(["mount", *words], check=True, timeout=200, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", at], check=True, timeout=200)


# ---- sources ------------------------------------------------------------------------------------


def test_no_such_url(server: WebServer, pagein: Pagein) -> None:
    url = server.url("/nope")
    refused_and_gone(pagein, "mount", url, pagein.target, naming=url, saying="check the URL")


def test_a_server_that_is_not_running(pagein: Pagein) -> None:
    url = f"http://127.0.0.1:{quiet_port()}/image"
    refused_and_gone(
        pagein, "mount", url, pagein.target, naming=url, saying="is the server running"
    )


def test_a_host_that_does_not_exist(pagein: Pagein) -> None:
    url = "http://no-such-host.invalid/image"
    refused_and_gone(
        pagein, "mount", "--timeout", "3", url, pagein.target, naming=url, saying="pagein: http"
    )


def test_a_server_without_ranges(server: WebServer, small: Image, pagein: Pagein) -> None:
    (url,) = serve(server, image=small.single)
    server.faults = lambda *_: Fault("ignore_range")
    refused_and_gone(pagein, "mount", url, pagein.target, naming=url, saying="supports Range")


def test_a_scheme_nobody_knows(pagein: Pagein) -> None:
    url = "ftp://127.0.0.1/image"
    refused_and_gone(pagein, "mount", url, pagein.target, naming=url, saying="use an http")


def test_no_such_file(pagein: Pagein) -> None:
    path = pagein.directory / "nope"
    refused_and_gone(pagein, "mount", path, pagein.target, naming=path, saying="no such file")


def test_a_directory_in_place_of_a_file(pagein: Pagein) -> None:
    path = pagein.dir("tree")
    refused_and_gone(pagein, "mount", path, pagein.target, naming=path, saying="file")


def test_a_file_that_the_daemon_may_not_read(pagein: Pagein) -> None:
    path = pagein.directory / "secret"
    path.write_bytes(bytes(8192))
    path.chmod(0o600)
    refused_and_gone(pagein, "mount", path, pagein.target, naming=path, saying="make it readable")


def test_an_empty_file(server: WebServer, pagein: Pagein) -> None:
    server.files = {"/empty": b""}
    url = server.url("/empty")
    refused_and_gone(pagein, "mount", url, pagein.target, naming=url, saying="empty")


@pytest.mark.parametrize("size", [100, 1 << 20])
def test_not_an_image(size: int, server: WebServer, pagein: Pagein) -> None:
    server.files = {"/image": b"no image" * (size // 8)}
    url = server.url("/image")
    refused_and_gone(pagein, "mount", url, pagein.target, naming=url, saying="not an EROFS image")


def test_a_truncated_image(server: WebServer, small: Image, pagein: Pagein) -> None:
    whole = small.single.read_bytes()
    server.files = {"/image": whole[: len(whole) // 2 & -4096]}
    url = server.url("/image")
    refused_and_gone(pagein, "mount", url, pagein.target, naming=url, saying="cut off")


def test_a_truncated_device(server: WebServer, small: Image, pagein: Pagein) -> None:
    urls = serve(server, meta=small.meta, blob=small.blob)
    server.files = {"/meta": small.meta, "/blob": small.blob.read_bytes()[:-8192]}
    # mkfs.erofs does not note the length of a device: only a read can tell.
    pagein.mount(*urls)
    last = small.files[-1]
    assert read_errno(pagein.target / last, 4 << 20) == errno.EIO
    assert (pagein.target / "dir-1/5").read_bytes() == (small.tree / "dir-1/5").read_bytes()
    pagein.umount()


def test_a_missing_device(server: WebServer, small: Image, pagein: Pagein) -> None:
    (url,) = serve(server, meta=small.meta)
    refused_and_gone(pagein, "mount", url, pagein.target, naming=url, saying="--device")


def test_a_device_too_many(server: WebServer, small: Image, pagein: Pagein) -> None:
    urls = serve(server, single=small.single, blob=small.blob)
    refused_and_gone(
        pagein,
        *("mount", urls[0], "--device", urls[1], pagein.target),
        naming=urls[0],
        saying="--device",
    )


def test_metadata_and_device_in_the_wrong_order(
    server: WebServer, small: Image, pagein: Pagein
) -> None:
    urls = serve(server, blob=small.blob, meta=small.meta)
    refused_and_gone(
        pagein,
        *("mount", urls[0], "--device", urls[1], pagein.target),
        naming=urls[0],
        saying="not an EROFS image",
    )


def test_a_key_that_is_none(pagein: Pagein) -> None:
    refused_and_gone(
        pagein, "mount", "key:what", pagein.target, naming="key:what", saying="key:VOLUME/COOKIE"
    )


# ---- mount points -------------------------------------------------------------------------------


def test_a_mount_point_that_does_not_exist(server: WebServer, small: Image, pagein: Pagein) -> None:
    (url,) = serve(server, single=small.single)
    path = pagein.directory / "nope"
    refused_and_gone(pagein, "mount", url, path, naming=path, saying="create it first")


def test_a_mount_point_that_is_a_file(server: WebServer, small: Image, pagein: Pagein) -> None:
    (url,) = serve(server, single=small.single)
    path = pagein.directory / "file"
    path.touch()
    refused_and_gone(pagein, "mount", url, path, naming=path, saying="not a directory")


def test_a_mount_point_that_others_use(server: WebServer, small: Image, pagein: Pagein) -> None:
    (url,) = serve(server, single=small.single)
    target = pagein.target
    with mounted("-t", "tmpfs", "none", at=target):
        refused(pagein, "mount", url, target, naming=target, saying="choose another")
        assert pagein.processes() == {}


def test_a_mount_point_that_we_use(server: WebServer, small: Image, pagein: Pagein) -> None:
    (url,) = serve(server, single=small.single)
    pagein.mount(url)
    refused(pagein, "mount", url, pagein.target, naming=pagein.target, saying="already mounted")
    assert (pagein.target / "dir-1/5").read_bytes() == (small.tree / "dir-1/5").read_bytes()
    pagein.umount()


# ---- caches -------------------------------------------------------------------------------------


def refused_cache(pagein: Pagein, server: WebServer, small: Image, saying: str) -> None:
    (url,) = serve(server, single=small.single)
    refused_and_gone(pagein, "mount", url, pagein.target, naming=pagein.cache, saying=saying)


def test_a_file_in_place_of_the_cache(server: WebServer, small: Image, pagein: Pagein) -> None:
    pagein.cache.touch()
    refused_cache(pagein, server, small, "choose another with --cache")


def test_a_cache_below_a_file(server: WebServer, small: Image, pagein: Pagein) -> None:
    (pagein.directory / "file").touch()
    pagein.cache = pagein.directory / "file/cache"
    refused_cache(pagein, server, small, "choose another with --cache")


def test_a_read_only_cache(server: WebServer, small: Image, pagein: Pagein) -> None:
    pagein.cache.mkdir()
    with mounted("-t", "tmpfs", "-o", "ro", "none", at=pagein.cache):
        refused_cache(pagein, server, small, "choose another with --cache")


def test_a_cache_on_tmpfs_with_huge_pages(server: WebServer, small: Image, pagein: Pagein) -> None:
    pagein.cache.mkdir()
    with mounted("-t", "tmpfs", "-o", "huge=always", "none", at=pagein.cache):
        refused_cache(pagein, server, small, "does not tell holes exactly")


def test_a_cache_on_xfs_with_an_extent_size_hint(
    server: WebServer, small: Image, pagein: Pagein
) -> None:
    pagein.cache.mkdir()
    disk = pagein.directory / "disk"
    with disk.open("wb") as file:
        file.truncate(320 << 20)
    subprocess.run(["mkfs.xfs", "-q", disk], check=True, timeout=200)
    with mounted("-o", "loop", disk, at=pagein.cache):
        command = ["xfs_io", "-c", "extsize 1m", str(pagein.cache)]
        subprocess.run(command, check=True, timeout=200, capture_output=True)
        refused_cache(pagein, server, small, "does not tell holes exactly")


def test_a_cache_that_another_pagein_uses(server: WebServer, small: Image, pagein: Pagein) -> None:
    (url,) = serve(server, single=small.single)
    pagein.mount(url)
    directory = pagein.dir("other")
    other = Pagein(directory, cache=pagein.cache)
    refused_and_gone(other, "mount", url, other.target, naming=pagein.cache, saying="in use")
    assert (pagein.target / "dir-1/5").read_bytes() == (small.tree / "dir-1/5").read_bytes()
    pagein.umount()


def test_a_runtime_directory_that_is_a_file(
    server: WebServer, small: Image, pagein: Pagein
) -> None:
    (url,) = serve(server, single=small.single)
    pagein.state.touch()
    done = pagein.run("mount", url, pagein.target)
    pagein.state.unlink()
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done
    assert str(pagein.state) in done.stderr


def test_a_user_nobody_knows(server: WebServer, small: Image, pagein: Pagein) -> None:
    (url,) = serve(server, single=small.single)
    refused_and_gone(
        pagein,
        *("mount", "--daemon-user", "no-such-user", url, pagein.target),
        naming="no-such-user",
        saying="--daemon-user",
    )


# ---- other commands -----------------------------------------------------------------------------


def test_a_device_that_is_held(server: WebServer, small: Image, pagein: Pagein) -> None:
    (url,) = serve(server, single=small.single)
    pagein.mount(url)
    device = pagein.state / "dev/cachefiles"
    refused(pagein, "daemon", "--device", device, naming=device, saying="another daemon holds")
    assert (pagein.target / "dir-1/5").read_bytes() == (small.tree / "dir-1/5").read_bytes()
    pagein.umount()


def test_a_device_that_does_not_exist(pagein: Pagein) -> None:
    device = pagein.directory / "nope"
    refused_and_gone(pagein, "daemon", "--device", device, naming=device, saying="pagein device")


def test_umount_of_what_is_not_mounted(server: WebServer, small: Image, pagein: Pagein) -> None:
    def not_ours(pagein: Pagein) -> None:
        words = "not mounted by pagein"
        refused(pagein, "umount", pagein.target, naming=pagein.target, saying=words)

    not_ours(pagein)
    assert pagein.leftovers() == []
    refused_and_gone(
        pagein, "umount", pagein.directory / "nope", naming="nope", saying="not mounted by pagein"
    )
    with mounted("-t", "tmpfs", "none", at=pagein.target):
        not_ours(pagein)
    (url,) = serve(server, single=small.single)
    pagein.mount(url, target=pagein.dir("elsewhere"))
    not_ours(pagein)
    pagein.umount(pagein.dir("elsewhere"))


def test_umount_of_what_is_in_use(server: WebServer, small: Image, pagein: Pagein) -> None:
    (url,) = serve(server, single=small.single)
    pagein.mount(url)
    with (pagein.target / "dir-1/5").open("rb"):
        refused(pagein, "umount", pagein.target, naming=pagein.target, saying="--lazy")
    pagein.umount()
