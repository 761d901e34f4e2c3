"""On-demand requests: the kernel's fs/cachefiles/ondemand.c, with futures in place of waits.

Everything here runs on one event loop and never blocks; what is decided by state is looked up in
the tables of `protocol.states`. One request is handed out per read, round robin by msg_id, which
is unique among the pending and not used again at once (facts cachefiles-kernel 4, 14).
"""

from __future__ import annotations

import asyncio
import bisect
import errno
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pagein.cachefiles.object import FD_CLOSED, NEVER_OPENED, CachefilesObject
from pagein.protocol import commands, messages
from pagein.protocol.messages import Opcode
from pagein.protocol.states import (
    ObjectEvent,
    ObjectState,
    RequestEvent,
    RequestState,
    deliverable,
    next_request_state,
    readable,
)

log = logging.getLogger("pagein.cachefiles")

NO_FD = 0xFFFFFFFF
"""`fd` of an OPEN from this half: the fd is had by opening anon/<object_id> (half-to-half 1)."""
_ID_LIMIT = 0xFFFFFFFF
_OBJECT_ID_LIMIT = 0x7FFFFFFF
_LOWEST_ERRNO = -4095


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

    @property
    def message_len(self) -> int:
        """Length in bytes of the message that delivers it."""
        if self.opcode is Opcode.OPEN:
            obj = self.object
            return messages.OPEN_HEADER_SIZE + len(obj.volume_key) + 1 + len(obj.cookie_key)
        return messages.READ_MSG_SIZE if self.opcode is Opcode.READ else messages.HEADER_SIZE


