"""A tar, parsed as it streams by.

The parser is fed the archive's bytes in pieces of any size and tells a visitor of each member, and
then of its data. It holds one member's headers, never data. Every form that occurs is read: V7,
ustar, PAX with global headers, GNU long names, sparse files in all four forms, star's prefix,
numbers in base-256. Names stay bytes.

Where POSIX and practice leave a choice, GNU tar 1.34 decides, since its extraction is what a layer
is compared with: global headers apply to all that follows, a later extended header replaces an
earlier one, one block of zeros ends the archive and what comes after is not looked at. Members
that it only warns about (an unknown type, a multi-volume part) are refused: a wrong tree helps
nobody.
"""

from __future__ import annotations

import stat
from collections.abc import Generator
from typing import Protocol

from pagein.images.layers import pax, sparse, tarheader
from pagein.images.layers.entry import Entry, Limits, Segment
from pagein.images.layers.errors import LayerError, show
from pagein.images.layers.tarheader import BLOCK, ZERO_BLOCK, Header

_TYPES = {
    b"0": stat.S_IFREG,
    b"\0": stat.S_IFREG,
    b"7": stat.S_IFREG,  # contiguous
    b"S": stat.S_IFREG,  # sparse, old GNU
    b"1": stat.S_IFREG,  # hard link
    b"2": stat.S_IFLNK,
    b"3": stat.S_IFCHR,
    b"4": stat.S_IFBLK,
    b"5": stat.S_IFDIR,
    b"6": stat.S_IFIFO,
    b"D": stat.S_IFDIR,  # with a list of names as data, old GNU incremental
}
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # whatever their size field says
_SIMPLE = (b"0", b"\0", b"7", *_WITHOUT_DATA)
_SKIPPED = (b"V", b"A", b"I")  # volume label; Solaris: ACLs, inode numbers
_MULTI_VOLUME = (b"M", b"N")
_RESET_BY_EMPTY = {b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime"}  # POSIX; not xattrs
_MAX_SIZE = (1 << 63) - 1

_A_HEADER = "a header"

_Steps = Generator[None, None, None]


class Visitor(Protocol):
    """What is told of members. `data` views are valid during the call only."""

    def entry(self, entry: Entry) -> None:
        """A member; its data, if any, follows in order."""

    def data(self, position: int, view: memoryview) -> None:
        """Stored bytes of the last entry, from offset `position` in the tar."""


class TarParser:
    """Feed it the archive, then `close` it. Both raise LayerError for a bad archive."""

    def __init__(self, visitor: Visitor, limits: Limits = Limits()) -> None:  # noqa: B008
        self.ended = False
        """Whether the end mark was seen."""
        self._visitor = visitor
        self._limits = limits
        self._view = memoryview(b"")
        self._at = 0  # in the view
        self._base = 0  # offset in the tar of the view's first byte
        self._closed = False
        self._segments = 0
        self._global: dict[bytes, bytes] = {}
        self._steps = self._archive()
        next(self._steps)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Parse the next bytes of the archive; `data` is not kept."""
        self._view = memoryview(data)
        self._at = 0
        if not self.ended:
            next(self._steps)
        self._base += len(self._view)
        self._view = memoryview(b"")
        self._at = 0

    def close(self) -> None:
        """The archive is over: LayerError when that is in the middle of something."""
        self.feed(b"")
        self._closed = True
        if not self.ended:
            next(self._steps)

    # ---- bytes

    @property
    def _position(self) -> int:
        return self._base + self._at

    def _take(self, length: int, what: str) -> Generator[None, None, bytes]:
        """The next `length` bytes, which must be few."""
        start = self._position
        have = self._view[self._at : self._at + length]
        self._at += len(have)
        if len(have) == length:
            return bytes(have)
        parts = [bytes(have)]
        missing = length - len(have)
        while missing:
            if self._closed:
                if what == _A_HEADER and missing == length:
                    return b""
                raise LayerError(f"tar: truncated in {what} at offset {start}")
            yield
            part = self._view[:missing]
            self._at = len(part)
            missing -= len(part)
            parts.append(bytes(part))
        return b"".join(parts)

    def _tell(self, entry: Entry, stored: int) -> _Steps:
        """Tell of a member and its data."""
        self._visitor.entry(entry)
        if not stored:
            return
        # As data of a directory there are only lists of names (type D, and V7's "name/").
        tell = not entry.is_dir
        begin = self._at
        padded = begin + stored + -stored % BLOCK
        if padded > len(self._view):
            yield from self._pass(stored, entry.path, tell=tell)
            return
        self._at = padded
        if tell:
            self._visitor.data(self._base + begin, self._view[begin : begin + stored])

    def _pass(self, length: int, name: bytes, *, tell: bool) -> _Steps:
        """Go over `length` bytes of data, and the padding to a whole block behind them."""
        start = self._position
        end = start + length
        padded = end + -length % BLOCK
        while self._position < padded:
            part = self._view[self._at : self._at + padded - self._position]
            useful = end - self._position
            if tell and useful > 0 and part:
                self._visitor.data(self._position, part[:useful])
            self._at += len(part)
            if self._position < padded:
                if self._closed and self._position >= end:
                    return  # only padding is missing: as the last member may be
                if self._closed:
                    what = f"the data of {show(name)} at offset {start}"
                    raise LayerError(f"tar: truncated in {what}")
                yield

    # ---- members

    def _archive(self) -> _Steps:
        yield  # until something is fed
        while True:
            at = self._position
            block = bytes(self._view[self._at : self._at + BLOCK])
            if len(block) == BLOCK:
                self._at += BLOCK
            else:
                block = yield from self._take(BLOCK, _A_HEADER)
            if block in (ZERO_BLOCK, b""):
                break
            header = tarheader.parse(block, at)
            if header.kind in _SIMPLE and not self._global:  # nearly all
                entry, stored = self._simple(header, at)
                yield from self._tell(entry, stored)
            else:
                yield from self._member(header, block, at)
        self.ended = True
        yield

    def _simple(self, header: Header, at: int) -> tuple[Entry, int]:
        """A member whose header block says everything, and how much data it has in the archive."""
        stored = 0 if header.kind in _WITHOUT_DATA else _checked(header.size, at)
        entry = _entry(header, {}, [], at)
        if stored and stat.S_ISREG(entry.mode):
            self._whole(entry, stored)
        return entry, stored

    def _member(self, header: Header, block: bytes, at: int) -> _Steps:
        """A header that is no extension of one, or extensions up to and with the header."""
        records: pax.Records = []
        name = link = None
        while True:
            kind = header.kind
            if kind in (b"x", b"X"):
                records = yield from self._records(header, at)
            elif kind == b"g":
                yield from self._global_header(header, at)
            elif kind in (b"L", b"K"):
                data = yield from self._extension(header, at)
                if kind == b"L":
                    name = tarheader.text(data)
                else:
                    link = tarheader.text(data)
            else:
                break
            at = self._position
            block = yield from self._take(BLOCK, _A_HEADER)
            if block in (ZERO_BLOCK, b""):
                if kind == b"g":
                    self.ended = True
                    yield
                raise LayerError(f"tar: an extended header without a member at offset {at}")
            header = tarheader.parse(block, at)
        if name is not None:
            header = header._replace(name=name)
        if link is not None:
            header = header._replace(linkname=link)
        yield from self._plain(header, block, records, at)

    def _extension(self, header: Header, at: int) -> Generator[None, None, bytes]:
        if not 0 <= header.size <= self._limits.extension:
            raise LayerError(f"tar: extended header of {header.size} bytes at offset {at}")
        data = yield from self._take(header.size + -header.size % BLOCK, "an extended header")
        return data[: header.size]

    def _records(self, header: Header, at: int) -> Generator[None, None, pax.Records]:
        return pax.records((yield from self._extension(header, at)), at)

    def _global_header(self, header: Header, at: int) -> _Steps:
        for key, value in (yield from self._records(header, at)):
            if value:
                self._global[key] = value
            else:
                self._global.pop(key, None)
        if sum(len(k) + len(v) for k, v in self._global.items()) > self._limits.extension:
            raise LayerError(f"tar: endless global headers, at offset {at}")

    def _plain(self, header: Header, block: bytes, records: pax.Records, at: int) -> _Steps:
        """A member whose extensions are read: tell of it and of its data."""
        kind, stored = header.kind, header.size
        if kind in _MULTI_VOLUME:
            raise LayerError(f"tar: part of a multi-volume archive at offset {at}: not supported")
        if kind not in _TYPES and kind not in _SKIPPED:
            where = f"{show(header.name)} at offset {at}"
            raise LayerError(f"tar: unknown type {show(kind)} of {where}: not supported")
        values = self._global
        if records:
            values = {**values, **dict(records)}
            for key in _RESET_BY_EMPTY & values.keys():
                if not values[key]:
                    del values[key]
        if b"size" in values:
            stored = pax.number(values[b"size"], b"size", at)
        if kind in _WITHOUT_DATA:
            stored = 0
        stored = _checked(stored, at)
        name = values.get(b"path", header.name)
        if kind in _SKIPPED:
            yield from self._pass(stored, name, tell=False)
            return
        entry = _entry(header, values, records, at)
        if values or kind == b"S":
            stored = yield from self._layout(entry, header, block, records, values, stored)
        elif stat.S_ISREG(entry.mode):
            self._whole(entry, stored)
        yield from self._tell(entry, stored)

    # ---- where the data lies

    def _layout(
        self,
        entry: Entry,
        header: Header,
        block: bytes,
        records: pax.Records,
        values: dict[bytes, bytes],
        stored: int,
    ) -> Generator[None, None, int]:
        """Set size and segments of `entry`; returns how many bytes of data still follow."""
        if not stat.S_ISREG(entry.mode) or entry.hardlink:
            return stored
        found: sparse.Map | None
        if header.kind == b"S":
            found, size = yield from self._old_gnu_map(block, entry.at)
        else:
            size = stored
            for key in (b"GNU.sparse.size", b"GNU.sparse.realsize"):
                if key in values:
                    size = pax.number(values[key], key, entry.at)
            if values.get(b"GNU.sparse.major") == b"1":
                start = self._position
                found = yield from self._map_1_0(stored, entry.at)
                stored -= self._position - start
            else:
                found = sparse.pax_0(records, entry.at)
        if found is None:
            self._whole(entry, stored)
            return stored
        sparse.check(found, size, entry.at)
        self._count(len(found), entry.at)
        entry.size = size
        entry.segments = tuple(sparse.segments(found, self._position, stored, entry.at))
        return stored

    def _whole(self, entry: Entry, stored: int) -> None:
        """The data that follows is the file."""
        entry.size = stored
        entry.segments = (Segment(0, self._position, stored),) if stored else ()

    def _count(self, pieces: int, at: int) -> None:
        self._segments += pieces
        if self._segments > self._limits.segments:
            raise LayerError(f"tar: too many pieces of sparse files, at offset {at}")

    def _old_gnu_map(self, block: bytes, at: int) -> Generator[None, None, tuple[sparse.Map, int]]:
        found, size, more = sparse.old_gnu(block, at)
        while more:
            block = yield from self._take(BLOCK, "a sparse map")
            pairs, more = sparse.old_gnu_extension(block, at)
            found += pairs
            if len(found) > self._limits.segments or (more and not pairs):
                raise LayerError(f"tar: endless sparse map at offset {at}")
        return found, size

    def _map_1_0(self, stored: int, at: int) -> Generator[None, None, sparse.Map]:
        """Decimal lines: how many pairs, then the pairs; padded to a whole block."""
        lines: list[bytes] = []
        rest = b""
        wanted = 1
        start = self._position
        while len(lines) < wanted:
            if self._position - start + BLOCK > min(stored, self._limits.extension):
                raise LayerError(f"tar: sparse map without end at offset {at}")
            *whole, rest = (rest + (yield from self._take(BLOCK, "a sparse map"))).split(b"\n")
            lines += whole
            if lines:
                wanted = 1 + 2 * pax.number(lines[0], b"the length of a sparse map", at)
        values = [pax.number(line, b"a sparse map", at) for line in lines[1:wanted]]
        return list(zip(values[::2], values[1::2], strict=True))


def _checked(size: int, at: int) -> int:
    if not 0 <= size <= _MAX_SIZE:
        raise LayerError(f"tar: impossible size {size} at offset {at}")
    return size


def _entry(header: Header, values: dict[bytes, bytes], records: pax.Records, at: int) -> Entry:
    """Header fields, where extended ones do not replace them."""
    path = values.get(b"GNU.sparse.name", values.get(b"path", header.name))
    linkname = values.get(b"linkpath", header.linkname)
    if b"\0" in path or b"\0" in linkname:
        raise LayerError(f"tar: a NUL in a name at offset {at}: {show(path)}")
    form = _TYPES[header.kind]
    if form == stat.S_IFREG and header.kind != b"1" and path.endswith(b"/"):
        form = stat.S_IFDIR  # V7 had no type for directories
    entry = Entry(path, header.mode & 0o7777 | form, at, header.uid, header.gid)
    entry.hardlink = header.kind == b"1"
    entry.mtime_ns = header.mtime * 10**9
    entry.linkname = linkname if header.kind in (b"1", b"2") else b""
    entry.rdev = (header.major, header.minor)
    if values:
        _extend(entry, values, records, at)
    if not (0 <= entry.uid < 1 << 32 and 0 <= entry.gid < 1 << 32):
        raise LayerError(f"tar: owner {entry.uid}:{entry.gid} of {show(path)} is beyond 32 bits")
    return entry


def _extend(entry: Entry, values: dict[bytes, bytes], records: pax.Records, at: int) -> None:
    """What extended headers say beyond names and sizes."""
    if b"uid" in values:
        entry.uid = pax.number(values[b"uid"], b"uid", at)
    if b"gid" in values:
        entry.gid = pax.number(values[b"gid"], b"gid", at)
    if b"mtime" in values:
        entry.mtime_ns = pax.seconds(values[b"mtime"], at)
    if stat.S_ISCHR(entry.mode) or stat.S_ISBLK(entry.mode):
        major, minor = entry.rdev
        if b"SCHILY.devmajor" in values:  # libarchive, when the numbers do not fit
            major = pax.number(values[b"SCHILY.devmajor"], b"SCHILY.devmajor", at)
        if b"SCHILY.devminor" in values:
            minor = pax.number(values[b"SCHILY.devminor"], b"SCHILY.devminor", at)
        entry.rdev = (major, minor)
    for key, value in values.items():
        attribute = pax.xattr(key, value, at)
        if attribute is not None:
            name, content = attribute
            # The same attribute in both forms: the raw one is not coded, so it cannot be wrong.
            if key.startswith(b"SCHILY.") or name not in entry.xattrs:
                entry.xattrs[name] = content
