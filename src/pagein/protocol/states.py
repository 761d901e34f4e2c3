"""The life of objects and of requests, as tables that both halves use.

An *object* is one cache file while somebody uses it. Its state says whether the user half holds an
anonymous fd for it (facts cachefiles-kernel 7.1):

  CLOSE      nobody does: not yet, or not any more. Both are one state, because the same thing
             follows from them: a READ cannot be handed out, there is no fd to write through.
  OPEN       an OPEN was answered by a successful copen and the fd lives.
  REOPENING  the fd is gone, a READ wants it back: a new OPEN is on its way.
  DROPPING   the object is being withdrawn; nothing leads out of it.

What is easily got wrong:

* Delivering an OPEN changes no object state. Only copen does; until then a live fd belongs to an
  object in CLOSE or REOPENING, and its writes fail.
* The user half cannot close an object by an answer. A negative copen leaves the state alone; it is
  the last close of the fd that leads to CLOSE. So a daemon that refuses a re-OPEN and keeps the fd
  leaves the object REOPENING, and its readers waiting (facts cachefiles-kernel 7.1).
* A dead user half is nothing special: all its fds close, its objects go to CLOSE, and the next
  READ of each brings it back through REOPENING. That is the whole failover, with `restore` for the
  requests it had taken along.
* It is the read() of the device that sends an object from CLOSE to REOPENING, not the reader's
  request: while nobody reads the device, asking for an OPEN would be of no use. This read() may
  find nothing else and return 0, although poll said there was something (`"kick"` below).
* A REOPENING object's READs do not make the device readable. If they did, a daemon would spin
  between poll and a read() of 0 bytes until copen (facts cachefiles-kernel 14).

A *request* is one message and the task that waits for its outcome (facts cachefiles-kernel 4, 8
and 10):

  NEW        no read() has taken it, or `restore` said that the one who took it is gone.
  DELIVERED  the user half has it and owes an answer. A CLOSE is never here: it wants no answer, so
             the read() that delivers it completes it.
  DONE       answered, or failed; it is not among the pending ones any more, and its id is free.

Two transitions may surprise. A READ can be completed while NEW: CREAD of a guessed or remembered id
counts (facts cachefiles-kernel 8.3), and after `restore` the first CREAD wins. The same holds for
an OPEN that was delivered once: what decides whether copen finds it is whether the *object* ever
got an fd (facts cachefiles-kernel 6, step 2), which is the guard of the caller. A CLOSE that nobody
read is completed by the last close of the fd it asks for (8.4).

A *cache* is a directory that one open of the device has bound (facts cachefiles-kernel 1 and 7.5):

  UNBOUND    the device is open; nothing can be mounted.
  READY      bound: the only state in which requests come to be.
  DEAD       the last fd of the device was closed. First it is dead, then all that waits fails, so
             that nothing can be asked in between. What is present is still read, and anonymous fds
             that live on still write: who dies last has the last word.
  WITHDRAWN  the last anonymous fd was closed too; every file is closed, and the device can be
             opened again. Nothing revives what was mounted: it has to be mounted anew.

*Who may answer* what is a table as well. An id alone says little: a late answer of a daemon that
was replaced may name the id of another request by now, of another kind or another object. So a
copen answers an OPEN, CREAD a READ, and each its own object's; anything else is EINVAL and changes
nothing (facts 6 and 8.3). What a copen *tells* decides the rest (`COPEN_TABLE`): from the moment
that its request is found it is answered, whatever else is wrong with it. The size that counts is
that of an object's first copen; at a reopening its file is there, and another size is heard and
not believed. It is the size in the file's attribute that drops a cached file, at the next lookup.

*Waits* have an end (`WAIT_TABLE`). Who is killed withdraws its request, and the late answer is
EINVAL (9.5); only a lookup cannot be killed, since the daemon has an fd by then, and is owed a
CLOSE (7.2). Nothing waits for ever: here there is a deadline where the kernel has none.

The tables hold what is possible; what is not in them raises `IllegalTransition` and is a bug of the
caller. EMSGSIZE, a copen or CREAD that is answered EINVAL, and a write change no state.

`python -m pagein.protocol.diagrams` prints the tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from pagein.protocol.messages import Opcode


class IllegalTransition(RuntimeError):
    """An event that cannot happen in this state: a bug of the half that reports it."""


class ObjectState(Enum):
    """Whether the user half holds an anonymous fd for an object."""

    CLOSE = auto()
    OPEN = auto()
    REOPENING = auto()
    DROPPING = auto()


class ObjectEvent(Enum):
    """What happens to an object."""

    COPEN = auto()
    """A successful copen whose anonymous fd is still open."""
    FD_CLOSED = auto()
    """The last close of the anonymous fd, before or after copen; or an OPEN's failed delivery."""
    READ_MET = auto()
    """A read() of the device comes upon a READ of an object in CLOSE."""
    DROP = auto()
    """The object is withdrawn: its cookie is given up, or the cache goes off line."""


