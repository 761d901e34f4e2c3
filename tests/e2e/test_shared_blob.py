"""Two images that share a blob: one OPEN, the size the daemon told, CLOSE with the last umount."""

import pytest
from tests.e2e.devices import daemon_on, device_of
from tests.e2e.harness import Image, Pagein, mkfs, serve, sums, wait_for

from pagein.testing.webserver import WebServer

pytestmark = pytest.mark.root


def test_one_open_and_one_close(small: Image, pagein: Pagein) -> None:
    pagein.cache.mkdir()
    blob = pagein.directory / "again"
    other = mkfs(
        pagein.directory / "other", small.tree, "--chunksize=1048576", f"--blobdev={blob}", "-T7"
    )
    assert blob.read_bytes() == small.blob.read_bytes()
    assert other.read_bytes() != small.meta.read_bytes()
    files = {"meta": small.meta, "other": other, "blob": small.blob}
    first, second = pagein.target, pagein.dir("mnt2")
    with device_of(pagein) as path, daemon_on(pagein, path, **files) as daemon:
        pagein.mount("key:erofs,test/meta", "key:erofs,test/blob", target=first)
        pagein.mount("key:erofs,test/other", "key:erofs,test/blob", target=second)
        expected = sums(small.tree)
        assert sums(first) == expected
        assert sums(second) == expected
        (shared,) = [b for b in pagein.status()["blobs"] if b["cookie"] == "blob"]
        assert shared["size"] == small.blob.stat().st_size
        assert shared["state"] == "OPEN"

        pagein.umount(first)
        daemon.expect("CLOSE meta")
        assert daemon.count("CLOSE blob") == 0
        assert daemon.count("OPEN blob") == 1
        assert sums(second) == expected

        pagein.umount(second)
        daemon.expect("CLOSE blob")
        wait_for(lambda: daemon.count("CLOSE other") == 1)
        assert pagein.status()["blobs"] == []
        assert [daemon.count(f"OPEN {name}") for name in files] == [1, 1, 1]
        assert [daemon.count(f"CLOSE {name}") for name in files] == [1, 1, 1]


def test_a_shared_blob_is_fetched_once(small: Image, server: WebServer, pagein: Pagein) -> None:
    urls = serve(server, meta=small.meta, blob=small.blob)
    second = pagein.dir("mnt2")
    pagein.mount(*urls)
    pagein.mount(*urls, target=second)
    expected = sums(small.tree)
    assert sums(pagein.target) == expected
    sent = server.bytes_sent
    assert sums(second) == expected
    assert server.bytes_sent == sent
    pagein.umount()
    assert pagein.leftovers() != []
    assert sums(second) == expected
    pagein.umount(second)
    assert pagein.leftovers() == []
