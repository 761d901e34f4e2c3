"""One cache, two kernel halves: what one has filled, the other mounts without asking for a byte."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.harness import Image, Pagein, drop_caches, pagein_in, serve, sums
from tests.realkernel.rig import Served, served_in

from pagein.testing.webserver import WebServer

pytestmark = pytest.mark.realkernel


@pytest.fixture
def kernels(public_tmp: Path) -> Iterator[tuple[Pagein, Served]]:
    """Our kernel half and Linux, with one cache."""
    cache = public_tmp / "cache"
    for name in ("ours", "linux"):
        (public_tmp / name).mkdir(mode=0o755)
    with (
        pagein_in(public_tmp / "ours", cache=cache) as ours,
        served_in(public_tmp / "linux", cache=cache) as linux,
    ):
        yield ours, linux


@pytest.mark.parametrize("first", ["ours", "linux"])
def test_a_full_cache_needs_no_read_on_the_other_kernel(
    first: str, image: Image, server: WebServer, kernels: tuple[Pagein, Served]
) -> None:
    ours, linux = kernels
    sources = serve(server, meta=image.meta, blob=image.blob, single=image.single)
    right = sums(image.tree)
    order: list[Pagein] = [ours, linux] if first == "ours" else [linux, ours]
    for pagein in order:
        if pagein is linux:
            linux.start()
        targets = [pagein.dir("split"), pagein.dir("single")]
        server.requests.clear()
        pagein.mount(*sources[:2], target=targets[0])
        pagein.mount(sources[2], target=targets[1])
        assert [sums(target) for target in targets] == [right, right]
        drop_caches()
        assert [sums(target) for target in targets] == [right, right]
        # One byte is asked of each source before a mount: whether it is what it was.
        fetched = [request for request in server.requests if request[2] - request[1] > 1]
        assert bool(fetched) == (pagein is order[0]), fetched
        for target in targets:
            pagein.umount(target)
        if pagein is linux:
            linux.stop()
    assert ours.assert_cached_right(image.meta, image.blob, image.single) > 0


@pytest.mark.parametrize("first", ["ours", "linux"])
def test_a_half_filled_cache_is_completed_by_the_other_kernel(
    first: str, image: Image, server: WebServer, kernels: tuple[Pagein, Served]
) -> None:
    ours, linux = kernels
    (source,) = serve(server, single=image.single)
    order: list[Pagein] = [ours, linux] if first == "ours" else [linux, ours]
    some = image.files[::4]
    for pagein in order:
        if pagein is linux:
            linux.start()
        pagein.mount(source)
        if pagein is order[0]:
            for name in some:
                assert (pagein.target / name).read_bytes() == (image.tree / name).read_bytes()
        else:
            assert sums(pagein.target) == sums(image.tree)
        pagein.umount()
        if pagein is linux:
            linux.stop()
        ours.assert_cached_right(image.single)
    asked = [(start, end) for _, start, end in server.requests if end - start > 1]
    assert sum(end - start for start, end in asked) <= image.single.stat().st_size + 4096
