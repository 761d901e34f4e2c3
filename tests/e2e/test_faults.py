"""A server that lies, fails or hangs: EIO, a log line that says why, and nothing wrong kept."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.harness import Image, Pagein, mkfs, once_it_works, pagein_in, read_errno, serve, sums

from pagein.testing.webserver import Fault, WebServer, serve_in_thread

pytestmark = pytest.mark.root

MIB = 1 << 20

# What the server does, and words of the log line that say so.
FAULTS = {
    "403": (Fault("status", 403), "403"),
    "404": (Fault("status", 404), "404"),
    "500": (Fault("status", 500), "500"),
    "416": (Fault("status", 416), "416"),
    "range ignored": (Fault("ignore_range"), "range"),
    "short body": (Fault("short_body", after=100), "before the end"),
    "short body of a right length": (Fault("short_length"), "announced"),
    "long body": (Fault("long_body"), "announced"),
    "another range": (Fault("wrong_content_range"), "answered with bytes"),
    "another size": (Fault("wrong_total"), "changed"),
    "another ETag": (Fault("change_etag"), "changed"),
    "compressed": (Fault("extra_encoding"), "ncod"),
    "silence": (Fault("hang"), "no answer within"),
    "silence in the middle": (Fault("hang", after=100), "no data for"),
    "reset": (Fault("reset"), "lost"),
    "reset in the middle": (Fault("reset", after=100), "before the end"),
}


@pytest.fixture(scope="module")
def served(
    small: Image, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Pagein, WebServer]]:
    """A mount with a deadline of 3 seconds, for all faults: whoever spoils it spoils the rest."""
    directory = tmp_path_factory.mktemp("faults")
    with serve_in_thread(WebServer({})) as server, pagein_in(directory) as pagein:
        urls = serve(server, meta=small.meta, blob=small.blob)
        pagein.mount(*urls, options=("--timeout", "3", "--daemon-user", "root"))
        yield pagein, server
        server.faults = None
        assert once_it_works(lambda: sums(pagein.target)) == sums(small.tree)
        pagein.umount()
        assert pagein.assert_cached_right(small.meta, small.blob) > 16 * MIB
        assert "Traceback" not in pagein.log()


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_an_io_error_until_it_is_over(
    name: str, small: Image, served: tuple[Pagein, WebServer]
) -> None:
    pagein, server = served
    fault, words = FAULTS[name]
    number = list(FAULTS).index(name)
    file = sorted(path for path in small.files if path.parent.name == "large")[number // 4]
    offset = number % 4 * MIB + 12345
    before = len(pagein.log())
    server.faults = lambda *_: fault
    assert read_errno(pagein.target / file, offset) == errno.EIO
    said = [line for line in pagein.log()[before:].splitlines() if " failed: " in line]
    # One deadline, not one for each page that the kernel asks for anew.
    assert 1 <= len(said) < 8
    assert server.url("/blob") in said[0]
    assert words in said[0]
    print(said[0])
    server.faults = None
    with (pagein.target / file).open("rb") as opened:
        found = once_it_works(lambda: os.pread(opened.fileno(), 50_000, offset))
    assert found == (small.tree / file).read_bytes()[offset : offset + 50_000]


def changed(small: Image, directory: Path, size: int) -> Path:
    """Another file in place of the blob: all bytes differ, and the time; `size` more bytes."""
    path = directory / "changed"
    inverted = bytes(255 - value for value in range(256))
    path.write_bytes(small.blob.read_bytes().translate(inverted) + bytes(size))
    other = small.blob.stat().st_mtime_ns + 5 * 10**9
    os.utime(path, ns=(other, other))
    return path


@pytest.mark.parametrize(
    ("validators", "more"),
    [(("ETag",), 0), (("Last-Modified",), 0), ((), 4096)],
    ids=["ETag", "Last-Modified", "size"],
)
def test_content_that_changes_under_us_is_never_mixed(
    validators: tuple[str, ...], more: int, small: Image, server: WebServer, pagein: Pagein
) -> None:
    server.validators = validators
    urls = serve(server, meta=small.meta, blob=small.blob)
    pagein.mount(*urls, options=("--timeout", "20"))
    file = pagein.target / "large/1"
    assert read_errno(file) == 0
    serve(server, meta=small.meta, blob=changed(small, pagein.directory, more))
    assert read_errno(file, 3 * MIB) == errno.EIO
    said = [line for line in pagein.log().splitlines() if " failed: " in line]
    assert urls[1] in said[0]
    assert "changed" in said[0]
    assert read_errno(file) == 0  # what is here is still right
    serve(server, meta=small.meta, blob=small.blob)
    assert once_it_works(lambda: sums(pagein.target)) == sums(small.tree)
    pagein.umount()
    pagein.assert_cached_right(small.meta, small.blob)


def test_other_content_under_the_same_url_is_another_blob(
    small: Image, server: WebServer, pagein: Pagein
) -> None:
    (url,) = serve(server, image=small.single)
    pagein.mount(url)
    assert sums(pagein.target) == sums(small.tree)
    pagein.umount()
    tree = pagein.dir("other")
    (tree / "file").write_bytes(b"other")
    serve(server, image=mkfs(pagein.directory / "other.erofs", tree))
    pagein.mount(url)
    assert list(sums(pagein.target)) == ["./file"]
    assert (pagein.target / "file").read_bytes() == b"other"
    pagein.umount()
    assert len(pagein.cache_files()) == 2
