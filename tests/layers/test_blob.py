"""The data blob: what is hashed, and given out, is what lies there, however its data comes."""

from __future__ import annotations

import hashlib
import random
import stat

import pytest

from pagein.images.layers.blob import CHUNK, PAGE, BlobBuilder
from pagein.images.layers.entry import Entry, Segment

SIZES = (1, CHUNK, 3, 5 * CHUNK, PAGE, 2 * CHUNK - 1, 60 * PAGE, 7 * CHUNK + 5, 4 * CHUNK, 12)


@pytest.mark.parametrize("piece", [1 << 20, 2 * CHUNK, CHUNK, 3 * CHUNK + 100, 5000])
def test_files_of_chunks_and_parts_of_chunks(piece: int) -> None:
    noise = random.Random(1)
    given = bytearray()

    def sink(at: int, view: memoryview) -> None:
        assert at == len(given)
        given.extend(view)

    blob, wanted, position = BlobBuilder(sink), bytearray(), 0
    for size in SIZES:
        data = memoryview(noise.randbytes(size))
        segment = Segment(0, position, size)
        blob.place(Entry(b"f", stat.S_IFREG, 0, size=size, segments=(segment,)))
        for at in range(0, size, piece):
            blob.data(position + at, data[at : at + piece])
        wanted += bytes(data) + bytes(-size % PAGE)
        position += size + 512
    blob.finish()
    assert given == wanted
    chunks = [wanted[at : at + CHUNK] for at in range(0, len(wanted), CHUNK)]
    assert blob.digests == b"".join(hashlib.sha256(chunk).digest() for chunk in chunks)
