"""10,000 blobs in use: what a read of the device looks at, what a blob costs, how many fds."""

from __future__ import annotations

import gc
import os
import resource
import tempfile
import tracemalloc
from collections.abc import Iterator

import pytest

from pagein.cachefiles.cache import Cache
from pagein.fscache import Cookie
from pagein.protocol.messages import Message, Open, Read, decode
from pagein.testing import AnonFd, Kernel

PAGE = 4096
SIZE = 4 * PAGE
COOKIES = 10_000
VOLUMES = 4
WAITING, UNDELIVERABLE = 1000, 500
FDS = 1024
MEASURED = 2000
"""Of the cookies, whose memory is counted, which is slow."""


class World:
    """A kernel with many blobs, and a daemon that holds an fd of each."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.device = kernel.bind()
        self.cookies: list[Cookie] = []
        self.fds: dict[int, AnonFd] = {}
        """By object_id."""
        self.reads = 0
        """Reads of the device, ever."""

    @property
    def cache(self) -> Cache:
        assert self.kernel.session is not None and self.kernel.session.cache is not None
        return self.kernel.session.cache

    @property
    def examined(self) -> int:
        """Requests looked at by reads of the device, ever."""
        assert self.kernel.session is not None
        return self.kernel.session.requests.requests.examined

    def read(self) -> Message | None:
        self.reads += 1
        raw = self.device.read()
        return decode(raw) if raw else None

    def mount(self, count: int) -> None:
        """Mount that many more blobs; the daemon says how long they are."""
        for _ in range(count):
            number = len(self.cookies)
            volume = b"erofs,%d" % (number % VOLUMES)
            mounting = self.kernel.mount(volume, b"blob-%d" % number)
            opening = self.read()
            assert isinstance(opening, Open)
            self.answer(opening)
            self.cookies.append(mounting.result())

    def answer(self, opening: Open) -> None:
        self.fds[opening.object_id] = self.device.open_fd(opening.object_id)
        self.device.write(b"copen %d,%d" % (opening.msg_id, SIZE))

    def serve(self, read: Read) -> None:
        fd = self.fds[read.object_id]
        fd.pwrite(page_of(fd.object.cookie_key), read.off)
        fd.cread(read.msg_id)


def page_of(key: bytes) -> bytes:
    """What is in the first page of a blob."""
    return (key + b".").ljust(64, b".") * (PAGE // 64)


@pytest.fixture
def world() -> Iterator[World]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FDS, hard))  # what a login shell allows
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    try:
        with tempfile.TemporaryDirectory(dir=memory) as directory, Kernel(directory) as kernel:
            kernel.recorder.on = False
            yield World(kernel)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_ten_thousand_blobs(world: World) -> None:
    world.mount(VOLUMES)  # what there is once
    each = memory_of(world, MEASURED)
    world.mount(COOKIES - MEASURED)
    assert each < 2048, f"{each:.0f} bytes a cookie"

    # Half of what is asked for waits for its object to be opened again, which the daemon puts off.
    closed, opened = world.cookies[:UNDELIVERABLE], world.cookies[-UNDELIVERABLE:]
    for cookie in closed:
        world.fds.pop(cookie.object.ondemand_id).close()
    readers = [world.kernel.read(cookie, 0, PAGE) for cookie in [*closed, *opened]]
    reads, examined = world.reads, world.examined
    openings = [message for message in drain(world) if isinstance(message, Open)]
    assert len(world.kernel.pending) == WAITING + len(openings) - len(opened)
    assert len(openings) == UNDELIVERABLE and not any(r.done for r in readers[:UNDELIVERABLE])
    for opening in openings:
        world.answer(opening)
    list(drain(world))
    assert (world.examined - examined) / (world.reads - reads) < 8

    assert all(reader.done for reader in readers) and not world.kernel.pending
    for cookie, reader in zip([*closed, *opened], readers, strict=True):
        assert reader.result() == page_of(cookie.object.cookie_key)
    files = world.cache.open_files
    assert 0 < files.opened <= FDS // 2 and len(os.listdir("/proc/self/fd")) < FDS
    assert files.reopened > 0


def memory_of(world: World, count: int) -> float:
    """Bytes of each of `count` more cookies, with the daemon's part of an fd."""
    gc.collect()
    tracemalloc.start(1)
    try:
        world.mount(count)
        world.kernel.advance(60)  # deadlines that were met are forgotten
        gc.collect()
        return tracemalloc.get_traced_memory()[0] / count
    finally:
        tracemalloc.stop()


def drain(world: World) -> Iterator[Message]:
    """Everything that can be read, the READs of it served."""
    empty = 0
    while empty < 2:  # the first read of nothing may have had objects opened again
        message = world.read()
        empty = 0 if message else empty + 1
        if isinstance(message, Read):
            world.serve(message)
        if message:
            yield message
