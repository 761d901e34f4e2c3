"""glibc's heap, in a process that is ours alone: what is freed goes back to the system.

But not while indexes are built. A point of a zstd layer takes some 80 MiB and frees them again,
in blocks of a window's size: had from the system anew each time, they take half as much time again
as the work itself, all of it for zeros.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

_TRIM, _MMAP, _ARENAS = -1, -3, -8
_BACK: Final = {_MMAP: 512 << 10, _TRIM: 4 << 20}
_HELD: Final = {_MMAP: 32 << 20, _TRIM: 256 << 20}
"""Blocks from so many bytes on are the system's own, and so many free ones at the end are kept."""


class Heap:
    """Does nothing before `give_back`, nor where the C library is another one."""

    def __init__(self) -> None:
        self._libc: Any = None

    def give_back(self) -> None:
        """Have this process return large blocks when they are freed, and share its arenas.

        Spans and batches of a MiB come and go in several threads; each would keep what it once had.
        """
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            self._libc = libc
            libc.mallopt(_ARENAS, 2)
            self._set(_BACK)

    def hold(self) -> None:
        """Keep what is freed, until `release`."""
        self._set(_HELD)

    def release(self) -> None:
        """Return what was kept."""
        self._set(_BACK)
        if self._libc is not None:
            self._libc.malloc_trim(0)

    def _set(self, options: dict[int, int]) -> None:
        if self._libc is not None:
            for name, value in options.items():
                self._libc.mallopt(name, value)


heap = Heap()