ObjectTable: TypeAlias = Mapping[tuple[ObjectState, ObjectEvent], ObjectState]

OBJECT_TABLE: Final[ObjectTable] = MappingProxyType(
    {
        (ObjectState.CLOSE, ObjectEvent.COPEN): ObjectState.OPEN,
        (ObjectState.CLOSE, ObjectEvent.READ_MET): ObjectState.REOPENING,
        (ObjectState.CLOSE, ObjectEvent.FD_CLOSED): ObjectState.CLOSE,
        (ObjectState.CLOSE, ObjectEvent.DROP): ObjectState.DROPPING,
        (ObjectState.OPEN, ObjectEvent.FD_CLOSED): ObjectState.CLOSE,
        (ObjectState.OPEN, ObjectEvent.DROP): ObjectState.DROPPING,
        (ObjectState.REOPENING, ObjectEvent.COPEN): ObjectState.OPEN,
        (ObjectState.REOPENING, ObjectEvent.FD_CLOSED): ObjectState.CLOSE,
        (ObjectState.REOPENING, ObjectEvent.DROP): ObjectState.DROPPING,
        # A dup may outlive the withdrawal; its close is without effect.
        (ObjectState.DROPPING, ObjectEvent.FD_CLOSED): ObjectState.DROPPING,
    }
)
"""Every possible transition of an object; it begins in CLOSE."""


class RequestState(Enum):
    """How far a request has come."""

    NEW = auto()
    DELIVERED = auto()
    DONE = auto()


class RequestEvent(Enum):
    """What happens to a request."""

    DELIVER = auto()
    """A read() of the device returned it."""
    RESTORE = auto()
    """`restore` was written: whoever took the request is gone."""
    COMPLETE = auto()
    """Answered (copen, CREAD), or a CLOSE whose last fd was closed."""
    FAIL = auto()
    """Failed: negative copen, failed delivery, killed reader, withdrawn object, dead device."""


RequestTable: TypeAlias = Mapping[tuple[Opcode, RequestState, RequestEvent], RequestState]

_ANSWERED: Final = {
    (RequestState.NEW, RequestEvent.DELIVER): RequestState.DELIVERED,
    (RequestState.NEW, RequestEvent.RESTORE): RequestState.NEW,
    (RequestState.NEW, RequestEvent.COMPLETE): RequestState.DONE,
    (RequestState.NEW, RequestEvent.FAIL): RequestState.DONE,
    (RequestState.DELIVERED, RequestEvent.RESTORE): RequestState.NEW,
    (RequestState.DELIVERED, RequestEvent.COMPLETE): RequestState.DONE,
    (RequestState.DELIVERED, RequestEvent.FAIL): RequestState.DONE,
}

_UNANSWERED: Final = {
    (RequestState.NEW, RequestEvent.DELIVER): RequestState.DONE,
    (RequestState.NEW, RequestEvent.RESTORE): RequestState.NEW,
    (RequestState.NEW, RequestEvent.COMPLETE): RequestState.DONE,
    (RequestState.NEW, RequestEvent.FAIL): RequestState.DONE,
}

REQUEST_TABLE: Final[RequestTable] = MappingProxyType(
    {
        (opcode, state, event): after
        for opcode, table in (
            (Opcode.OPEN, _ANSWERED),
            (Opcode.READ, _ANSWERED),
            (Opcode.CLOSE, _UNANSWERED),
        )
        for (state, event), after in table.items()
    }
)
"""Every possible transition of a request; it begins as NEW."""


class CacheState(Enum):
    """How far the open device is with its cache directory."""

    UNBOUND = auto()
    READY = auto()
    DEAD = auto()
    WITHDRAWN = auto()


class CacheEvent(Enum):
    """What happens to a cache."""

    BIND = auto()
    """A `bind` that succeeds; one that fails is no event."""
    DEVICE_CLOSED = auto()
    """The last close of the device, while anonymous fds are open."""
    ALL_CLOSED = auto()
    """The last close of the last fd, be it the device's or an anonymous one's."""


CACHE_TABLE: Final[Mapping[tuple[CacheState, CacheEvent], CacheState]] = MappingProxyType(
    {
        (CacheState.UNBOUND, CacheEvent.BIND): CacheState.READY,
        (CacheState.UNBOUND, CacheEvent.ALL_CLOSED): CacheState.WITHDRAWN,
        (CacheState.READY, CacheEvent.DEVICE_CLOSED): CacheState.DEAD,
        (CacheState.READY, CacheEvent.ALL_CLOSED): CacheState.WITHDRAWN,
        (CacheState.DEAD, CacheEvent.ALL_CLOSED): CacheState.WITHDRAWN,
    }
)
"""Every possible transition of a cache; it begins in UNBOUND."""


class Answer(Enum):
    """What the user half says to a request."""

    COPEN = auto()
    CREAD = auto()


ANSWERS: Final[Mapping[Answer, Opcode]] = MappingProxyType(
    {Answer.COPEN: Opcode.OPEN, Answer.CREAD: Opcode.READ}
)
"""Which requests an answer is for. A CLOSE has none."""


