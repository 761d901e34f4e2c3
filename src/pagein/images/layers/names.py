"""What programs and modules name, as the index has it: written and read.

Text, which packs well, and which is split in no time: nothing is parsed but what is looked up.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate, pairwise
from typing import Final, NamedTuple

PAGE: Final = 4096
RECORDS: Final = 4096
"""Records of a block, at most."""
BLOCK: Final = 512 << 10
"""Bytes of records in a block, at most."""

_COUNT = struct.Struct("<I")
_FIELD, _RECORD = b"\0", b"\n"
PROGRAM: Final = b"E"
SOURCE: Final = b"P"


class Named(NamedTuple):
    """What a file names, in the order in which it is needed."""

    kind: bytes
    """PROGRAM, an ELF file, SOURCE, of Python, or b"" for another script."""
    loader: bytes = b""
    """The path of its loader; of a script its first line."""
    names: tuple[bytes, ...] = ()
    """Libraries, or modules."""
    directories: tuple[bytes, ...] = ()
    """Where the libraries are looked for first."""
    loaded: tuple[tuple[int, int], ...] = ()
    """Offset and length of what of it is read in any case; not told of small files."""


def blocks(found: Iterable[tuple[int, Named]]) -> Iterator[tuple[int, bytes]]:
    """The section's blocks for files, each with where it begins in the blob, ascending."""
    starts: list[int] = []
    records: list[bytes] = []
    size = 0
    for start, named in found:
        record = _pack(named)
        if records and (len(records) >= RECORDS or size + len(record) >= BLOCK):
            yield starts[0], _block(starts, records)
            starts, records, size = [], [], 0
        starts.append(start)
        records.append(record)
        size += len(record) + 1
    if records:
        yield starts[0], _block(starts, records)


class Block(NamedTuple):
    """Files of a block, by where they begin."""

    starts: list[int]
    records: list[bytes]

    def find(self, start: int) -> Named | None:
        """What the file that begins there names. ValueError."""
        at = bisect_left(self.starts, start)
        if at == len(self.starts) or self.starts[at] != start:
            return None
        return _unpack(self.records[at])


def unpack(key: int, content: bytes) -> Block:
    """A block that begins with the file at `key`; ValueError if it is none."""
    if len(content) < _COUNT.size:
        raise ValueError("too short")
    (count,) = _COUNT.unpack_from(content)
    gaps = content[_COUNT.size : _COUNT.size * (1 + count)]
    if not 0 < count <= RECORDS or len(gaps) != 4 * count:
        raise ValueError("not as many files as it should have")
    pages = struct.unpack(f"<{count}I", gaps)
    records = content[_COUNT.size + len(gaps) :].split(_RECORD)
    if len(records) != count:
        raise ValueError("not as many files as it should have")
    return Block([key + PAGE * page for page in accumulate(pages)], records)


def _block(starts: list[int], records: list[bytes]) -> bytes:
    gaps = [0, *((b - a) // PAGE for a, b in pairwise(starts))]
    head = _COUNT.pack(len(starts)) + struct.pack(f"<{len(gaps)}I", *gaps)
    return head + _RECORD.join(records)


def _pack(named: Named) -> bytes:
    """Kind, loader, loaded, directories, names. What cannot be written is left out."""
    loaded = b",".join(b"%x+%x" % each for each in named.loaded)
    directories = b":".join(each for each in named.directories if _fits(each))
    loader = named.loader if _fits(named.loader) else b""
    names = [name for name in named.names if _fits(name)]
    return _FIELD.join([named.kind, loader, loaded, directories, *names]).rstrip(_FIELD)


def _fits(text: bytes) -> bool:
    return bool(text) and _FIELD not in text and _RECORD not in text


def _unpack(record: bytes) -> Named:
    fields = record.split(_FIELD)
    kind, loader, loaded, directories = [*fields, b"", b"", b""][:4]
    ranges = []
    for each in filter(None, loaded.split(b",")):
        offset, plus, length = each.partition(b"+")
        if not plus or len(each) > 32:
            raise ValueError("a range that is none")
        ranges.append((int(offset, 16), int(length, 16)))
    among = tuple(filter(None, directories.split(b":")))
    return Named(kind, loader, tuple(fields[4:]), among, tuple(ranges))
