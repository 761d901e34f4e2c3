"""Uncompressed EROFS images, read without mounting them: ours, those of mkfs.erofs, hostile ones.

Nothing is believed: an offset is checked before it is used, a size never decides how much memory is
taken, and what cannot be is an ErofsError that says where. No I/O here: bytes come from callables.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from pagein.erofs import directories, inode, xattrs
from pagein.erofs.errors import ErofsError
from pagein.erofs.format import (
    CHUNK_BITS_MASK,
    CHUNK_INDEX,
    CHUNK_INDEXES,
    LAYOUT_CHUNKED,
    LAYOUT_INLINE,
    NULL_ADDRESS,
    SLOT_SIZE,
    align,
)
from pagein.erofs.inode import INODE_SIZE, Inode
from pagein.erofs.paths import resolve
from pagein.erofs.superblock import Read, read_superblock
from pagein.erofs.tree import Extent

_PATH_MAX = 1 << 16
"""Bytes of a path, sixteen times PATH_MAX: deeper trees are made to exhaust who reads them."""
_ADDRESS_MAX = 1 << 62
_TARGET_MAX = 1 << 12  # PATH_MAX
_PAGE = 1 << 12
_PAGES = 1 << 10
_INDEXES = 1 << 9  # read at a time


class Image:
    """An image: `read` is that of the primary file, `devices` those of its device table.

    Raises ErofsError (EUCLEAN; EOPNOTSUPP for what is not read: compressed files, later features),
    and what the callables raise. For one thread at a time.
    """

    def __init__(self, read: Read, devices: Sequence[Read] = ()) -> None:
        self.superblock = read_superblock(read)
        wanted = len(self.superblock.devices)
        if wanted != len(devices):
            text = f"the image wants {wanted} data device(s), {len(devices)} given"
            raise ErofsError(text, errno.EINVAL)
        self._block = 1 << self.superblock.block_bits
        self._reads = (read, *devices)
        self._lengths = [self.superblock.length] + [
            device.blocks << self.superblock.block_bits for device in self.superblock.devices
        ]
        self._pages: OrderedDict[int, bytes] = OrderedDict()
        self.root = self._inode(b"", self.superblock.root_nid)
        if not self.root.is_dir:
            raise ErofsError.at(b"", "the root is not a directory")

    # ---- names -----------------------------------------------------------------------------------

    def lookup(self, path: bytes, *, follow: bool = False) -> Inode:
        """The inode at `path` from the root; the last symbolic link is followed with `follow`.

        Raises FileNotFoundError, NotADirectoryError, OSError (ELOOP), ErofsError.
        """
        return resolve(path, self.root, self.child, self.readlink, follow=follow)

    def child(self, directory: Inode, name: bytes) -> Inode | None:
        """What `name` is in a directory, or None. Searches by halves, as the kernel does."""
        low, high = 0, align(directory.size, self._block) // self._block
        while low < high:
            middle = (low + high) // 2
            entries = self._entries(directory, middle)
            if name < entries[0][0]:
                high = middle
            elif name > entries[-1][0]:
                low = middle + 1
            else:
                found = next((entry for entry in entries if entry[0] == name), None)
                return found and self._inode(_join(directory.path, name), found[1])
        return None

    def scandir(self, directory: Inode) -> Iterator[tuple[bytes, Inode]]:
        """Names and inodes of a directory, in ascending order, without ``.`` and ``..``."""
        if not directory.is_dir:
            raise NotADirectoryError(errno.ENOTDIR, "not a directory", os.fsdecode(directory.path))
        last = b""
        for number in range(align(directory.size, self._block) // self._block):
            for name, nid, _ in self._entries(directory, number):
                if name <= last:
                    raise ErofsError.at(directory.path, f"{name!r} is not in its order")
                last = name
                if name not in {b".", b".."}:
                    yield name, self._inode(_join(directory.path, name), nid)

    def walk(self, top: Inode | None = None) -> Iterator[Inode]:
        """`top` (or the root) and all below it; a directory before what it holds."""
        top = top or self.root
        yield top
        if not top.is_dir:
            return
        seen = {top.nid}
        open_directories = [self.scandir(top)]
        while open_directories:
            _, found = next(open_directories[-1], (b"", None))
            if found is None:
                open_directories.pop()
                continue
            if found.is_dir:
                if found.nid in seen:
                    raise ErofsError.at(found.path, "a directory that is in the tree twice")
                seen.add(found.nid)
                open_directories.append(self.scandir(found))
            yield found

    def _entries(self, directory: Inode, number: int) -> list[directories.Entry]:
        begin = number * self._block
        block = self.read(directory, begin, self._block)
        try:
            return directories.parse(block)
        except ValueError as problem:
            raise ErofsError.at(directory.path, f"directory block {number}: {problem}") from None

    # ---- inodes ----------------------------------------------------------------------------------

    def _inode(self, path: bytes, nid: int) -> Inode:
        if len(path) > _PATH_MAX:
            raise ErofsError.at(path[:64] + b"...", f"a path of more than {_PATH_MAX} bytes")
        position = self.superblock.meta + nid * SLOT_SIZE
        data = self._metadata(path, position, INODE_SIZE, short=True)
        return inode.parse(path, nid, position, data, self.superblock.build_time_ns)

    def readlink(self, link: Inode) -> bytes:
        """Where a symbolic link points."""
        if not 0 < link.size < _TARGET_MAX:
            raise ErofsError.at(link.path, f"a symbolic link of {link.size} bytes")
        return self.read(link, 0, link.size)

    def xattrs(self, of: Inode) -> dict[bytes, bytes]:
        """Extended attributes, by their full names."""
        if not of.xattrs:
            return {}
        body = self._metadata(of.path, of.after, of.xattrs)
        try:
            ids, found = xattrs.parse_body(body)
            for each in ids:
                name, value = self._shared(of.path, each)
                found.setdefault(name, value)
        except ValueError as problem:
            raise ErofsError.at(of.path, problem) from None
        return found

    def _shared(self, path: bytes, number: int) -> tuple[bytes, bytes]:
        position = self.superblock.shared_xattrs + 4 * number
        length = xattrs.entry_size(self._metadata(path, position, 4))
        name, value, _ = xattrs.parse_entry(self._metadata(path, position, length), 0)
        return name, value

    # ---- content ---------------------------------------------------------------------------------

    def read(self, of: Inode, offset: int, length: int) -> bytes:
        """Up to `length` bytes of content from `offset` on, fewer only at the end; holes are zeros.

        Takes as much memory as it returns. Raises ErofsError, EOPNOTSUPP for a compressed file.
        """
        if offset < 0 or length < 0:
            raise OSError(errno.EINVAL, "negative offset or length")
        end = min(offset + length, of.size)
        pieces = []
        at = offset
        for extent in self._mapped(of, offset, end):
            begin = max(extent.offset, at)
            until = min(extent.offset + extent.length, end)
            pieces.append(bytes(begin - at))
            position = extent.position + begin - extent.offset
            pieces.append(self._bytes(of.path, extent.device, position, until - begin))
            at = until
        pieces.append(bytes(max(0, end - at)))
        return b"".join(pieces)

    def extents(self, of: Inode, begin: int = 0, end: int | None = None) -> Iterator[Extent]:
        """Where the content lies, in ascending order; pieces that touch are not joined.

        The tail of a file may lie beside its inode, at no multiple of anything. Of a range in
        bytes, those that have some of it.
        """
        return self._mapped(of, begin, of.size if end is None else min(end, of.size))

    def _mapped(self, of: Inode, begin: int, end: int) -> Iterator[Extent]:
        """The extents that have bytes of [begin, end)."""
        if of.compressed:
            text = "is compressed, which only the kernel reads: mount the image"
            raise ErofsError.at(of.path, text, errno.EOPNOTSUPP)
        if begin >= end:
            return iter(())
        if of.layout == LAYOUT_CHUNKED:
            return self._chunks(of, begin, end)
        return self._flat(of, begin, end)

    def _flat(self, of: Inode, begin: int, end: int) -> Iterator[Extent]:
        inline = of.size % self._block if of.layout == LAYOUT_INLINE else 0
        if of.layout == LAYOUT_INLINE and not inline:
            inline = self._block  # the last block is what the kernel takes for the tail
        blocks = of.size - inline
        if begin < blocks:
            yield Extent(0, blocks, 0, of.union << self.superblock.block_bits)
        if inline and end > blocks:
            position = of.after + of.xattrs
            if position % self._block + inline > self._block:
                raise ErofsError.at(of.path, "its tail lies across two blocks")
            yield Extent(blocks, inline, 0, position)

    def _chunks(self, of: Inode, begin: int, end: int) -> Iterator[Extent]:
        if of.union & 0xFFFF & ~(CHUNK_BITS_MASK | CHUNK_INDEXES):
            raise ErofsError.at(of.path, f"unknown chunk format {of.union & 0xFFFF:#x}")
        bits = self.superblock.block_bits + (of.union & CHUNK_BITS_MASK)
        unit = CHUNK_INDEX.size if of.union & CHUNK_INDEXES else 4
        table = align(of.after + of.xattrs, unit)
        first, last = begin >> bits, (end - 1 >> bits) + 1
        for at in range(first, last, _INDEXES):
            count = min(_INDEXES, last - at)
            data = self._metadata(of.path, table + unit * at, unit * count)
            for number, (device, address) in enumerate(self._addresses(of, unit, data), at):
                if address != NULL_ADDRESS:
                    offset = number << bits
                    length = min(1 << bits, of.size - offset)
                    yield Extent(offset, length, device, address << self.superblock.block_bits)

    def _addresses(self, of: Inode, unit: int, data: bytes) -> Iterator[tuple[int, int]]:
        """Device and block address of each chunk."""
        if unit == 4:
            for at in range(0, len(data), 4):
                yield 0, int.from_bytes(data[at : at + 4], "little")
            return
        # As the kernel: bits that no device needs are for others.
        mask = (1 << len(self.superblock.devices).bit_length()) - 1
        for _, device, address in CHUNK_INDEX.iter_unpack(data):
            if address != NULL_ADDRESS and device & mask >= len(self._reads):
                raise ErofsError.at(of.path, f"a chunk in device {device}, which is not there")
            yield device & mask, address

    # ---- bytes -----------------------------------------------------------------------------------

    def _bytes(self, path: bytes, device: int, position: int, length: int) -> bytes:
        """Content; small pieces of the primary file through its pages, which are kept."""
        limit = self._lengths[device] or _ADDRESS_MAX
        if position + length > limit:
            text = f"{length} bytes at {position}, beyond the end of device {device}"
            raise ErofsError.at(path, text)
        if device == 0 and length <= 4 * _PAGE:
            return self._metadata(path, position, length)
        data = self._reads[device](position, length)
        if len(data) != length:
            text = f"device {device} ends at {position + len(data)} bytes: is it cut off?"
            raise ErofsError.at(path, text)
        return data

    def _metadata(self, path: bytes, position: int, length: int, *, short: bool = False) -> bytes:
        """Bytes of the primary file, through the pages that are kept; fewer only with `short`."""
        if position + length > _ADDRESS_MAX:
            raise ErofsError.at(path, f"something at {position}, beyond the end of the image")
        first, last = position // _PAGE, (position + length - 1) // _PAGE
        if first == last:
            begin = position % _PAGE
            data = self._page(first)[begin : begin + length]
        else:
            pages = b"".join([self._page(number) for number in range(first, last + 1)])
            begin = position - first * _PAGE
            data = pages[begin : begin + length]
        if len(data) != length and not short:
            raise ErofsError.at(path, f"the image ends before {position + length} bytes")
        return data

    def _page(self, number: int) -> bytes:
        page = self._pages.get(number)
        if page is None:
            page = self._pages[number] = self._reads[0](number * _PAGE, _PAGE)
            if len(self._pages) > _PAGES:
                self._pages.popitem(last=False)
        return page


def _join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name
