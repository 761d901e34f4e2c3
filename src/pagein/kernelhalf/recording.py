"""What readers touch for the first time, noted while a `pagein trace record` asks for it.

Every read that EROFS misses its page cache for comes by here, also of data that is resident. What a
recording holds is bounded, and so is how long it stays when nobody asks for it any more.
"""

from __future__ import annotations

import errno
import itertools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pagein.fscache import Cookie
from pagein.mounts.erofs import MountError
from pagein.rangeset import RangeSet

if TYPE_CHECKING:
    from pagein.kernelhalf.half import KernelHalf, Key

MAX_TOUCHES: Final = 1 << 16
"""Touches that wait to be taken; further ones are lost, and the recording says so."""

_ABANDONED = 60.0  # seconds without a question


@dataclass(eq=False, slots=True)
class _Recording:
    begun: float
    asked: float
    keys: frozenset[Key] | None
    """Blobs that it is for; None: all."""
    seen: dict[Key, RangeSet] = field(default_factory=dict)
    waiting: list[tuple[str, int, int, int]] = field(default_factory=list)
    lost: int = 0

    def note(self, key: Key, offset: int, length: int, now: float) -> None:
        """Remember what of a read nobody read before."""
        if self.keys is not None and key not in self.keys:
            return
        seen = self.seen.setdefault(key, RangeSet())
        gaps = list(seen.gaps(offset, offset + length))
        ms = int(1000 * (now - self.begun))
        for start, end in gaps:
            seen.add(start, end)
            if len(self.waiting) < MAX_TOUCHES:
                self.waiting.append((key[1].hex(), start, end - start, ms))
            else:
                self.lost += 1


class Recordings:
    """The recordings of a kernel half."""

    def __init__(self, half: KernelHalf) -> None:
        self._half = half
        self._table: dict[int, _Recording] = {}
        self._numbers = itertools.count(1)

    def start(self, target: str | None) -> dict[str, Any]:
        """Begin one: of what is mounted on `target`, or of everything. Raises MountError."""
        keys = None if target is None else self._keys(target)
        now = time.monotonic()
        self._forget(now)
        number = next(self._numbers)
        self._table[number] = _Recording(now, now, keys)
        self._half.blobfs.touched = self._touched
        return {"recording": number}

    def take(self, number: int, most: int, *, last: bool) -> dict[str, Any]:
        """Up to `most` touches that were not taken before; `last` ends the recording with them.

        A touch is: cookie key as hex, offset and length in the blob, milliseconds since the start.
        """
        recording = self._table.get(number)
        if recording is None:
            text = "the kernel half was restarted, or the recording was given up: record again"
            raise MountError(errno.ESTALE, text)
        recording.asked = time.monotonic()
        taken, recording.waiting = recording.waiting[:most], recording.waiting[most:]
        if last and not recording.waiting:
            del self._table[number]
            self._forget(recording.asked)
        return {"touches": taken, "more": bool(recording.waiting), "lost": recording.lost}

    def _touched(self, cookie: Cookie, offset: int, length: int) -> None:
        now = time.monotonic()
        for recording in self._table.values():
            recording.note(cookie.key, offset, length, now)

    def _forget(self, now: float) -> None:
        for number, recording in list(self._table.items()):
            if recording.asked + _ABANDONED < now:
                del self._table[number]
        if not self._table:
            self._half.blobfs.touched = None

    def _keys(self, target: str) -> frozenset[Key]:
        half = self._half
        half.refresh()
        stack = half.stacks.table.get(target)
        mounts = half.stacks.mounts_of(stack) if stack else [half.mounts.get(target)]
        found = [mount for mount in mounts if mount is not None]
        if not found:
            raise MountError(errno.EINVAL, f"{target} is not mounted by pagein")
        if any(mount.done and not mount.exports for mount in found):
            text = f"{target}: complete, and mounted without pagein in the way: nothing is seen"
            raise MountError(errno.EOPNOTSUPP, f"{text}; use `pagein trace record --run`")
        return frozenset(key for mount in found for key in mount.keys)
