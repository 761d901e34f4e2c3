"""The loader and the libraries that an ELF file names (System V gABI, chapters 4 and 5). Pure.

Nothing is believed: what cannot be is left out, and sizes never decide how much is read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

MAGIC: Final = b"\x7fELF"

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_ENTRY = struct.Struct("<QQ")
_LITTLE_64 = b"\x02\x01"  # ELFCLASS64, ELFDATA2LSB
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_WRITABLE = 2  # PF_W
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 0, 1, 5, 15, 29

_SEGMENTS = 64  # that are looked at
_ENTRIES = 256  # of the dynamic section
_NEEDED = 64
_NAME = 256  # bytes

Read = Callable[[int, int], bytes]
"""Bytes of a file: offset, length; fewer at its end."""


class Names(NamedTuple):
    """What a file names: the path of its loader, b"" if it has none, and names of libraries."""

    loader: bytes
    libraries: tuple[bytes, ...]
    directories: tuple[bytes, ...] = ()
    """Where these are looked for first (DT_RUNPATH); `$ORIGIN` is the file's own."""
    loaded: tuple[tuple[int, int], ...] = ()
    """What a loader itself reads, before anything runs: offsets and lengths."""


class _Segment(NamedTuple):
    kind: int
    flags: int
    offset: int
    address: int
    size: int


def names(read: Read) -> Names:
    """What the ELF file behind `read` names; nothing for what is not a 64 bit little-endian one."""
    segments = _segments(read)
    loader = next((_text(read, each.offset) for each in segments if each.kind == _PT_INTERP), b"")
    libraries, directories = _dynamic(read, segments)
    return Names(loader, libraries, directories, tuple(_loaded(segments)))


def dynamic(read: Read) -> int | None:
    """Where that is which names libraries; None if nothing is."""
    return next((each.offset for each in _segments(read) if each.kind == _PT_DYNAMIC), None)


def _segments(read: Read) -> list[_Segment]:
    head = read(0, _HEADER.size)
    if len(head) < _HEADER.size or head[:6] != MAGIC + _LITTLE_64:
        return []
    fields = _HEADER.unpack(head)
    at, size, count = fields[5], fields[9], fields[10]
    if size != _SEGMENT.size or at >= 1 << 62:
        return []
    table = read(at, size * min(count, _SEGMENTS))
    return [
        _Segment(kind, flags, offset, address, length)
        for kind, flags, offset, address, _, length, _, _ in _SEGMENT.iter_unpack(
            table[: len(table) // size * size]
        )
        if offset < 1 << 62
    ]


def _loaded(segments: list[_Segment]) -> Iterator[tuple[int, int]]:
    """The first segment, with headers, symbols and relocations, and what is relocated."""
    loads = [each for each in segments if each.kind == _PT_LOAD and each.size]
    for number, each in enumerate(loads):
        if not number or each.flags & _WRITABLE:
            yield each.offset, each.size


def _dynamic(read: Read, segments: list[_Segment]) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """Libraries, and directories."""
    dynamic = next((each for each in segments if each.kind == _PT_DYNAMIC), None)
    if dynamic is None:
        return (), ()
    data = read(dynamic.offset, min(dynamic.size, _ENTRIES * _ENTRY.size))
    needed, paths, strings = [], [], None
    for tag, value in _ENTRY.iter_unpack(data[: len(data) // _ENTRY.size * _ENTRY.size]):
        if tag == _DT_NULL:
            break
        if tag == _DT_NEEDED:
            needed.append(value)
        elif tag in (_DT_RPATH, _DT_RUNPATH):
            paths.append(value)
        elif tag == _DT_STRTAB:
            strings = _offset(segments, value)
    if strings is None:
        return (), ()
    texts = [
        [_text(read, strings + value) for value in values[:_NEEDED] if value < 1 << 32]
        for values in (needed, paths)
    ]
    return tuple(filter(None, texts[0])), tuple(filter(None, b":".join(texts[1]).split(b":")))


def _offset(segments: list[_Segment], address: int) -> int | None:
    """Where in the file that lies which is loaded to `address`."""
    for each in segments:
        if each.kind == _PT_LOAD and each.address <= address < each.address + each.size:
            return each.offset + address - each.address
    return None


def _text(read: Read, offset: int) -> bytes:
    """A string that ends with a NUL; b"" if it does not, soon."""
    text, end, _ = read(offset, _NAME).partition(b"\0")
    return text if end else b""
