"""A TOC compared with the tar that it is of: who unpacks a layer must see what we mount."""

from __future__ import annotations

import stat
from collections.abc import Sequence

from pagein.images.layers.entry import Entry
from pagein.images.layers.errors import LayerError, show


class Compare:
    """A visitor of the tar, which raises LayerError unless it has just `entries`, in their order.

    Times are compared in units of `unit` nanoseconds. `own` is the TOC's own name, if it is in the
    tar itself.
    """

    def __init__(self, entries: Sequence[Entry], *, unit: int = 1, own: bytes = b"") -> None:
        self._entries = entries
        self._unit = unit
        self._own = own
        self._next = 0

    def entry(self, entry: Entry) -> None:
        """The next member."""
        if entry.path == self._own:
            return
        if self._next == len(self._entries):
            raise LayerError(f"{show(entry.path)} is in its tar, but not in its TOC")
        of_toc = self._entries[self._next]
        self._next += 1
        if of_toc.path.rstrip(b"/") != entry.path.rstrip(b"/"):
            where = f"its TOC has {show(of_toc.path)} where its tar has {show(entry.path)}"
            raise LayerError(where)
        for (what, there), (_, here) in zip(self._facts(entry), self._facts(of_toc), strict=True):
            if there != here:
                raise LayerError(f"its TOC contradicts its tar: the {what} of {show(entry.path)}")

    def data(self, position: int, view: memoryview) -> None:
        """Of files only sizes are compared: their chunks have digests."""

    def finish(self) -> None:
        """LayerError if something is left."""
        if self._next < len(self._entries):
            path = show(self._entries[self._next].path)
            raise LayerError(f"{path} is in its TOC, but not in its tar")

    def _facts(self, entry: Entry) -> list[tuple[str, object]]:
        device = stat.S_ISCHR(entry.mode) or stat.S_ISBLK(entry.mode)
        return [
            ("type", (stat.S_IFMT(entry.mode), entry.hardlink)),
            ("mode", stat.S_IMODE(entry.mode)),
            ("owner", (entry.uid, entry.gid)),
            ("size", entry.size),
            ("time", (entry.mtime_ns + self._unit // 2) // self._unit),
            ("target", entry.linkname),
            ("device", entry.rdev if device else None),
            ("attributes", entry.xattrs),
        ]
