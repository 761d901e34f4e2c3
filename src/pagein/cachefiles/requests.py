"""The requests that wait, in the order in which reads of the device deliver them.

The kernel walks its xarray from the last id on and passes over what cannot be delivered (facts
cachefiles-kernel 4.3). With a thousand READs waiting for their objects to be opened again that
walk is most of a read, so what would be passed over stands aside here: `_ready` holds the NEW
requests that a read would return, or would act upon; a READ moves to it, or from it, when its
object changes state. What is delivered, and in which order, is the same.
"""

from __future__ import annotations

import asyncio
import bisect
import errno
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pagein.cachefiles.debug import debug
from pagein.cachefiles.object import CachefilesObject
from pagein.protocol import messages
from pagein.protocol.messages import Opcode
from pagein.protocol.states import (
    ObjectEvent,
    RequestEvent,
    RequestState,
    deliverable,
    next_request_state,
    readable,
)

ID_LIMIT = 0xFFFFFFFF


def error(number: int) -> OSError:
    """The OSError of an errno, as a system call would raise it."""
    return OSError(number, os.strerror(number))


@dataclass(eq=False, slots=True)
class Request:
    """A request that a netfs waits for."""

    msg_id: int
    opcode: Opcode
    object: CachefilesObject
    off: int
    len: int
    pid: int
    done: asyncio.Future[None]
    state: RequestState = RequestState.NEW
    since: float = field(default_factory=time.monotonic)
    at_once: Callable[[], None] | None = None
    """Answers its reader, in whichever thread, if all that is missing is what was asked for."""

    @property
    def message_len(self) -> int:
        """Length in bytes of the message that delivers it."""
        if self.opcode is Opcode.OPEN:
            obj = self.object
            return messages.OPEN_HEADER_SIZE + len(obj.volume_key) + 1 + len(obj.cookie_key)
        return messages.READ_MSG_SIZE if self.opcode is Opcode.READ else messages.HEADER_SIZE

    def event(self, event: RequestEvent) -> None:
        """Go to the state that the table of `protocol.states` names."""
        before = self.state
        self.state = next_request_state(self.opcode, self.state, event)
        if debug.mask:
            debug.say(f"{describe(self)}: {event.name}: {before.name} -> {self.state.name}")


class Requests:
    """The pending requests of one cache."""

    def __init__(self, first_id: int = 0) -> None:
        """Ids count up from `first_id`."""
        self.pending: dict[int, Request] = {}
        self.examined = 0
        """How many requests reads have looked at, ever."""
        self._ready: list[int] = []
        """msg_ids of the NEW requests that a read would not pass over, sorted."""
        self._of: dict[CachefilesObject, dict[int, Request]] = {}
        """The pending ones by object."""
        self._next_id = first_id
        self._cursor = first_id

    def add(
        self, obj: CachefilesObject, opcode: Opcode, off: int, length: int, pid: int
    ) -> Request:
        """A new request. Raises EBUSY when there is no id left."""
        done = asyncio.get_running_loop().create_future()
        request = Request(self._new_msg_id(), opcode, obj, off, length, pid, done)
        self.pending[request.msg_id] = request
        self._of.setdefault(obj, {})[request.msg_id] = request
        self._place(request)
        return request

    def _new_msg_id(self) -> int:
        if len(self.pending) >= ID_LIMIT:
            raise error(errno.EBUSY)
        while self._next_id in self.pending:
            self._next_id = (self._next_id + 1) % ID_LIMIT
        taken = self._next_id
        self._next_id = (taken + 1) % ID_LIMIT
        return taken

    def remove(self, request: Request) -> None:
        """It waits no more; without effect if that is so already."""
        if self.pending.get(request.msg_id) is not request:
            return
        del self.pending[request.msg_id]
        self._set_aside(request.msg_id)
        own = self._of[request.object]
        del own[request.msg_id]
        if not own:
            del self._of[request.object]

    def of(self, obj: CachefilesObject) -> list[Request]:
        """The pending requests of an object, by age."""
        return list(self._of.get(obj, {}).values())

    def object_event(self, obj: CachefilesObject, event: ObjectEvent) -> None:
        """Something happens to an object: its READs may become deliverable, or cease to be."""
        before, state = readable(Opcode.READ, obj.state), obj.state
        obj.event(event)
        if debug.mask:
            key = obj.cookie_key.decode("ascii", errors="backslashreplace")
            debug.say(f"object {key}: {event.name}: {state.name} -> {obj.state.name}")
        if readable(Opcode.READ, obj.state) != before:
            for request in self.of(obj):
                self._place(request)

    def restore(self) -> None:
        """All pending requests are NEW again (facts 10)."""
        for request in self.pending.values():
            request.event(RequestEvent.RESTORE)
            self._place(request)

    @property
    def readable(self) -> bool:
        """Whether the device is POLLIN (facts 5)."""
        return bool(self._ready)

    def next(self, kick: Callable[[CachefilesObject], None]) -> Request | None:
        """What a read delivers next: round robin by msg_id (facts 4.3); None if nothing can be.

        `kick` has an object opened again of which a READ was met; it leads out of CLOSE.
        """
        while self._ready:
            at = bisect.bisect_left(self._ready, self._cursor) % len(self._ready)
            request = self.pending[self._ready[at]]
            self.examined += 1
            if deliverable(request.opcode, request.object.state) == "yes":
                return request
            kick(request.object)
        return None

    def deliver(self, request: Request) -> None:
        """A read takes it: the next one begins behind it."""
        self._set_aside(request.msg_id)
        self._cursor = request.msg_id + 1

    def __iter__(self) -> Iterator[Request]:
        """The pending requests as they are now."""
        return iter(list(self.pending.values()))

    def _place(self, request: Request) -> None:
        wanted = request.state is RequestState.NEW
        if wanted and readable(request.opcode, request.object.state):
            at = bisect.bisect_left(self._ready, request.msg_id)
            if self._ready[at : at + 1] != [request.msg_id]:
                self._ready.insert(at, request.msg_id)
        else:
            self._set_aside(request.msg_id)

    def _set_aside(self, msg_id: int) -> None:
        at = bisect.bisect_left(self._ready, msg_id)
        if self._ready[at : at + 1] == [msg_id]:
            del self._ready[at]


def describe(request: Request) -> str:
    """One line for the log."""
    what = f"{request.opcode.name} {request.msg_id} of {request.object.cookie_key!r}"
    if request.opcode is Opcode.READ:
        what += f" [{request.off}, +{request.len}]"
    return what