class Told(Enum):
    """What a copen says after its comma."""

    SIZE = "a size"
    ERRNO = "-1 to -4095"
    NO_ERRNO = "below -4095"
    NO_NUMBER = "no number"
    TOO_LONG = "a number that no long holds"


COPEN_TABLE: Final[Mapping[tuple[Told, bool], tuple[str, str]]] = MappingProxyType(
    {
        (Told.SIZE, True): ("", ""),
        (Told.SIZE, False): ("", "EBADFD"),
        **{(Told.ERRNO, live): ("", "that errno") for live in (True, False)},
        **{(Told.NO_ERRNO, live): ("EINVAL", "EINVAL") for live in (True, False)},
        **{(Told.NO_NUMBER, live): ("EINVAL", "EINVAL") for live in (True, False)},
        **{(Told.TOO_LONG, live): ("ERANGE", "ERANGE") for live in (True, False)},
    }
)
"""By what is told, and whether the fd lives: how the write ends, and how the OPEN; "" is well."""


class Wait(Enum):
    """Who waits, and for which request."""

    LOOKUP = "a lookup, for its OPEN"
    READER = "a reader, for its READ"
    WITHDRAWAL = "a withdrawal, for its CLOSE"


class End(Enum):
    """How a wait may end."""

    ANSWERED = "answered"
    KILLED = "killed"
    DEADLINE = "out of time"
    DEVICE_CLOSED = "device closed"
    DROPPED = "object dropped"


WAIT_TABLE: Final[Mapping[tuple[Wait, End], str]] = MappingProxyType(
    {
        (Wait.LOOKUP, End.ANSWERED): "it goes on, or fails",
        (Wait.LOOKUP, End.KILLED): "it goes on to its end, and gives the cookie back",
        (Wait.LOOKUP, End.DEADLINE): "it fails",
        (Wait.LOOKUP, End.DEVICE_CLOSED): "it fails",
        (Wait.READER, End.ANSWERED): "it looks again; a hole still is EIO",
        (Wait.READER, End.KILLED): "it is gone, and the answer is EINVAL",
        (Wait.READER, End.DEADLINE): "EIO",
        (Wait.READER, End.DEVICE_CLOSED): "EIO",
        (Wait.READER, End.DROPPED): "EIO",
        (Wait.WITHDRAWAL, End.ANSWERED): "the object is dropped",
        (Wait.WITHDRAWAL, End.KILLED): "the object is dropped",
        (Wait.WITHDRAWAL, End.DEADLINE): "the object is dropped",
        (Wait.WITHDRAWAL, End.DEVICE_CLOSED): "the object is dropped",
    }
)
"""What becomes of who waits."""


def answers(answer: Answer, opcode: Opcode) -> bool:
    """Return whether a request of that kind can be answered so."""
    return ANSWERS[answer] is opcode


def next_cache_state(state: CacheState, event: CacheEvent) -> CacheState:
    """Return the state of a cache after `event`; IllegalTransition if that cannot happen."""
    try:
        return CACHE_TABLE[state, event]
    except KeyError:
        raise IllegalTransition(f"{event.name} of a cache that is {state.name}") from None


def next_object_state(state: ObjectState, event: ObjectEvent) -> ObjectState:
    """Return the state of an object after `event`; IllegalTransition if that cannot happen."""
    try:
        return OBJECT_TABLE[state, event]
    except KeyError:
        raise IllegalTransition(f"{event.name} of an object in {state.name}") from None


def next_request_state(opcode: Opcode, state: RequestState, event: RequestEvent) -> RequestState:
    """Return the state of a request after `event`; IllegalTransition if that cannot happen."""
    try:
        return REQUEST_TABLE[opcode, state, event]
    except KeyError:
        raise IllegalTransition(f"{event.name} of a {opcode.name} that is {state.name}") from None


Delivery: TypeAlias = Literal["yes", "kick", "no"]

# Of a READ, by the state of its object. A DROPPING object has no pending requests; should one be
# met on its way out, it is nothing a daemon could still serve.
_READ_DELIVERY: Final[Mapping[ObjectState, Delivery]] = MappingProxyType(
    {
        ObjectState.OPEN: "yes",
        ObjectState.CLOSE: "kick",
        ObjectState.REOPENING: "no",
        ObjectState.DROPPING: "no",
    }
)


def deliverable(opcode: Opcode, object_state: ObjectState) -> Delivery:
    """Return what a read() of the device does with a NEW request (facts cachefiles-kernel 4.3).

    "yes": return it. "kick": skip it, report READ_MET to its object and send a new OPEN for that.
    "no": skip it.
    """
    return _READ_DELIVERY[object_state] if opcode is Opcode.READ else "yes"


def readable(opcode: Opcode, object_state: ObjectState) -> bool:
    """Return whether a NEW request makes the device POLLIN (facts cachefiles-kernel 5).

    A "kick" does: without the read() that it invites, nothing would reopen the object.
    """
    return deliverable(opcode, object_state) != "no"
