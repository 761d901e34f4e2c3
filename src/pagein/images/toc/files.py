"""From the entries of a TOC to files and their chunks; whatever cannot be true is refused.

What a name may be, and what is in whose place, `layers.tree` knows. Here it is about data: chunks
lie in the layer, in the order of the TOC, each behind the one before, and together they are their
file.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from pagein.images.layers.chunks import MAX_CHUNK, Chunk
from pagein.images.layers.entry import Entry, Segment
from pagein.images.layers.errors import LayerError, show
from pagein.images.toc.document import TocEntry, nanoseconds

_TYPES: Final = {
    "dir": stat.S_IFDIR,
    "reg": stat.S_IFREG,
    "hardlink": stat.S_IFREG,
    "symlink": stat.S_IFLNK,
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
    "fifo": stat.S_IFIFO,
}
_CHUNK, _ZEROS = "chunk", "zeros"
_LOST = "\ufffd"  # what Go writes into JSON for a byte that is not UTF-8
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_MAX_SIZE: Final = (1 << 63) - 1


class File(NamedTuple):
    """A member of the tar; `chunks` with their offsets in it. Where there are none are zeros."""

    entry: Entry
    chunks: list[tuple[int, Chunk]]


def files_of(entries: Iterable[TocEntry], end: int) -> Iterator[File]:
    """The files of a TOC, all of whose chunks begin before `end` of the layer; else LayerError."""
    layout = _Layout(end)
    group: list[TocEntry] = []
    for number, entry in enumerate(entries):
        if entry.type == _CHUNK:
            if not group or group[0].type != "reg":
                raise LayerError(f"entry {number} is a chunk of no file")
            group.append(entry)
            continue
        if group:
            yield layout.file(group, number - len(group))
        group = [entry]
    if group:
        yield layout.file(group, number + 1 - len(group))


class _Layout:
    """Puts together files, and remembers where the last chunk was."""

    def __init__(self, end: int) -> None:
        self._end = end
        self._start = 0  # of the last chunk's stream
        self._inner = 0  # where in it the chunk ended

    def file(self, group: list[TocEntry], number: int) -> File:
        """The file of an entry, and those of its further chunks; the entry is that of `number`."""
        first = group[0]
        entry = _entry(first, number)
        if first.type != "reg" or not first.size:
            if len(group) > 1:
                raise LayerError(f"{show(entry.path)}: chunks of an empty file")
            return File(entry, [])
        if not 0 < first.size <= _MAX_SIZE:
            raise LayerError(f"{show(entry.path)}: impossible size {first.size}")
        entry.size = first.size
        entry.segments = (Segment(0, 0, first.size),)
        chunks, at = [], 0
        for part in group:
            size = part.chunk_size or first.size - at
            if part.chunk_offset != at or not 0 < size <= first.size - at:
                text = "its chunks overlap, or leave something out, or are not of its size"
                raise LayerError(f"{show(entry.path)}: {text}, at byte {at}")
            if part.chunk_type != _ZEROS:
                only = first.digest if len(group) == 1 else ""
                chunks.append((at, self._chunk(entry.path, part, size, only)))
            at += size
        if at != first.size:
            raise LayerError(f"{show(entry.path)}: its chunks have {at} of its {first.size} bytes")
        return File(entry, chunks)

    def _chunk(self, path: bytes, part: TocEntry, size: int, digest: str) -> Chunk:
        if part.chunk_type:
            raise LayerError(f"{show(path)}: chunks of an unknown type {part.chunk_type[:40]!a}")
        match = _DIGEST.fullmatch(part.chunk_digest or digest)
        if match is None:
            raise LayerError(f"{show(path)}: a chunk at byte {part.chunk_offset} without a digest")
        start, skip = part.offset, part.inner_offset
        # Nothing but a header can be at the very beginning.
        if not 0 <= start < self._end or skip < 0 or not (start or skip):
            where = f"{start} of the layer, where no data is: that ends at {self._end}"
            raise LayerError(f"{show(path)}: a chunk at offset {where}")
        if skip + size > MAX_CHUNK:
            raise LayerError(f"{show(path)}: a chunk of more than {MAX_CHUNK} bytes")
        if start < self._start or (start == self._start and skip < self._inner):
            raise LayerError(f"{show(path)}: a chunk at offset {start} overlaps the one before")
        self._start, self._inner = start, skip + size
        return Chunk(start, skip, size, bytes.fromhex(match[1]))


def _entry(of: TocEntry, number: int) -> Entry:
    form = _TYPES.get(of.type)
    if form is None:
        raise LayerError(f"entry {number}: unknown type {of.type[:40]!a}")
    path, target = _name(of.name, number), _name(of.link_name, number)
    if not (0 <= of.uid < 1 << 32 and 0 <= of.gid < 1 << 32):
        raise LayerError(f"{show(path)}: owner {of.uid}:{of.gid} is beyond 32 bits")
    if form == stat.S_IFREG and of.type == "reg" and path.endswith(b"/"):
        raise LayerError(f"{show(path)}: a file with the name of a directory")
    entry = Entry(path, of.mode & 0o7777 | form, number, of.uid, of.gid)
    entry.hardlink = of.type == "hardlink"
    entry.mtime_ns = nanoseconds(of.modtime or "")
    if of.type in ("symlink", "hardlink"):
        entry.linkname = target
    if of.type in ("char", "block"):
        entry.rdev = (of.dev_major, of.dev_minor)
    if of.xattrs:
        entry.xattrs = {_name(k, number): v or b"" for k, v in of.xattrs.items()}
    return entry


def _name(text: str, number: int) -> bytes:
    if "\0" in text:
        raise LayerError(f"entry {number}: a NUL in a name: {show(text.encode())}")
    if _LOST in text:
        raise LayerError(f"entry {number}: a name that JSON cannot hold: {show(text.encode())}")
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise LayerError(f"entry {number}: a name that is not UTF-8") from None
