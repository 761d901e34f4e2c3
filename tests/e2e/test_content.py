"""What is read through a mount is what was put into the image, and little more is fetched."""

import os

import pytest
from tests.e2e.harness import Image, Pagein, listing, mkfs, serve, sums

from pagein.testing.webserver import WebServer

pytestmark = pytest.mark.root


def test_a_large_tree_equals_its_source(large: Image, server: WebServer, pagein: Pagein) -> None:
    pagein.mount(*serve(server, meta=large.meta, blob=large.blob))
    expected = sums(large.tree)
    assert len(expected) >= 5000
    assert sums(pagein.target) == expected
    size = large.meta.stat().st_size + large.blob.stat().st_size
    # Everything was read, and nothing of it was fetched twice.
    assert 0 <= server.bytes_sent - size < 4096
    pagein.umount()
    assert pagein.leftovers() == []
    pagein.assert_cached_right(large.meta, large.blob)


@pytest.mark.parametrize("form", ["split", "single"])
def test_a_walk_fetches_little(form: str, large: Image, server: WebServer, pagein: Pagein) -> None:
    if form == "split":
        files, most = {"meta": large.meta, "blob": large.blob}, 0.02
    else:
        files, most = {"single": large.single}, 0.15
    pagein.mount(*serve(server, **files))
    shown = [line for line in listing(pagein.target).splitlines() if line.startswith("-")]
    assert len(shown) == len(large.files)
    with (pagein.target / "data/7").open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        assert len(os.pread(file.fileno(), 4096, 5 << 20)) == 4096
    size = sum(path.stat().st_size for path in files.values())
    print(f"{form}: {server.bytes_sent} of {size} bytes, {100 * server.bytes_sent / size:.2f} %")
    assert server.bytes_sent < most * size
    pagein.umount()


@pytest.mark.parametrize("options", [(), ("-zlz4",)], ids=str)
def test_single_file_images(
    options: tuple[str, ...], small: Image, server: WebServer, pagein: Pagein
) -> None:
    image = mkfs(pagein.directory / "image", small.tree, *options)
    assert not options or image.stat().st_size < 0.9 * small.single.stat().st_size
    pagein.mount(*serve(server, image=image))
    assert sums(pagein.target) == sums(small.tree)
    pagein.umount()
    pagein.assert_cached_right(image)
