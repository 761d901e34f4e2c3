"""Directory blocks, both ways.

A block begins with its entries, whose first name offset also tells how many there are; the names
follow, in the same order, and zeros after the last. Names ascend strictly through all blocks,
``.`` and ``..`` among them, since the kernel searches by halves.
"""

from __future__ import annotations

from collections.abc import Sequence

from pagein.erofs.format import BLOCK_SIZE, DIRENT, NAME_MAX

Entry = tuple[bytes, int, int]
"""Name, nid, file type."""

_ENTRY = DIRENT.size


def split(names: Sequence[bytes]) -> list[int]:
    """How many of the sorted names go into each block of 4096 bytes."""
    counts = []
    used = count = 0
    for name in names:
        wanted = _ENTRY + len(name)
        if used + wanted > BLOCK_SIZE:
            counts.append(count)
            used = count = 0
        used += wanted
        count += 1
    counts.append(count)
    return counts


def size_of(names: Sequence[bytes], counts: Sequence[int]) -> int:
    """i_size: all blocks but the last count in full, in bytes."""
    last = names[len(names) - counts[-1] :]
    return BLOCK_SIZE * (len(counts) - 1) + _ENTRY * len(last) + sum(map(len, last))


def pack(entries: Sequence[Entry]) -> bytes:
    """One block, without the zeros after it."""
    block = bytearray(_ENTRY * len(entries))
    at = len(block)
    pack_into = DIRENT.pack_into
    for index, (name, nid, kind) in enumerate(entries):
        pack_into(block, index * _ENTRY, nid, at, kind)
        at += len(name)
    block += b"".join([entry[0] for entry in entries])
    return bytes(block)


def parse(block: bytes) -> list[Entry]:
    """The entries of a block. Raises ValueError, with the reason, when one is bad."""
    if len(block) < _ENTRY:
        raise ValueError("a block that holds no entry")
    _, names, _ = DIRENT.unpack_from(block)
    if not names or names % _ENTRY or names > len(block):
        raise ValueError(f"name offset {names} of the first entry")
    raw = list(DIRENT.iter_unpack(block[:names]))
    # Zeros fill the block after the last name.
    ends = [offset for _, offset, _ in raw[1:]]
    ends.append(block.find(b"\0", raw[-1][1]) if block[-1] == 0 else len(block))
    found = []
    begin = names
    for (nid, offset, kind), end in zip(raw, ends, strict=True):
        if offset != begin or end <= begin or end > len(block):
            raise ValueError(f"a name from {offset} to {end}")
        name = block[begin:end]
        if len(name) > NAME_MAX or b"/" in name or b"\0" in name:
            check_name(name)
        found.append((name, nid, kind))
        begin = end
    return found


def check_name(name: bytes) -> None:
    """Raise ValueError unless a file may be called so (``.`` and ``..`` pass)."""
    if not name:
        raise ValueError("an empty name")
    if len(name) > NAME_MAX:
        raise ValueError(f"a name of {len(name)} bytes, {NAME_MAX} is the limit")
    if b"/" in name or b"\0" in name:
        raise ValueError(f"{name!r} as a name")
