"""READs whose bytes are at hand: served by the thread that hears of them, from start to end.

A READ of a local file that is in the page cache is two copies and three system calls. On its way
through the event loop it would change threads five times, which costs several times as much. So
the thread does all of it, under these conditions:

* The READ is little, or came alone. Others, and above all OPEN and CLOSE, would wait behind it, and
  several large ones are a stream, whatever their order: served here one by one, it has half the
  rate (`bench/local.py`). To see whether there are others costs one more question of the device,
  which a little READ is not to wait for.
* The origin has the bytes without waiting (`Origin.at_hand`); a source that is slow, or a disk that
  has to be asked, is work for the loop. What is written goes to the disk, or the kernel half, that
  the next message comes from: if it hangs, there is none.
* Nothing of the range is here or on its way (`Fill.take`), and no other process shares the cache.
* It does not begin where the last one ended. Of a stream the loop fetches more than was asked for,
  and most of its READs never come. Around a random READ nothing is fetched here: what that hides is
  the time that an origin takes.

In every other case, an error included, nothing has happened, and the loop does what it always does.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Final

from pagein.daemon.buffers import BUFFER_SIZE, Buffer
from pagein.daemon.fill import Fill
from pagein.daemon.objects import Blob, ObjectTable
from pagein.protocol.messages import Read

log = logging.getLogger("pagein.daemon")

LITTLE: Final = 32 << 10
"""Bytes of the largest READ that others may wait behind."""

_UNREPORTED = 64  # READs, after which the loop hears of them also in the middle of many


class AtHand:
    """The `Shortcut` of a daemon."""

    def __init__(self, objects: ObjectTable) -> None:
        """`objects` belongs to the loop; from the thread each is only looked up."""
        self._objects = objects
        self._buffer = Buffer(BUFFER_SIZE)
        self._served: deque[tuple[Fill, int, int, bool, float]] = deque()

    @property
    def due(self) -> bool:
        """Whether there is much to report."""
        return len(self._served) >= _UNREPORTED

    def serve(self, message: Read, *, alone: bool) -> bytes | None:
        """Complete `message` if its bytes are at hand."""
        if alone is (message.len <= LITTLE):
            return None
        blob = self._objects.blob(message.object_id)
        if blob is None or not blob.simple:
            return None
        start, end = blob.fill.pages(message.off, message.len)
        goes_on, blob.edge = start == blob.edge, end
        if goes_on or not 0 < end - start <= BUFFER_SIZE:
            return None
        try:
            return self._copy(blob, start, end, message)
        except OSError as exc:
            log.debug("%s: not served at once: %s", blob.name, exc)
        except Exception:  # somebody's origin
            log.exception("%s: READ of %d bytes at %d", blob.name, message.len, message.off)
        return None

    def report(self) -> None:
        """Tell the fills what is in the cache now."""
        while self._served:
            fill, start, end, landed, seconds = self._served.popleft()
            fill.settle(start, end, landed=landed, seconds=seconds)

    def _copy(self, blob: Blob, start: int, end: int, message: Read) -> bytes | None:
        begun = time.monotonic()
        view = self._buffer.view[: end - start]
        have = min(end, blob.size) - start
        if not blob.origin.at_hand(start, view[:have]):
            return None
        view[have:] = bytes(end - start - have)
        if not blob.fill.take(start, end):
            return None
        served = None
        try:
            served = self._objects.fd(message.object_id).serve(view, start, message.msg_id)
        finally:
            seconds = time.monotonic() - begun - (served.waited if served else 0.0)
            self._served.append((blob.fill, start, end, served is not None, seconds))
        return served.coming
