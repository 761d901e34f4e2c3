"""Copies of an image on other web servers: asked first, and the sources when they do not do."""

import errno
from collections.abc import Iterator

import pytest
from tests.e2e.harness import Image, Pagein, ranges_of, read_errno, serve, sums, wait_for

from pagein.testing.webserver import Fault, WebServer, serve_in_thread

pytestmark = pytest.mark.root


@pytest.fixture
def copies(small: Image) -> Iterator[tuple[WebServer, WebServer]]:
    """A server, and another one with the same files below /copies/."""
    with serve_in_thread(WebServer({})) as source, serve_in_thread(WebServer({})) as mirror:
        serve(source, meta=small.meta, blob=small.blob)
        mirror.files = {"/copies/meta": small.meta, "/copies/blob": small.blob}
        yield source, mirror


def mount(pagein: Pagein, source: WebServer, *mirrors: str, **options: object) -> None:
    words = [word for mirror in mirrors for word in ("--mirror", mirror)]
    words += [f"{word}" for name, value in options.items() for word in (f"--{name}", value)]
    pagein.mount(source.url("/meta"), source.url("/blob"), options=tuple(words))


def fetched(server: WebServer, prefix: str = "") -> int:
    """Bytes that were asked for, but for the look that each mount takes."""
    paths = (f"{prefix}/meta", f"{prefix}/blob")
    return sum(end - start for path in paths for start, end in ranges_of(server, path))


def test_all_comes_from_the_mirror_while_it_does(
    small: Image, pagein: Pagein, copies: tuple[WebServer, WebServer]
) -> None:
    source, mirror = copies
    mount(pagein, source, mirror.url("/copies/"))
    assert (pagein.target / "large/0").read_bytes() == (small.tree / "large/0").read_bytes()
    assert fetched(source) == 0
    mirror.faults = lambda *_: Fault("reset")
    assert sums(pagein.target) == sums(small.tree)
    assert fetched(source) > 0
    assert pagein.assert_cached_right(small.meta, small.blob)
    servers = {each["server"]: each for each in pagein.status()["servers"]}
    assert servers[mirror.url("")]["last_error"] == "the connection was lost"
    pagein.umount()


def test_a_source_that_is_away_at_the_start_has_a_mirror(
    small: Image, pagein: Pagein, copies: tuple[WebServer, WebServer]
) -> None:
    """What was read of it is there for the source as well: it is the same content."""
    source, mirror = copies
    source.faults = lambda *_: Fault("status", code=500)
    mount(pagein, source, mirror.url("/copies/"))
    assert sums(pagein.target) == sums(small.tree)
    assert (fetched(source), source.bytes_sent) == (0, 0)
    pagein.umount()
    source.faults = None
    source.requests.clear()
    mount(pagein, source)
    assert pagein.status()["mounts"][0]["direct"]
    assert fetched(source) == 0


def test_a_mirror_with_another_content_is_not_used(
    small: Image, pagein: Pagein, copies: tuple[WebServer, WebServer]
) -> None:
    source, mirror = copies
    mirror.files = {"/copies/meta": small.meta, "/copies/blob": bytes(small.blob.stat().st_size)}
    mount(pagein, source, mirror.url("/copies/"))
    assert sums(pagein.target) == sums(small.tree)
    assert f"{mirror.url('/copies/blob')}: content changed" in pagein.log()
    pagein.assert_cached_right(small.meta, small.blob)


@pytest.mark.parametrize(
    ("mirror", "text"),
    [
        ("ftp://m.example/", "--mirror ftp://m.example/: use an http(s) URL"),
        ("http://m.example/blob", "--mirror: with --device it ends in /"),
    ],
)
def test_a_mirror_that_makes_no_sense(
    mirror: str, text: str, pagein: Pagein, copies: tuple[WebServer, WebServer]
) -> None:
    urls = copies[0].url("/meta"), "--device", copies[0].url("/blob")
    done = pagein.run("mount", "--mirror", mirror, *urls, pagein.target)
    assert (done.returncode, done.stdout) == (1, "")
    assert text in done.stderr
    done = pagein.run("mount", "--mirror", "http://m/", "docker://r.example/x", pagein.target)
    assert "--mirror: for EROFS images; for registries see --hosts-dir" in done.stderr
    assert pagein.leftovers() == []


def test_without_a_validator_no_mirror_is_believed(
    pagein: Pagein, copies: tuple[WebServer, WebServer]
) -> None:
    source, mirror = copies
    source.validators = ()
    urls = source.url("/meta"), "--device", source.url("/blob")
    done = pagein.run("mount", "--mirror", mirror.url("/copies/"), *urls, pagein.target)
    assert done.returncode == 1
    assert f"{source.url('/meta')}: tells neither ETag nor Last-Modified" in done.stderr
    assert pagein.leftovers() == []


def test_reads_of_a_dead_server_fail_at_once_and_it_comes_back_by_itself(
    small: Image, pagein: Pagein, copies: tuple[WebServer, WebServer]
) -> None:
    source, _ = copies
    mount(pagein, source, **{"fail-after": 0.5})
    source.faults = lambda *_: Fault("reset")
    path = pagein.target / "large/1"
    # The deadline of this read is 30 seconds: it fails before.
    assert read_errno(path, 1 << 20) == errno.EIO
    assert "counts as dead: the connection was lost; what needs it fails at once" in pagein.log()
    assert f"{source.url('')}: dead for" in pagein.ok("status")
    source.faults = None
    wait_for(lambda: not read_errno(path, 1 << 20), patience=60)
    assert f"{source.url('')} answers again" in pagein.log()
    assert path.read_bytes() == (small.tree / "large/1").read_bytes()
