"""A zstd layer (RFC 8878), entered in the middle of its frames."""

from __future__ import annotations

from pagein.images.layers.zstd.decoder import ZstdDecoder
from pagein.images.layers.zstd.unpacker import ZstdUnpacker

__all__ = ["ZstdDecoder", "ZstdUnpacker"]
