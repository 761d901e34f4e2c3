"""A file tree as values: what the writer writes and what layers are turned into."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Extent:
    """Part of a file's data: [offset, offset + length) in the file lies at `position`, in bytes.

    `offset` and `position` are multiples of 4096; `device` is 0 for the image itself, else the
    number in the device table, from 1. What no extent covers is a hole.
    """

    offset: int
    length: int
    device: int
    position: int


@dataclass(slots=True, eq=False)
class Node:
    """An inode. Hard links are the same Node under several names."""

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
    """An entry of the device table: its tag (at most 64 bytes) and its size in 4 KiB blocks."""

    tag: bytes
    blocks: int
