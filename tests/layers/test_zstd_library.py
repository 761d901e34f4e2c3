"""Both ways to get at libzstd: python-zstandard, and what Python has itself from 3.14 on."""

from __future__ import annotations

import importlib
import random
import sys

import pytest
from tests.layers import zstdencoders

from pagein.images.layers.errors import LayerError
from pagein.images.layers.point import Point
from pagein.images.layers.zstd import ZstdDecoder, ZstdUnpacker, library, unpacker

STANDARD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"


@pytest.fixture(params=["zstandard", STANDARD])
def _only(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other library can be imported."""
    real = importlib.import_module

    def only(name: str, package: str | None = None) -> object:
        if name.endswith(("zstandard", ".zstd")) and name != request.param:
            raise ImportError(name)
        return real(name, package)

    library.library.cache_clear()
    monkeypatch.setattr(importlib, "import_module", only)
    request.addfinalizer(library.library.cache_clear)


@pytest.mark.usefixtures("_only")
def test_points_are_made_and_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacker, "BLOCKS", 1)
    content = zstdencoders.tar_of_text(random.Random(1), 400_000)
    data = zstdencoders.by_library(12, checked=True)(content)
    out: list[bytes] = []
    points: list[Point] = []
    unpacking = ZstdUnpacker(lambda view: out.append(bytes(view)), points.append, span=1)
    unpacking.feed(data)
    unpacking.finish()
    assert b"".join(out) == content
    assert sum(bool(point.window) for point in points) >= 2
    for point in points:
        assert b"".join(ZstdDecoder(point).feed(data[point.bit // 8 :])) == content[point.out :]
    with pytest.raises(LayerError, match=r"zstd: .*damaged"):
        list(ZstdDecoder().feed(data[:200] + bytes(200) + data[400:]))


def test_without_either_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str, package: str | None = None) -> object:
        raise ImportError(name)

    library.library.cache_clear()
    monkeypatch.setattr(importlib, "import_module", none)
    try:
        with pytest.raises(LayerError, match=r"pip install 'pagein\[oci\]'"):
            library.library()
    finally:
        library.library.cache_clear()
