"""Runs a recording through the tables of `pagein.protocol.states`.

What the kernel did between the calls is not in a recording: a request shows itself when it is
delivered, an object when its OPEN is. So this takes the first sight of a request for its beginning,
and infers one thing: an object that was open, is not, and is asked for again by an OPEN has met a
READ. All else must follow from the tables, and every answer from what is pending.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tests.protocol.recording import Entry, Kind

from pagein.protocol import commands
from pagein.protocol.messages import PAGE_SIZE, Close, Message, Opcode, Open, Read, decode
from pagein.protocol.states import (
    ObjectEvent,
    ObjectState,
    RequestEvent,
    RequestState,
    deliverable,
    next_object_state,
    next_request_state,
)

POLLIN = 1


class Contradiction(AssertionError):
    """The recording says what the tables do not allow."""


def require(condition: bool, text: object) -> None:
    """Raise Contradiction unless `condition`."""
    if not condition:
        raise Contradiction(str(text))


@dataclass(eq=False)
class Object:
    """An object from its first OPEN to its CLOSE."""

    key: tuple[bytes, bytes]
    state: ObjectState = ObjectState.CLOSE
    fd: int | None = None
    was_open: bool = False


@dataclass(eq=False)
class Request:
    """A request from its first delivery on."""

    message: Message
    object: Object
    state: RequestState = RequestState.NEW


class Replay:
    """The state of everything that a recording has shown so far."""

    def __init__(self) -> None:
        self.objects: dict[tuple[bytes, bytes], Object] = {}
        """By volume and cookie key, those that are in use."""
        self.ids: dict[int, Object] = {}
        """By object_id, those with an open fd."""
        self.pending: dict[int, Request] = {}
        self.seen: Counter[object] = Counter()
        """How often each transition of the tables was taken, and each errno given (as a number)."""
        self._used: set[int] = set()
        self._readable = False

    def run(self, entries: Iterable[Entry]) -> None:
        """Take every entry, and see that nothing is left. Raises Contradiction or what they do."""
        for entry in entries:
            if entry.result < 0:
                self.seen[-entry.result] += 1
            {
                Kind.MARK: lambda _: None,
                Kind.POLL: self._polled,
                Kind.READ: self._read,
                Kind.COMMAND: self._command,
                Kind.CREAD: self._cread,
                Kind.WRITTEN: self._written,
                Kind.CLOSED: self._closed,
            }[entry.kind](entry)
        require(not self.pending, f"never answered: {self.pending}")
        require(not self.ids, f"never closed: {self.ids}")

    # ---- events

    def _object_event(self, obj: Object, event: ObjectEvent) -> None:
        self.seen[obj.state, event] += 1
        obj.state = next_object_state(obj.state, event)

    def _request_event(self, request: Request, event: RequestEvent) -> None:
        message = request.message
        self.seen[message.opcode, request.state, event] += 1
        request.state = next_request_state(message.opcode, request.state, event)
        if request.state is RequestState.DONE:
            self.pending.pop(message.msg_id, None)

    # ---- the device

    def _polled(self, entry: Entry) -> None:
        require(entry.result == POLLIN, f"poll: {entry.result}")
        self._readable = True

    def _read(self, entry: Entry) -> None:
        require(entry.result == len(entry.payload) or entry.result < 0, "length of a read")
        asked, self._readable = self._readable, False
        if entry.result < 0:
            return
        if not entry.payload:
            self._kick(asked)
            return
        require(asked, "a message that poll did not tell of")
        message = decode(entry.payload)
        require(message.encode() == entry.payload, "decoded and encoded is not the same")
        deliver = {Open: self._deliver_open, Read: self._deliver_read, Close: self._deliver_close}
        deliver[type(message)](message)

    def _kick(self, asked: bool) -> None:
        """A read of nothing: every READ of an object in CLOSE was met."""
        waiting = {
            each.object for each in self.pending.values() if each.message.opcode is Opcode.READ
        }
        kicked = [obj for obj in waiting if deliverable(Opcode.READ, obj.state) == "kick"]
        for obj in kicked:
            self._object_event(obj, ObjectEvent.READ_MET)
        # Without a READ that was seen before it must be one that was not.
        unseen = any(obj.was_open and obj.fd is None for obj in self.objects.values())
        require(not asked or bool(kicked) or unseen, "poll told of a message, and there is none")

    def _deliver_open(self, message: Message) -> None:
        assert isinstance(message, Open)
        key = message.volume_key, message.cookie_key
        obj = self.objects.setdefault(key, Object(key))
        require(obj.fd is None, f"OPEN of {key}, which has an fd")
        require(message.object_id not in self._used, f"object_id {message.object_id} again")
        require(message.fd not in {each.fd for each in self.ids.values()}, "fd in use")
        if obj.was_open and obj.state is ObjectState.CLOSE:
            self._object_event(obj, ObjectEvent.READ_MET)
        self._used.add(message.object_id)
        self.ids[message.object_id] = obj
        obj.fd = message.fd
        self._deliver(message, obj)

    def _deliver_read(self, message: Message) -> None:
        assert isinstance(message, Read)
        require(message.off % PAGE_SIZE == message.len % PAGE_SIZE == 0, f"{message}: not pages")
        obj = self._known(message)
        require(deliverable(Opcode.READ, obj.state) == "yes", f"{message} of {obj}")
        self._deliver(message, obj)

    def _deliver_close(self, message: Message) -> None:
        assert isinstance(message, Close)
        obj = self._known(message)
        self._deliver(message, obj)
        self._object_event(obj, ObjectEvent.DROP)
        del self.objects[obj.key]

    def _known(self, message: Message) -> Object:
        require(message.object_id in self.ids, f"{message} of an object without an fd")
        return self.ids[message.object_id]

    def _deliver(self, message: Message, obj: Object) -> None:
        request = self.pending.setdefault(message.msg_id, Request(message, obj))
        require(request.object is obj, f"{message}: the id is that of {request.message}")
        self._request_event(request, RequestEvent.DELIVER)

    # ---- answers

    def _command(self, entry: Entry) -> None:
        try:
            verb, args = commands.split(entry.payload)
            if verb == "copen":
                self._copen(entry, *commands.parse_copen(args))
                return
            commands.VERBS[verb](args)
        except commands.CommandError as refused:
            require(entry.result == -(refused.errno or 0), f"{entry}: {refused}")
            return
        # Only a state that is not in the text can refuse what the text allows.
        allowed = {len(entry.payload), -errno.EEXIST, -errno.EBUSY}
        require(entry.result in allowed, f"{entry} is well formed")
        if verb == "restore":
            for request in list(self.pending.values()):
                self._request_event(request, RequestEvent.RESTORE)

    def _copen(self, entry: Entry, msg_id: int, raw_size: bytes) -> None:
        request = self.pending.get(msg_id)
        if request is None or request.message.opcode is not Opcode.OPEN:
            require(entry.result == -errno.EINVAL, f"{entry}: no such OPEN")
            return
        require(entry.result == len(entry.payload), f"{entry}: it is pending")
        size = commands.parse_copen_size(raw_size)
        require(entry.payload == commands.copen(msg_id, size), f"{entry}: not as we would say it")
        obj = request.object
        if size < 0 or obj.fd is None:
            self._request_event(request, RequestEvent.FAIL)
            return
        self._request_event(request, RequestEvent.COMPLETE)
        self._object_event(obj, ObjectEvent.COPEN)
        obj.was_open = True

    def _cread(self, entry: Entry) -> None:
        fd, msg_id = entry.cread
        request = self.pending.get(msg_id)
        right = (
            request is not None
            and request.message.opcode is Opcode.READ
            and request.object.fd == fd
        )
        require(entry.result == (0 if right else -errno.EINVAL), f"CREAD of {msg_id}: {entry}")
        if right:
            assert request is not None
            self._request_event(request, RequestEvent.COMPLETE)

    def _written(self, entry: Entry) -> None:
        fd, off, length = entry.written
        (obj,) = (each for each in self.ids.values() if each.fd == fd)
        require(obj.state is ObjectState.OPEN, f"written to {obj}")
        require(off % PAGE_SIZE == length % PAGE_SIZE == 0, f"{entry}: not pages")
        require(entry.result == length, f"{entry}: not all")

    def _closed(self, entry: Entry) -> None:
        (object_id,) = (key for key, each in self.ids.items() if each.fd == entry.closed)
        obj = self.ids.pop(object_id)
        obj.fd = None
        self._object_event(obj, ObjectEvent.FD_CLOSED)
