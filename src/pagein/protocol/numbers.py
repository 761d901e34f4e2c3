"""Numbers that the kernel half leaves in a page of memory, and the user half may show.

The page is the keeper's: the kernel half writes it, the user half has it for reading only, so that
nothing of what parses the network's data gets near what is root. It outlives both.
"""

from __future__ import annotations

from enum import IntEnum

SIZE = 4096
"""Bytes of the page: 64-bit numbers of this machine, by their index."""


class Number(IntEnum):
    """What is counted, by its place in the page."""

    READS = 0
    """Reads of blobs by the kernel's file system."""
    MISSES = 1
    """Those that had to wait, because some of their bytes were not in the cache."""
    READ_BYTES = 2
    WRITTEN_BYTES = 3
    """What the user half brought."""
    UNREAD_BYTES = 4
    """Of that, what nobody has read yet; only of blobs in use."""
    WASTED_BYTES = 5
    """Of that, what nobody had read when its blob was given back."""
    MOUNTS = 6
    BLOBS = 7
    """In use now."""


class Numbers:
    """The page, or memory of its own, as a list of numbers."""

    def __init__(self, memory: bytearray | memoryview | None = None) -> None:
        """`memory` has `SIZE` bytes, and may be read-only for who only looks."""
        own = bytearray(SIZE) if memory is None else memory
        self.cells = memoryview(own).cast("Q")
        """The numbers by the values of `Number`, for who is in a hurry."""

    def __getitem__(self, number: Number) -> int:
        return self.cells[number]

    def __setitem__(self, number: Number, value: int) -> None:
        self.cells[number] = value

    def values(self) -> dict[str, int]:
        """All of them by their names in small letters."""
        return {number.name.lower(): self.cells[number] for number in Number}
