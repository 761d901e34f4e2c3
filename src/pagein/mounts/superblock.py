"""The EROFS superblock, as far as one must look into it before mounting. No I/O.

The layout is that of `erofs.format`, and one feature more: what the kernel mounts may be newer, or
compressed, which `erofs.reader` refuses.
"""

import struct
from dataclasses import dataclass
from typing import Final

from pagein.erofs import format as layout

OFFSET: Final = layout.SUPER_OFFSET
"""Where the superblock lies in the primary file, in bytes."""
SIZE: Final = layout.SUPERBLOCK.size
MAGIC: Final = layout.MAGIC
SLOT_SIZE: Final = layout.DEVICE.size
"""Bytes of one entry of the device table."""

_FEATURE_48BIT: Final = 0x80  # feature_incompat: block counts have 16 more bits
_SLOT: Final = struct.Struct("<64xI4xH54x")
_BLOCK_BITS: Final = range(9, 17)  # 512 bytes to 64 KiB


@dataclass(frozen=True, slots=True)
class Superblock:
    """What an image says of itself.

    ``blocks`` counts blocks of ``1 << blkszbits`` bytes of the primary file (0: not recorded);
    ``extra_devices`` is the number of blobs it wants beside itself, whose table begins ``table``
    bytes into the file.
    """

    magic: int
    blkszbits: int
    extra_devices: int
    blocks: int
    feature_incompat: int = 0
    table: int = 0

    @property
    def length(self) -> int:
        """Least length of the primary file, in bytes."""
        return self.blocks << self.blkszbits

    def device_length(self, slot: bytes | bytearray) -> int:
        """Return the least length, in bytes, of a device from its table entry (0: not recorded)."""
        low, high = _SLOT.unpack_from(slot)
        return self._blocks(low, high) << self.blkszbits

    def _blocks(self, low: int, high: int) -> int:
        return low | high << 32 if self.feature_incompat & _FEATURE_48BIT else low


def superblock(data: bytes) -> Superblock:
    """Return the superblock in ``data``, the `SIZE` bytes at `OFFSET` of the primary file.

    Raises ValueError, with the reason, when they are not one.
    """
    if len(data) < SIZE:
        raise ValueError(f"not an EROFS image: it ends at {OFFSET + len(data)} bytes")
    fields = layout.SUPERBLOCK.unpack_from(data)
    magic, bits, root, low = fields[0], fields[3], fields[5], fields[9]
    incompat, devices, slot = fields[14], fields[16], fields[17]
    if magic != MAGIC:
        raise ValueError(f"not an EROFS image: its magic is {magic:#010x}, not {MAGIC:#010x}")
    if bits not in _BLOCK_BITS:
        raise ValueError(f"not an EROFS image: a block of 1 << {bits} bytes")
    blocks = low | root << 32 if incompat & _FEATURE_48BIT else low
    return Superblock(magic, bits, devices, blocks, incompat, slot * SLOT_SIZE)
