"""Fixtures of the tests of the cache directory."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cachefiles.files import new_cache
from tests.cachefiles.rig import VOLUME

from pagein.cachefiles.cache import Cache


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    """A cache directory that is bound, with one volume."""
    cache = new_cache(tmp_path)
    cache.prepare_volume(VOLUME)
    yield cache
    cache.close()
