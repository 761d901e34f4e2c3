"""Backing files without an fd: closed when others need it, opened again when they are used."""

from __future__ import annotations

import asyncio
import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.cachefiles.rig import PAGE, pages, refused

from pagein.cachefiles.backing import BackingFile
from pagein.cachefiles.cache import Cache
from pagein.cachefiles.openfiles import half_of_our_fds


def make(directory: Path, *names: bytes, limit: int = 1) -> tuple[Cache, list[BackingFile]]:
    cache = Cache(os.fsencode(directory))
    cache.open_files.limit = limit
    cache.prepare_volume(b"v")
    return cache, [cache.look_up(b"cache/Iv/@00/D" + name, 2 * PAGE) for name in names]


def close(cache: Cache, files: list[BackingFile]) -> None:
    for file in files:
        file.close()
    assert cache.open_files.opened == 0 and not cache.open_files.idle
    cache.close()


def read(file: BackingFile, length: int = PAGE) -> bytes:
    data = bytearray(length)
    assert file.read([data], 0) == length
    return bytes(data)


def test_as_many_fds_as_allowed(tmp_path: Path) -> None:
    cache, files = make(tmp_path, b"a", b"b", b"c", limit=2)
    assert [file.fd >= 0 for file in files] == [False, True, True]
    for number, file in enumerate(files, 1):
        assert asyncio.run(file.write(pages(number), 0)) == PAGE
    for number, file in enumerate(files, 1):
        assert read(file) == bytes([number]) * PAGE
        assert cache.open_files.opened == 2
    assert cache.open_files.reopened >= 3
    close(cache, files)


def test_who_waited_longest_gives_its_fd(tmp_path: Path) -> None:
    cache, (a, b, *_) = files = make(tmp_path, b"a", b"b", limit=2)
    read(a)
    c = cache.look_up(b"cache/Iv/@00/Dc", PAGE)
    assert (a.fd >= 0, b.fd >= 0, c.fd >= 0) == (True, False, True)
    close(cache, [*files[1], c])


def test_a_file_in_use_keeps_its_fd(tmp_path: Path) -> None:
    cache, (a, b) = make(tmp_path, b"a", b"b")
    with a._in_use() as fd:
        assert read(b) == bytes(PAGE)
        assert a.fd == fd and b.fd < 0  # only one of them is needed any more
    close(cache, [a, b])


def test_reading_without_waiting_opens_nothing(tmp_path: Path) -> None:
    cache, (a, b) = make(tmp_path, b"a", b"b")
    assert a.fd < 0 and a.read_now([bytearray(PAGE)], 0) == -1
    assert a.fd < 0 and b.fd >= 0
    close(cache, [a, b])


def test_another_file_in_its_place_is_not_read(tmp_path: Path) -> None:
    cache, (a, b) = make(tmp_path, b"a", b"b")
    path = tmp_path / "cache/Iv/@00/Da"
    path.rename(path.with_name("kept"))
    path.write_bytes(b"another" * PAGE)
    refused(errno.EIO, lambda: read(a))
    with pytest.raises(OSError, match="replaced") as caught:
        asyncio.run(a.write(pages(1), 0))
    assert caught.value.errno == errno.EIO
    path.with_name("kept").rename(path)
    assert read(a) == bytes(PAGE)
    close(cache, [a, b])


def test_a_closed_file_is_not_opened_again(tmp_path: Path) -> None:
    cache, (a, b) = make(tmp_path, b"a", b"b")
    a.close()
    refused(errno.EIO, lambda: read(a))
    with pytest.raises(OSError) as caught:
        asyncio.run(a.write(pages(1), 0))
    assert caught.value.errno == errno.ENOBUFS  # as a write after withdrawal (facts 8.1)
    close(cache, [b])


def test_a_complete_file_that_was_mounted_meanwhile_is_read_only(tmp_path: Path) -> None:
    cache, (a, b) = make(tmp_path, b"a", b"b")
    assert asyncio.run(a.write(pages(1, 2), 0)) == 2 * PAGE
    read(b)
    assert a.fd < 0
    # As a direct mount has it open.
    mounted = os.open(tmp_path / "cache/Iv/@00/Da", os.O_RDONLY | os.O_CLOEXEC)
    with pytest.raises(OSError) as caught:
        asyncio.run(a.write(pages(3), 0))
    assert caught.value.errno == errno.EBUSY and a.read_only
    assert read(a) == b"\1" * PAGE
    os.close(mounted)
    close(cache, [a, b])


def test_many_threads_and_few_fds(tmp_path: Path) -> None:
    names = [b"%d" % number for number in range(6)]
    cache, files = make(tmp_path, *names, limit=2)
    for number, file in enumerate(files, 1):
        asyncio.run(file.write(pages(number), 0))

    def right(start: int) -> bool:
        order = [(start + n) % len(files) for n in range(200)]
        return all(read(files[n]) == bytes([n + 1]) * PAGE for n in order)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(right, range(4)))
    assert cache.open_files.opened == 2
    close(cache, files)


def test_shared_caches_keep_every_fd(tmp_path: Path) -> None:
    cache = Cache(os.fsencode(tmp_path), shared=True)
    assert cache.open_files.limit is None
    cache.close()


def test_half_of_what_the_limit_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"soft": 1024}
    fake = SimpleNamespace(
        RLIMIT_NOFILE=7, RLIM_INFINITY=-1, getrlimit=lambda what: (limits["soft"], 4096)
    )
    monkeypatch.setattr("pagein.cachefiles.openfiles.resource", fake)
    assert half_of_our_fds() == 512
    limits["soft"] = 20
    assert half_of_our_fds() == 16
    limits["soft"] = -1
    assert half_of_our_fds() > 100_000
