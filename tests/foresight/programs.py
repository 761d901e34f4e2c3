"""ELF files that name what they are told to, and have no code."""

import struct


def elf(loader: str = "", libraries: tuple[str, ...] = (), *, size: int = 0) -> bytes:
    """An ELF64 file of `size` bytes or a few more: names near its start, `.dynamic` at its end."""
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in libraries)
    interpreter = loader.encode() + b"\0" if loader else b""
    kinds = [1, 2] + ([3] if loader else [])
    table = 64 + 56 * len(kinds)
    text = table + len(interpreter)
    dynamic = max(text + len(strings), size) + 7 & ~7
    base = 0x400000
    entries, at = [], 1
    for name in libraries:
        entries.append((1, at))
        at += len(name) + 1
    entries += [(5, base + text), (0, 0), (1, 1)]  # what follows DT_NULL does not count
    tail = b"".join(struct.pack("<QQ", *entry) for entry in entries)
    head = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        *(3, 62, 1, 0, 64, 0, 0, 64, 56, len(kinds), 64, 0, 0),
    )
    places = {
        1: (0, base, dynamic + len(tail)),
        2: (dynamic, base + dynamic, len(tail)),
        3: (table, base + table, len(interpreter)),
    }
    segments = b"".join(
        struct.pack("<IIQQQQQQ", kind, 4, offset, address, address, length, length, 8)
        for kind in kinds
        for offset, address, length in [places[kind]]
    )
    start = head + segments + interpreter + strings
    return start.ljust(dynamic, b"\x90") + tail
