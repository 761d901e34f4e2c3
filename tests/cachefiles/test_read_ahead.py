"""The page cache of a cache file: brought in ahead of a reader, let go of behind it."""

import asyncio
import os
import time
from pathlib import Path

import pytest
from tests.cachefiles.rig import PAGE

from pagein.cachefiles.cache import Cache

PATH = b"cache/Iv/@00/Dblob"
SIZE = 64 * PAGE
PATIENCE = 60.0
"""Seconds that a disk may take for 256 KiB."""


def test_pages_come_and_go(tmp_path: Path) -> None:
    cache = Cache(os.fsencode(tmp_path))
    file = cache.look_up(PATH, SIZE)
    data = os.urandom(SIZE)
    buffer = bytearray(SIZE)
    try:
        asyncio.run(file.write(memoryview(data), 0))
        os.fsync(file.fd)  # what is dirty stays
        file.drop_page_cache(0, SIZE)
        if file.read_now([buffer], 0) == SIZE:
            pytest.skip("this file system keeps its files in memory")
        give_up = time.monotonic() + PATIENCE
        file.read_ahead(0, SIZE)
        while file.read_now([buffer], 0) != SIZE:
            assert time.monotonic() < give_up, "read_ahead() brought nothing in"
            time.sleep(0.005)
            file.read_ahead(0, SIZE)  # somebody may have taken it away again
        assert buffer == data
    finally:
        file.close()
        cache.close()


def test_advice_for_a_file_that_was_closed_is_ignored(tmp_path: Path) -> None:
    cache = Cache(os.fsencode(tmp_path))
    file = cache.look_up(PATH, SIZE)
    file.close()
    file.read_ahead(0, SIZE)
    file.drop_page_cache(0, SIZE)
    cache.close()
