"""Without the server: what is here is read, what is not is EIO, and works when it is back."""

import errno

import pytest
from tests.e2e.harness import Image, Pagein, forget, listing, once_it_works, read_errno, serve, sums
from tests.e2e.readers import Reader
from tests.ports import quiet_port

from pagein.testing.webserver import WebServer, serve_in_thread

pytestmark = pytest.mark.root


def test_a_complete_image_is_mounted_directly_without_the_server(
    small: Image, pagein: Pagein
) -> None:
    expected = sums(small.tree)
    with serve_in_thread(WebServer({})) as server:
        urls = serve(server, meta=small.meta, blob=small.blob)
        pagein.mount(*urls)
        assert pagein.status()["mounts"][0]["direct"] is False
        assert sums(pagein.target) == expected
    forget(*(pagein.target / name for name in small.files))
    assert sums(pagein.target) == expected  # from the cache, through the mount it had
    pagein.umount()
    for _ in range(2):
        pagein.mount(*urls, options=("--timeout", "4"))
        (mount,) = pagein.status()["mounts"]
        assert mount["direct"] is True
        forget(*(pagein.target / name for name in small.files))
        assert sums(pagein.target) == expected
        pagein.umount()
        assert pagein.leftovers() == []
    assert "Traceback" not in pagein.log()


def test_an_incomplete_image_without_the_server(small: Image, pagein: Pagein) -> None:
    there, missing = pagein.target / "dir-1/5", pagein.target / "large/1"
    port = quiet_port()
    with serve_in_thread(WebServer({}, port=port)) as server:
        urls = serve(server, meta=small.meta, blob=small.blob)
        pagein.mount(*urls)
        names = listing(pagein.target)
        content = there.read_bytes()
        pagein.umount()
    pagein.mount(*urls, options=("--timeout", "4"))
    assert listing(pagein.target) == names
    forget(there)
    assert there.read_bytes() == content == (small.tree / "dir-1/5").read_bytes()
    assert read_errno(missing, 1 << 20) == errno.EIO
    assert urls[1] in pagein.log()
    with serve_in_thread(WebServer({}, port=port)) as server:
        serve(server, meta=small.meta, blob=small.blob)
        assert once_it_works(missing.read_bytes) == (small.tree / "large/1").read_bytes()
        assert once_it_works(lambda: sums(pagein.target)) == sums(small.tree)
    pagein.umount()
    pagein.assert_cached_right(small.meta, small.blob)


def test_a_server_that_comes_back_before_the_deadline(small: Image, pagein: Pagein) -> None:
    port = quiet_port()
    with serve_in_thread(WebServer({}, port=port)) as server:
        urls = serve(server, meta=small.meta, blob=small.blob)
        pagein.mount(*urls)
    with Reader(pagein.target / "large/2.txt") as reader:
        reader.wait_blocked(pagein)
        with serve_in_thread(WebServer({}, port=port)) as server:
            serve(server, meta=small.meta, blob=small.blob)
            assert reader.digest() == sums(small.tree)["./large/2.txt"]
    pagein.umount()
