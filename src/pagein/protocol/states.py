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

The tables hold what is possible; what is not in them raises `IllegalTransition` and is a bug of the
caller. EMSGSIZE, a copen or CREAD that is answered EINVAL, and a write change no state.

`python -m pagein.protocol.states` prints the tables as diagrams.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from pagein.protocol.messages import Opcode


class IllegalTransition(RuntimeError):
    """An event that cannot happen in this state: a bug of the half that reports it."""


class ObjectState(Enum):
    """Whether the user half holds an anonymous fd for an object."""

    CLOSE = "close"
    OPEN = "open"
    REOPENING = "reopening"
    DROPPING = "dropping"


class ObjectEvent(Enum):
    """What happens to an object."""

    COPEN = "copen"
    """A successful copen whose anonymous fd is still open."""
    FD_CLOSED = "fd closed"
    """The last close of the anonymous fd, before or after copen; or an OPEN's failed delivery."""
    READ_MET = "read met"
    """A read() of the device comes upon a READ of an object in CLOSE."""
    DROP = "drop"
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

    NEW = "new"
    DELIVERED = "delivered"
    DONE = "done"


class RequestEvent(Enum):
    """What happens to a request."""

    DELIVER = "deliver"
    """A read() of the device returned it."""
    RESTORE = "restore"
    """`restore` was written: whoever took the request is gone."""
    COMPLETE = "complete"
    """Answered (copen, CREAD), or a CLOSE whose last fd was closed."""
    FAIL = "fail"
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


def object_diagram() -> str:
    """Return `OBJECT_TABLE` as a mermaid diagram."""
    return _diagram(
        ObjectState.CLOSE,
        ((before, event, after) for (before, event), after in OBJECT_TABLE.items()),
    )


def request_diagram(opcode: Opcode) -> str:
    """Return the part of `REQUEST_TABLE` that is about one opcode as a mermaid diagram."""
    return _diagram(
        RequestState.NEW,
        (
            (before, event, after)
            for (code, before, event), after in REQUEST_TABLE.items()
            if code is opcode
        ),
    )


def _diagram(initial: Enum, transitions: Iterable[tuple[Enum, Enum, Enum]]) -> str:
    arrows = [
        f"    {before.name} --> {after.name}: {event.name}" for before, event, after in transitions
    ]
    return "\n".join(["stateDiagram-v2", f"    [*] --> {initial.name}", *arrows])


def _main() -> None:
    titles = {"object": object_diagram()}
    titles |= {f"{opcode.name} request": request_diagram(opcode) for opcode in Opcode}
    for title, diagram in titles.items():
        print(f"### {title}\n\n```mermaid\n{diagram}\n```\n")


if __name__ == "__main__":
    _main()
