"""One member of a tar, whatever form it was written in."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from typing import NamedTuple


class Segment(NamedTuple):
    """Stored data of a file: `length` bytes at `offset` in it lie at `position` in the tar."""

    offset: int
    position: int
    length: int


@dataclass(slots=True)
class Entry:
    """A member as its headers say it; nothing is normalised but the forms of the fields.

    `mode` has the type bits; `hardlink` entries have those of a regular file. `size` is the
    logical size in bytes, holes included. `rdev` is (major, minor). `at` is the offset of the
    member's header in the tar.
    """

    path: bytes
    mode: int
    at: int
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_ns: int = 0
    linkname: bytes = b""
    rdev: tuple[int, int] = (0, 0)
    hardlink: bool = False
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    segments: tuple[Segment, ...] = ()

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)


class Limits(NamedTuple):
    """What an archive may make us hold in memory. Real layers stay far below."""

    extension: int = 1 << 20
    """Bytes of one extended header, long name or sparse map (Go's archive/tar has the same)."""
    segments: int = 500_000
    """Pieces of sparse files, in the whole archive."""
    nodes: int = 600_000
    """Files, directories and links, with the parents that the archive leaves out."""
    names: int = 128 << 20
    """Bytes of names, link targets and extended attributes, in the whole archive."""
