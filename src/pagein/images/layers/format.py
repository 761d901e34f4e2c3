"""The index file's layout (docs/index-format.md), as structures and limits. Little-endian.

    header | blocks of all sections | tables of all sections

The header names a table for each section, with its digest; a table names the section's blocks,
with theirs. So every byte is covered, and a few are enough to open the file.
"""

from __future__ import annotations

import struct
import zlib
from enum import IntEnum
from typing import NamedTuple

MAGIC = b"pageinLX"
FILE_MAGIC = b"pageinSK"
"""Of the index of a file that is no layer (docs/seekable.md)."""
VERSION = 3
READ = (1, 2, 3)
"""Versions that are read. In the first one all points of zstd layers are where frames begin.
The third one has the section NAMES; an index without it is written as the second."""
DIGEST = 32  # bytes of a SHA-256

FIXED = struct.Struct("<8sIIQQQQQIIII")
"""Magic, version, header size, file size, layer size, tar size, blob size, metadata size, chunk
size, compression, sections, zero. Then the sections, three strings, and the header's digest."""
SECTION = struct.Struct("<IIQ32s")
"""Kind, number of blocks, offset of the table, SHA-256 of the table."""
BLOCK = struct.Struct("<QQII32s")
"""Key, offset, stored size, size, SHA-256 of what is stored. Equal sizes: stored as it is."""
STRING = struct.Struct("<H")
"""Length of a string, which follows, in UTF-8."""

BLOCK_SIZE = 64 << 10
"""Most bytes of a block, unpacked, but for POINTS."""
MAX_BLOCK = 1 << 20
MAX_POINT = 16 << 20
"""Most bytes of a block of POINTS, unpacked."""
EXTENTS = 2048
"""Extents of a block: three columns of 64 bits."""
DIGESTS = BLOCK_SIZE // DIGEST


class Kind(IntEnum):
    """The sections, in their order."""

    METADATA = 1
    """The EROFS image. Key: offset."""
    EXTENTS = 2
    """Columns: gap to the extent before in the blob, and in the tar, length. Key: blob offset."""
    POINTS = 3
    """One a block: bit offset in the layer, window. Key: offset in the tar."""
    CHUNKS = 4
    """SHA-256 of each chunk of the data blob. Key: number of the first one."""
    IMPLIED = 5
    """Paths of directories that the archive left out, each ended by a NUL. Key: offset."""
    NAMES = 6
    """What programs and modules name (`names`). Key: blob offset of the first one."""


class Block(NamedTuple):
    """A block as it is stored: packed if that is smaller. `size` is that of its content, bytes."""

    key: int
    size: int
    stored: bytes


def pack(key: int, content: bytes, level: int = 6) -> Block:
    """Pack a block. By Python's zlib, whose output does not depend on what else is installed."""
    stored = zlib.compress(content, level)
    return Block(key, len(content), stored if len(stored) < len(content) else content)


class Compression(IntEnum):
    """How the tar is packed, and what its points are."""

    NONE = 0
    GZIP = 1
    ZSTD = 2
    GZIP_CHUNKS = 3
    """Gzip members that the layer's own table of contents names, with digests: eStargz."""
    ZSTD_CHUNKS = 4
    """Likewise frames: zstd:chunked."""


CHUNKED = (Compression.GZIP_CHUNKS, Compression.ZSTD_CHUNKS)
"""Points hold chunks and their digests (`chunks`); there are no others of the data blob."""


class Layer(NamedTuple):
    """A layer's descriptor, and the digest of its tar. Digests as "sha256:..."."""

    digest: str
    size: int
    media_type: str
    diff_id: str


class Header(NamedTuple):
    """What is known of an index when it is open; sizes in bytes."""

    layer: Layer
    compression: Compression
    file_size: int
    tar_size: int
    blob_size: int
    metadata_size: int
    chunk: int


class Table(NamedTuple):
    """Where a section's table lies."""

    kind: Kind
    blocks: int
    offset: int
    sha256: bytes
