"""Extended attributes, both ways.

Those of one inode follow it; a pair of name and value that several inodes have is written once, in
the shared area, and named there by its offset in units of 4 bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pagein.erofs.format import NAME_MAX, XATTR_ENTRY, XATTR_HEADER, XATTR_PREFIXES, align

_VALUE_MAX = 0xFFFF
_SHARED_MAX = 0xFF  # h_shared_count is one byte
_INLINE_MAX = 4 * 0xFFFE
"""Bytes of an inode's own entries and shared ids: i_xattr_icount counts 4 bytes in 16 bits."""
_LUSTRE = 5  # no kernel shows them
_LONG_PREFIX = 0x80

Pair = tuple[bytes, bytes]


def pack_entry(name: bytes, value: bytes) -> bytes:
    """An entry with the zeros that align it. Raises ValueError for what EROFS cannot hold."""
    index, rest = _index(name)
    if len(rest) > NAME_MAX:
        raise ValueError(f"extended attribute {name!r}: the name is too long")
    if len(value) > _VALUE_MAX:
        text = f"a value of {len(value)} bytes, {_VALUE_MAX} is the limit"
        raise ValueError(f"extended attribute {name!r}: {text}")
    entry = XATTR_ENTRY.pack(len(rest), index, len(value)) + rest + value
    return entry + bytes(-len(entry) % 4)


def _index(name: bytes) -> tuple[int, bytes]:
    for index, prefix in XATTR_PREFIXES.items():
        if index == _LUSTRE or not name.startswith(prefix):
            continue
        rest = name[len(prefix) :]
        if bool(rest) == prefix.endswith(b"."):
            return index, rest
    raise ValueError(f"extended attribute {name!r}: EROFS has no such namespace")


class Shared:
    """The shared area, while an image is planned."""

    def __init__(self) -> None:
        self._seen: set[Pair] = set()
        self._ids: dict[Pair, int] = {}
        self._used = 0

    @property
    def size(self) -> int:
        """Bytes of the area so far."""
        return self._used

    def note(self, xattrs: Mapping[bytes, bytes]) -> None:
        """Count the pairs of one inode. Raises ValueError for what EROFS cannot hold."""
        for pair in sorted(xattrs.items()):
            entry = len(pack_entry(*pair))
            if pair in self._ids:
                continue
            if pair not in self._seen and entry <= _INLINE_MAX // 2:
                self._seen.add(pair)
                continue
            self._share(pair, entry)

    def _share(self, pair: Pair, size: int) -> None:
        if self._used >> 2 > 0xFFFFFFFF:
            raise ValueError("more than 16 GiB of extended attributes")
        self._ids[pair] = self._used >> 2
        self._used += size

    def area(self) -> Iterator[bytes]:
        """The area, an entry at a time."""
        return (pack_entry(*pair) for pair in self._ids)

    def body(self, xattrs: Mapping[bytes, bytes]) -> bytes:
        """What follows an inode with these attributes; ValueError when they are too many."""
        if not xattrs:
            return b""
        ids: list[int] = []
        own: list[bytes] = []
        for pair in sorted(xattrs.items()):
            if pair in self._ids and len(ids) < _SHARED_MAX:
                ids.append(self._ids[pair])
            else:
                own.append(pack_entry(*pair))
        body = b"".join([each.to_bytes(4, "little") for each in ids] + own)
        if len(body) > _INLINE_MAX:
            raise ValueError(f"{len(body)} bytes of extended attributes, {_INLINE_MAX} fit")
        return XATTR_HEADER.pack(0, len(ids)) + body


def parse_entry(data: bytes, at: int) -> tuple[bytes, bytes, int]:
    """Name, value and the offset after an entry; ValueError when it does not fit `data`."""
    if at + XATTR_ENTRY.size > len(data):
        raise ValueError("an extended attribute is cut off")
    name_length, index, value_length = XATTR_ENTRY.unpack_from(data, at)
    begin = at + XATTR_ENTRY.size
    middle = begin + name_length
    end = middle + value_length
    if end > len(data):
        raise ValueError("an extended attribute is longer than its place")
    if index & _LONG_PREFIX:
        raise ValueError("an extended attribute with a long name prefix, which is not supported")
    if index not in XATTR_PREFIXES:
        raise ValueError(f"an extended attribute of namespace {index}")
    return XATTR_PREFIXES[index] + data[begin:middle], data[middle:end], align(end, 4)


def entry_size(head: bytes) -> int:
    """Bytes of the entry that begins with these 4, without alignment."""
    name_length, _, value_length = XATTR_ENTRY.unpack(head)
    return XATTR_ENTRY.size + int(name_length) + int(value_length)


def parse_body(body: bytes) -> tuple[list[int], dict[bytes, bytes]]:
    """Shared ids and own attributes of what follows an inode; ValueError when it is damaged."""
    if len(body) <= XATTR_HEADER.size:
        return [], {}
    _, count = XATTR_HEADER.unpack_from(body)
    at = XATTR_HEADER.size + 4 * count
    if at > len(body):
        raise ValueError(f"{count} shared extended attributes do not fit")
    ids = [int.from_bytes(body[i : i + 4], "little") for i in range(XATTR_HEADER.size, at, 4)]
    own: dict[bytes, bytes] = {}
    while at < len(body):
        name, value, at = parse_entry(body, at)
        own.setdefault(name, value)  # the kernel takes the first
    return ids, own
