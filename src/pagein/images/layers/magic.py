"""How something is compressed, as its first bytes say."""

from __future__ import annotations

from pagein.images.layers.errors import LayerError
from pagein.images.layers.format import Compression

HEAD = 6
"""Bytes that tell one from another."""

_MAGICS = {
    b"\x1f\x8b": Compression.GZIP,
    b"\x28\xb5\x2f\xfd": Compression.ZSTD,
    **{bytes((low, 0x2A, 0x4D, 0x18)): Compression.ZSTD for low in range(0x50, 0x60)},
}
_NOT_READ = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x5d\0\0": "lzma", b"\x04\x22\x4d\x18": "lz4"}


def compression_of(head: bytes) -> Compression:
    """What `head`, `HEAD` bytes or the whole of it, is the start of.

    LayerError for what is compressed by something that is not read.
    """
    for magic, name in _NOT_READ.items():
        if head.startswith(magic):
            raise LayerError(f"compressed by {name}: only gzip and zstd are read")
    for magic, compression in _MAGICS.items():
        if head.startswith(magic):
            return compression
    return Compression.NONE
