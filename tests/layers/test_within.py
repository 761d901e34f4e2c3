"""What a data blob has of a range of the tar, found without looking at every extent."""

from __future__ import annotations

import random
from pathlib import Path

from tests.layers import rig
from tests.layers.rig import Indexed, member, tar_of


def test_what_lies_within_a_range_of_the_tar(tmp_path: Path) -> None:
    draw = random.Random(11)
    sizes = [draw.choice([0, 1, 500, 2000]) for _ in range(6000)]
    sizes[100] = 2_000_000
    files = [member(b"f%d" % at, data=b"x" * size) for at, size in enumerate(sizes)]
    indexed = Indexed(rig.gzipped(tar_of(*files), level=1), tmp_path / "index")
    with indexed.opened() as index:
        pieces = list(index.pieces(0, index.header.blob_size))
        assert len(pieces) > 2 * 2048  # more than two blocks of extents
        for _ in range(300):
            low = draw.randrange(index.header.tar_size)
            high = low + draw.choice([1, 600, 50_000, 2_000_000])
            inside = [
                (
                    p.offset + max(0, low - p.position),
                    p.offset + min(p.length, high - p.position),
                )
                for p in pieces
                if p.position < high and low < p.position + p.length
            ]
            expected = (inside[0][0], inside[-1][1]) if inside else None
            near = inside[draw.randrange(len(inside))][0] if inside else draw.randrange(1 << 20)
            assert index.within(low, high, near) == expected