class Ondemand:
    """The pending requests of one cache, and the objects that have an id."""

    def __init__(
        self, wake: Callable[[], None], *, first_id: int = 0, first_object_id: int = 1
    ) -> None:
        """`wake` is called when pollers should look again; ids count up from the first ones."""
        self._wake = wake
        self.pending: dict[int, Request] = {}
        self._new: list[int] = []
        """msg_ids of the NEW requests, sorted."""
        self._next_id = first_id
        self._cursor = first_id
        self._next_object_id = first_object_id
        self.objects: dict[int, CachefilesObject] = {}
        """Objects by object_id, as long as any of its anonymous fds is open or it is OPEN."""
        self.dead = False

    # ---- asking ------------------------------------------------------------------------------

    def enqueue(
        self, obj: CachefilesObject, opcode: Opcode, off: int = 0, length: int = 0, pid: int = 0
    ) -> Request:
        """Add a request and wake the pollers. Raises EIO when the cache or object is dying."""
        if self.dead or obj.state is ObjectState.DROPPING:
            raise error(errno.EIO)
        done = asyncio.get_running_loop().create_future()
        request = Request(self._new_msg_id(), opcode, obj, off, length, pid, done)
        self.pending[request.msg_id] = request
        bisect.insort(self._new, request.msg_id)
        self._wake()
        return request

    def _new_msg_id(self) -> int:
        if len(self.pending) >= _ID_LIMIT:
            raise error(errno.EBUSY)
        while self._next_id in self.pending:
            self._next_id = (self._next_id + 1) % _ID_LIMIT
        taken = self._next_id
        self._next_id = (taken + 1) % _ID_LIMIT
        return taken

    async def wait(self, request: Request, timeout: float) -> None:
        """Wait until a request is answered. Raises what it was failed with, or EIO in the end.

        A waiter that is cancelled (killed) or out of time withdraws its request; a late answer
        is then EINVAL (facts 9.5).
        """
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(request.done)
        except TimeoutError:
            log.error("no answer to %s within %g s", describe(request), timeout)
            raise error(errno.EIO) from None
        finally:
            self.complete(request, errno.EIO)

    def complete(self, request: Request, number: int = 0) -> None:
        """Take a request out and tell its waiter: done, or failed with errno `number`."""
        if self.pending.get(request.msg_id) is request:
            del self.pending[request.msg_id]
            self._forget_new(request.msg_id)
        if request.done.done():
            return
        request.state = next_request_state(
            request.opcode,
            request.state,
            RequestEvent.FAIL if number else RequestEvent.COMPLETE,
        )
        if number:
            request.done.set_exception(error(number))
            request.done.exception()  # a waiter that is gone need not look
        else:
            request.done.set_result(None)

    def _forget_new(self, msg_id: int) -> None:
        at = bisect.bisect_left(self._new, msg_id)
        if at < len(self._new) and self._new[at] == msg_id:
            del self._new[at]

    # ---- the device's read and poll ----------------------------------------------------------

    def poll_in(self) -> bool:
        """POLLIN: a NEW request other than a READ of a reopening object (facts 5)."""
        return any(
            readable(self.pending[msg_id].opcode, self.pending[msg_id].object.state)
            for msg_id in self._new
        )

    def read(self, size: int) -> bytes:
        """One message for the user daemon, or b"" when nothing can be delivered (facts 4.3).

        Raises EMSGSIZE when `size` is too small (the request stays), EEXIST for an OPEN of an
        object whose anonymous fd is still open (the request fails).
        """
        request = self._select()
        if request is None:
            return b""
        if size < request.message_len:
            raise error(errno.EMSGSIZE)
        self._forget_new(request.msg_id)
        self._cursor = request.msg_id + 1
        if request.opcode is Opcode.OPEN:
            self._assign_object_id(request)
        message = self._message(request)
        request.state = next_request_state(request.opcode, request.state, RequestEvent.DELIVER)
        if request.opcode is Opcode.CLOSE:
            del self.pending[request.msg_id]
            if not request.done.done():
                request.done.set_result(None)
        return message

    def _select(self) -> Request | None:
        at = bisect.bisect_left(self._new, self._cursor)
        for msg_id in self._new[at:] + self._new[:at]:
            request = self.pending[msg_id]
            verdict = deliverable(request.opcode, request.object.state)
            if verdict == "yes":
                return request
            if verdict == "kick":
                self._start_reopening(request.object)
        return None

    def _assign_object_id(self, request: Request) -> None:
        obj = request.object
        if obj.live_id is not None:
            self.complete(request, errno.EEXIST)
            raise error(errno.EEXIST)
        while self._next_object_id in self.objects:
            self._next_object_id = self._next_object_id % _OBJECT_ID_LIMIT + 1
        obj.ondemand_id = self._next_object_id
        self._next_object_id = self._next_object_id % _OBJECT_ID_LIMIT + 1
        self.objects[obj.ondemand_id] = obj

    def _message(self, request: Request) -> bytes:
        obj = request.object
        if request.opcode is Opcode.OPEN:
            return messages.Open(
                request.msg_id, obj.ondemand_id, obj.volume_key, obj.cookie_key, NO_FD
            ).encode()
        if request.opcode is Opcode.READ:
            return messages.Read(request.msg_id, obj.ondemand_id, request.off, request.len).encode()
        return messages.Close(request.msg_id, obj.ondemand_id & NO_FD).encode()

    def _start_reopening(self, obj: CachefilesObject) -> None:
        obj.event(ObjectEvent.READ_MET)
        # One OPEN at a time: that of an earlier reopening may still wait for its answer, or for
        # `restore`, and will do.
        if obj.worker is None:
            obj.worker = asyncio.get_running_loop().create_task(self._reopen(obj))

    async def _reopen(self, obj: CachefilesObject) -> None:
        try:
            # Again when the fd was closed, and a READ met, between copen and here.
            while obj.state is ObjectState.REOPENING and obj.live_id is None:
                await self._open_again(obj)
        finally:
            obj.worker = None

    async def _open_again(self, obj: CachefilesObject) -> None:
        try:
            # Without a deadline, as in the kernel: its readers have theirs, and the object's end
            # is the end of this too (drop).
            await self.enqueue(obj, Opcode.OPEN).done
        except OSError as problem:
            log.info("reopening %r failed: %s", obj.cookie_key, problem)
            if obj.state is ObjectState.REOPENING and not obj.handles:
                self._fds_closed(obj)

    # ---- answers -----------------------------------------------------------------------------

    def copen(self, args: bytes) -> CachefilesObject | None:
        """Complete an OPEN (facts 6); returns the object when it is open now, else None.

        Raises EINVAL or ERANGE as the kernel's copen does, from step 3 on with the OPEN failed.
        """
        msg_id, raw_size = commands.parse_copen(args)
        request = self.pending.get(msg_id)
        if (
            request is None
            or request.opcode is not Opcode.OPEN
            or request.object.ondemand_id == NEVER_OPENED
        ):
            raise error(errno.EINVAL)
        obj = request.object
        try:
            size = commands.parse_copen_size(raw_size)
        except OSError as problem:
            self._fail_open(request, problem.errno or errno.EINVAL)
            raise
        if size < 0:
            self._fail_open(request, -size)
            return None
        if obj.ondemand_id == FD_CLOSED:
            self._fail_open(request, errno.EBADFD)
            return None
        if obj.file is None:
            obj.size = size
        elif obj.size != size:
            # Its file has the length of the first one; the kernel goes on likewise (facts 10).
            log.warning("%r has %s bytes, not the %d told now", obj.cookie_key, obj.size, size)
        obj.event(ObjectEvent.COPEN)
        self.complete(request)
        self._wake()
        return obj

    def _fail_open(self, request: Request, number: int) -> None:
        obj = request.object
        self.complete(request, number)
        if not obj.handles and obj.live_id is not None:
            # Nobody ever opened its anonymous file: there is no last close to wait for.
            self._fds_closed(obj)

    def cread(self, object_id: int, msg_id: int) -> None:
        """Complete a READ of the object that `object_id` names (facts 8.3). Raises EINVAL."""
        request = self.pending.get(msg_id)
        obj = self.objects.get(object_id)
        if (
            request is None
            or obj is None
            or request.opcode is not Opcode.READ
            or request.object is not obj
        ):
            raise error(errno.EINVAL)
        self.complete(request)

    def restore(self) -> None:
        """Mark all pending requests NEW and wake the pollers (facts 10).

        An object whose anonymous file was delivered but never opened counts as closed: whoever
        could have opened it is gone.
        """
        for obj in list(self.objects.values()):
            if not obj.handles:
                self._fds_closed(obj)
        for request in self.pending.values():
            request.state = next_request_state(request.opcode, request.state, RequestEvent.RESTORE)
        self._new = sorted(self.pending)
        self._wake()

    # ---- anonymous fds -----------------------------------------------------------------------

    def open_handle(self, object_id: int, handle: int) -> CachefilesObject:
        """A new file description of anon/<object_id>. Raises ENOENT for an id not in use."""
        obj = self.objects.get(object_id)
        if obj is None or obj.ondemand_id != object_id or obj.state is ObjectState.DROPPING:
            raise error(errno.ENOENT)
        obj.handles.add(handle)
        return obj

    def close_handle(self, object_id: int, handle: int) -> None:
        """One file description of an anonymous file is closed; unknown ones are ignored."""
        obj = self.objects.get(object_id)
        if obj is None or handle not in obj.handles:
            return
        obj.handles.discard(handle)
        if not obj.handles:
            self._fds_closed(obj)

    def _fds_closed(self, obj: CachefilesObject) -> None:
        """The last close of the anonymous fd (facts 8.4)."""
        object_id, obj.ondemand_id = obj.ondemand_id, FD_CLOSED
        self.objects.pop(object_id, None)
        # A CLOSE that waits is delivered all the same, with an id of nobody (facts 4.2): the kernel
        # looks for its id in the message, where it stands only once it has been read.
        if obj.state is not ObjectState.DROPPING:
            obj.event(ObjectEvent.FD_CLOSED)

    # ---- the end of an object, the end of the cache ------------------------------------------

    async def withdraw(self, obj: CachefilesObject, timeout: float) -> None:
        """Tell the daemon by CLOSE, then drop the object: its pending requests fail EIO.

        Waits at most `timeout` seconds for the CLOSE to be read.
        """
        if obj.state is ObjectState.OPEN and not self.dead:
            request = self.enqueue(obj, Opcode.CLOSE)
            try:
                await self.wait(request, timeout)
            except OSError:
                log.warning("the daemon did not take the CLOSE of %r", obj.cookie_key)
        self.drop(obj)

    def drop(self, obj: CachefilesObject) -> None:
        """No further requests of this object; all pending ones fail EIO."""
        if obj.state is not ObjectState.DROPPING:
            obj.event(ObjectEvent.DROP)
        for request in list(self.pending.values()):
            if request.object is obj:
                self.complete(request, errno.EIO)
        if not obj.handles:
            self.objects.pop(obj.ondemand_id, None)

    def die(self) -> None:
        """The cache is dead: first no new requests, then fail every pending one EIO (7.5)."""
        self.dead = True
        for request in list(self.pending.values()):
            self.complete(request, errno.EIO)

    @property
    def anonymous_open(self) -> bool:
        """Whether any anonymous fd is still open, which keeps the device busy (facts 1)."""
        return any(obj.handles for obj in self.objects.values())


def describe(request: Request) -> str:
    """One line for the log."""
    what = f"{request.opcode.name} {request.msg_id} of {request.object.cookie_key!r}"
    if request.opcode is Opcode.READ:
        what += f" [{request.off}, +{request.len}]"
    return what
