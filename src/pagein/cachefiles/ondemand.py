"""On-demand requests: the kernel's fs/cachefiles/ondemand.c, with futures in place of waits.

Everything here runs on one event loop and never blocks; what is decided by state is looked up in
the tables of `protocol.states`. One request is handed out per read, round robin by msg_id, which
is unique among the pending and not used again at once (facts cachefiles-kernel 4, 14).
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable

from pagein.cachefiles import tracepoints
from pagein.cachefiles.debug import debug
from pagein.cachefiles.object import FD_CLOSED, NEVER_OPENED, CachefilesObject
from pagein.cachefiles.requests import Request, Requests, describe, error
from pagein.cachefiles.tracepoints import trace
from pagein.protocol import commands, messages
from pagein.protocol.messages import Opcode
from pagein.protocol.states import Answer, ObjectEvent, ObjectState, RequestEvent, answers

__all__ = ["NO_FD", "Ondemand", "Request", "describe", "error"]

log = logging.getLogger("pagein.cachefiles")

NO_FD = 0xFFFFFFFF
"""`fd` of an OPEN from this half: the fd is had by opening anon/<object_id> (half-to-half 1)."""
_OBJECT_ID_LIMIT = 0x7FFFFFFF


class Ondemand:
    """The pending requests of one cache, and the objects that have an id."""

    def __init__(
        self, wake: Callable[[], None], *, first_id: int = 0, first_object_id: int = 1
    ) -> None:
        """`wake` is called when pollers should look again; ids count up from the first ones."""
        self._wake = wake
        self.requests = Requests(first_id)
        self._next_object_id = first_object_id
        self.objects: dict[int, CachefilesObject] = {}
        """Objects by object_id, as long as any of its anonymous fds is open or it is OPEN."""
        self.dead = False
        self.restored = 0
        """How often a daemon has said `restore`: from then on another one may read."""

    # ---- asking ------------------------------------------------------------------------------

    def enqueue(
        self, obj: CachefilesObject, opcode: Opcode, off: int = 0, length: int = 0, pid: int = 0
    ) -> Request:
        """Add a request and wake the pollers. Raises EIO when the cache or object is dying."""
        if self.dead or obj.state is ObjectState.DROPPING:
            raise error(errno.EIO)
        request = self.requests.add(obj, opcode, off, length, pid)
        self._wake()
        return request

    @property
    def pending(self) -> dict[int, Request]:
        """The pending requests by msg_id."""
        return self.requests.pending

    async def wait(self, request: Request, timeout: float) -> None:
        """Wait until a request is answered. Raises what it was failed with, or EIO in the end.

        A waiter that is cancelled (killed) or out of time withdraws its request; a late answer
        is then EINVAL (facts 9.5).
        """
        loop = asyncio.get_running_loop()
        late = loop.call_later(timeout, self._late, request, timeout)
        try:
            await request.done
        except asyncio.CancelledError:
            request.done = loop.create_future()  # that one is cancelled as well
            raise
        finally:
            late.cancel()
            self.complete(request, errno.EIO)

    def _late(self, request: Request, timeout: float) -> None:
        log.error("no answer to %s within %g s", describe(request), timeout)
        self.complete(request, errno.EIO)

    def complete(self, request: Request, number: int = 0) -> None:
        """Take a request out and tell its waiter: done, or failed with errno `number`."""
        self.requests.remove(request)
        if request.done.done():
            return
        request.event(RequestEvent.FAIL if number else RequestEvent.COMPLETE)
        if number:
            request.done.set_exception(error(number))
            request.done.exception()  # a waiter that is gone need not look
        else:
            request.done.set_result(None)

    # ---- the device's read and poll ----------------------------------------------------------

    def poll_in(self) -> bool:
        """POLLIN: a NEW request other than a READ of a reopening object (facts 5)."""
        return self.requests.readable

    def read(self, size: int) -> bytes:
        """One message for the user daemon, or b"" when nothing can be delivered (facts 4.3).

        Raises EMSGSIZE when `size` is too small (the request stays), EEXIST for an OPEN of an
        object whose anonymous fd is still open (the request fails).
        """
        if debug.mask:
            debug.enter("cachefiles_ondemand_daemon_read", size)
        request = self.requests.next(self._start_reopening)
        if request is None:
            return b""
        if size < request.message_len:
            raise error(errno.EMSGSIZE)
        self.requests.deliver(request)
        if request.opcode is Opcode.OPEN:
            self._assign_object_id(request)
        message = self._message(request)
        request.event(RequestEvent.DELIVER)
        if trace.on:
            _trace_delivery(request)
        if debug.mask:
            debug.leave("cachefiles_ondemand_daemon_read", len(message))
        if request.opcode is Opcode.CLOSE:
            self.requests.remove(request)
            if not request.done.done():
                request.done.set_result(None)
        return message

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
        self.requests.object_event(obj, ObjectEvent.READ_MET)
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
            or not answers(Answer.COPEN, request.opcode)
            or request.object.ondemand_id == NEVER_OPENED
        ):
            raise error(errno.EINVAL)
        obj = request.object
        try:
            size = commands.parse_copen_size(raw_size)
            if trace.on:
                trace.event(tracepoints.ONDEMAND_COPEN, obj.cookie_key, msg_id, size)
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
        self.requests.object_event(obj, ObjectEvent.COPEN)
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
        request = self.reading(object_id, msg_id)
        trace_cread(request)
        self.complete(request)

    def reading(self, object_id: int, msg_id: int) -> Request:
        """The READ that a CREAD would complete. Raises EINVAL."""
        request = self.pending.get(msg_id)
        obj = self.objects.get(object_id)
        if (
            request is None
            or obj is None
            or not answers(Answer.CREAD, request.opcode)
            or request.object is not obj
        ):
            raise error(errno.EINVAL)
        return request

    def restore(self) -> None:
        """Mark all pending requests NEW and wake the pollers (facts 10).

        An object whose anonymous file was delivered but never opened counts as closed: whoever
        could have opened it is gone.
        """
        for obj in list(self.objects.values()):
            if not obj.handles:
                self._fds_closed(obj)
        self.restored += 1
        self.requests.restore()
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
        if trace.on:
            trace.event(tracepoints.ONDEMAND_FD_RELEASE, obj.cookie_key, object_id)
        # A CLOSE that waits is delivered all the same, with an id of nobody (facts 4.2): the kernel
        # looks for its id in the message, where it stands only once it has been read.
        if obj.state is not ObjectState.DROPPING:
            self.requests.object_event(obj, ObjectEvent.FD_CLOSED)

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
            self.requests.object_event(obj, ObjectEvent.DROP)
        for request in self.requests.of(obj):
            self.complete(request, errno.EIO)
        if not obj.handles:
            self.objects.pop(obj.ondemand_id, None)

    def die(self) -> None:
        """The cache is dead: first no new requests, then fail every pending one EIO (7.5)."""
        self.dead = True
        for request in self.requests:
            self.complete(request, errno.EIO)

    @property
    def anonymous_open(self) -> bool:
        """Whether any anonymous fd is still open, which keeps the device busy (facts 1)."""
        return any(obj.handles for obj in self.objects.values())


def trace_cread(request: Request) -> None:
    """A READ is being completed."""
    if trace.on:
        trace.event(tracepoints.ONDEMAND_CREAD, request.object.cookie_key, request.msg_id)


def _trace_delivery(request: Request) -> None:
    obj = request.object
    ids = (request.msg_id, obj.ondemand_id & NO_FD)
    if request.opcode is Opcode.OPEN:
        trace.event(tracepoints.ONDEMAND_OPEN, obj.cookie_key, *ids, NO_FD, 0)
    elif request.opcode is Opcode.READ:
        trace.event(tracepoints.ONDEMAND_READ, obj.cookie_key, *ids, request.off, request.len)
    else:
        trace.event(tracepoints.ONDEMAND_CLOSE, obj.cookie_key, *ids)
