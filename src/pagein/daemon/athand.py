"""READs whose bytes are at hand: served by the thread that hears of them, from start to end.

A READ of a local file that is in the page cache is two copies and three system calls. On its way
through the event loop it would change threads five times, which costs several times as much. So
the thread does all of it, under these conditions:

* The READ came alone. Others, and above all OPEN and CLOSE, would wait behind it.
* The origin has the bytes without waiting (`Origin.at_hand`); a source that is slow, or a disk that
  has to be asked, is work for the loop. What is written goes to the disk, or the kernel half, that
  the next message comes from: if it hangs, there is none.
* Nobody else fetches the range, and no other process shares the cache. `Fill.take` sees to it.

In every other case, an error included, nothing has happened, and the loop does what it always does.
"""

from __future__ import annotations

import logging
from collections import deque

from pagein.daemon.buffers import BUFFER_SIZE, Buffer
from pagein.daemon.fill import Fill, Taken
from pagein.daemon.objects import Blob, ObjectTable
from pagein.protocol.messages import Read

log = logging.getLogger("pagein.daemon")


_UNREPORTED = 64  # READs, after which the loop hears of them also in the middle of many


class AtHand:
    """The `Shortcut` of a daemon."""

    def __init__(self, objects: ObjectTable) -> None:
        """`objects` belongs to the loop; from the thread each is only looked up."""
        self.due = False
        self._objects = objects
        self._buffer = Buffer(BUFFER_SIZE)
        self._served: deque[tuple[Fill, Taken, bool]] = deque()

    def serve(self, message: Read) -> bool:
        """Complete `message` if its bytes are at hand."""
        blob = self._objects.blob(message.object_id)
        if blob is None or message.len > BUFFER_SIZE or not blob.simple:
            return False
        taken = blob.fill.take(message.off, message.len)
        if taken is None:
            return False
        done = False
        try:
            done = self._copy(blob, taken, message)
        except OSError as exc:
            log.debug("%s: not served at once: %s", blob.name, exc)
        except Exception:  # somebody's origin
            log.exception("%s: READ of %d bytes at %d", blob.name, message.len, message.off)
        finally:
            self._served.append((blob.fill, taken, done))
        more = taken.plan.demand != (taken.start, taken.end) or taken.plan.ahead is not None
        self.due = more or len(self._served) >= _UNREPORTED
        return done

    def report(self) -> None:
        """Tell the fills what is in the cache now; they fetch what is planned beside it."""
        while self._served:
            fill, taken, done = self._served.popleft()
            fill.settle(taken, landed=done)

    def _copy(self, blob: Blob, taken: Taken, message: Read) -> bool:
        length = taken.end - taken.start
        have = min(taken.end, blob.size) - taken.start
        view = self._buffer.view[:length]
        if not blob.origin.at_hand(taken.start, view[:have]):
            return False
        view[have:] = bytes(length - have)
        self._objects.fd(message.object_id).serve(view, taken.start, message.msg_id)
        return True
