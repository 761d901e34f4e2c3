"""One cache, two kernel halves: what one has filled, the other mounts without asking for a byte."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from tests.e2e.devices import OwnDaemon, daemon_on, device_of
from tests.e2e.harness import Image, Pagein, pagein_in, serve, sums, wait_for
from tests.realkernel.rig import DEVICE, LINUX_6_1, Daemon, daemon_in, device_is_free, drop_caches

from pagein.cachefiles.namei import object_name
from pagein.mounts import syscalls
from pagein.testing.webserver import WebServer

pytestmark = pytest.mark.realkernel


@pytest.fixture
def kernels(public_tmp: Path) -> Iterator[tuple[Pagein, Daemon]]:
    """Our kernel half and Linux, with one cache."""
    cache = public_tmp / "cache"
    for name in ("ours", "linux"):
        (public_tmp / name).mkdir(mode=0o755)
    with (
        pagein_in(public_tmp / "ours", cache=cache) as ours,
        daemon_in(public_tmp / "linux", cache=cache) as linux,
    ):
        yield ours, linux


@pytest.mark.parametrize("first", ["ours", "linux"])
def test_a_full_cache_needs_no_read_on_the_other_kernel(
    first: str, image: Image, server: WebServer, kernels: tuple[Pagein, Daemon]
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
    first: str, image: Image, server: WebServer, kernels: tuple[Pagein, Daemon]
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


KEYS = {"D": "plain.erofs", "E": "a b", "S": "\1\2\3\4", "T": "\2\1"}
"""One key for each way to write a key as a file name (facts cachefiles-kernel 12)."""

Mount = Callable[[str, Path], None]


@contextmanager
def on_ours(ours: Pagein, image: Path) -> Iterator[tuple[OwnDaemon, Mount]]:
    """A daemon on our kernel half that says each READ, and how to mount a key."""
    files = dict.fromkeys(KEYS.values(), image)
    with device_of(ours) as path, daemon_on(ours, path, **files) as daemon:
        yield daemon, lambda key, target: ours.mount(f"key:erofs,test/{key}", target=target)


@contextmanager
def on_linux(linux: Pagein, image: Path) -> Iterator[tuple[OwnDaemon, Mount]]:
    """The same daemon on the kernel's device."""

    def mount(key: str, target: Path) -> None:
        options = [("fsid", key), ("domain_id", "test")]
        syscalls.mount_in_steps("none", str(target), "erofs", syscalls.MOUNT_ATTR_RDONLY, options)

    linux.cache.mkdir(exist_ok=True)
    with daemon_on(linux, str(DEVICE), **dict.fromkeys(KEYS.values(), image)) as daemon:
        wait_for(lambda: " A pagein\n" in Path("/proc/fs/fscache/caches").read_text())
        yield daemon, mount
    wait_for(device_is_free)


@pytest.mark.parametrize("first", ["ours", "linux"])
def test_keys_of_all_kinds_are_found_by_the_other_kernel_without_one_read(
    first: str, small: Image, kernels: tuple[Pagein, Daemon]
) -> None:
    assert {kind: object_name(key.encode())[:1].decode() for kind, key in KEYS.items()} == {
        kind: kind for kind in KEYS
    }
    halves: list[AbstractContextManager[tuple[OwnDaemon, Mount]]]
    halves = [on_ours(kernels[0], small.single), on_linux(kernels[1], small.single)]
    right = sums(small.tree)
    for number, half in enumerate(halves if first == "ours" else reversed(halves)):
        with half as (daemon, mount):
            for kind, key in KEYS.items():
                target = kernels[0].dir(kind)
                mount(key, target)
                assert sums(target) == right
                drop_caches()
                assert sums(target) == right
                syscalls.umount(str(target))
                daemon.expect(f"CLOSE {key}")
            reads = [line for line in daemon.seen if line.startswith("READ")]
            opens = [line for line in daemon.seen if line.startswith("OPEN")]
            if LINUX_6_1:  # of what is complete, its loop device opens the file once more
                opens = list(dict.fromkeys(opens))
            assert opens == [f"OPEN {key}" for key in KEYS.values()]
            assert bool(reads) == (number == 0), reads
