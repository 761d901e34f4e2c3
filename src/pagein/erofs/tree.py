"""A file system as values: what the writer makes an image of."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Extent:
    """Bytes of a file that lie contiguous in a device; between extents are holes (zeros).

    `offset` in the file and `position` in the device are in bytes, multiples of 4096. `length` is
    in bytes: only the last extent of a file, where the file ends, may end inside a block.
    `device` 0 is the image itself, 1 and up count the device table.
    """

    offset: int
    length: int
    device: int
    position: int


@dataclass(slots=True, eq=False)
class Node:
    """A file, directory or anything else; under several names (not directories): hard links.

    `mode` is st_mode with the type, `mtime_ns` nanoseconds since the epoch, `rdev` as of
    os.makedev, `size` bytes of a regular file. `xattrs` have full names (``b"user.a"``).
    Content of a regular file is either `data`, which the image itself then holds, or `extents`.
    """

    mode: int
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    rdev: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    target: bytes = b""
    children: dict[bytes, Node] | None = None
    size: int = 0
    data: bytes | None = None
    extents: tuple[Extent, ...] = ()


@dataclass(slots=True)
class Device:
    """An entry of the device table: a `tag` of at most 64 bytes, its length in 4096-byte blocks."""

    tag: bytes
    blocks: int
