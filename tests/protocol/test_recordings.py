"""What real kernels said: every message, every answer, every transition (recordings/README.md)."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.protocol.recording import Entry, Kind, dump, load
from tests.protocol.replay import Contradiction, Replay

from pagein.protocol.messages import Close, Message, Opcode, Open, ProtocolError, Read, decode
from pagein.protocol.states import (
    IllegalTransition,
    ObjectEvent,
    ObjectState,
    RequestEvent,
    RequestState,
)

RECORDINGS = Path(__file__).parent / "recordings"
SESSIONS = ("program", "domain", "failover", "mistakes")
KERNELS = ("linux-6.1", "linux-6.12")


def entries_of(kernel: str, session: str) -> list[Entry]:
    return load((RECORDINGS / kernel / f"{session}.bin").read_bytes())[1]


def messages_of(entries: list[Entry]) -> list[Message]:
    return [decode(each.payload) for each in entries if each.kind is Kind.READ and each.payload]


def replayed(entries: list[Entry]) -> Replay:
    replay = Replay()
    replay.run(entries)
    return replay


@pytest.mark.parametrize("path", sorted(RECORDINGS.glob("*/*.bin")), ids=str)
def test_a_file_is_what_it_says(path: Path) -> None:
    data = path.read_bytes()
    release, entries = load(data)
    assert release.startswith(path.parent.name.removeprefix("linux-"))
    assert dump(release, entries) == data
    with pytest.raises((ValueError, struct.error)):
        load(data[:-1])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("session", SESSIONS)
def test_the_tables_allow_what_happened(kernel: str, session: str) -> None:
    seen = replayed(entries_of(kernel, session)).seen
    for opcode in (Opcode.OPEN, Opcode.READ):
        assert seen[opcode, RequestState.DELIVERED, RequestEvent.COMPLETE]
    assert seen[Opcode.CLOSE, RequestState.NEW, RequestEvent.DELIVER]
    assert seen[ObjectState.CLOSE, ObjectEvent.COPEN]
    assert seen[ObjectState.OPEN, ObjectEvent.DROP]
    assert seen[ObjectState.DROPPING, ObjectEvent.FD_CLOSED]


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_program_starts(kernel: str) -> None:
    """Mount, exec, page faults of a program and its libraries, umount."""
    entries = entries_of(kernel, "program")
    first, *asked, last = messages_of(entries)
    assert isinstance(first, Open)
    assert (first.volume_key, first.cookie_key) == (b"erofs,program", b"program")
    assert isinstance(last, Close)
    reads = [each for each in asked if isinstance(each, Read)]
    assert len(reads) == len(asked) > 20
    assert (reads[0].off, reads[0].len) == (0, 4096)  # the superblock
    assert max(each.len for each in reads) > 65536


@pytest.mark.parametrize("kernel", KERNELS)
def test_mounts_of_a_domain_share_a_blob(kernel: str) -> None:
    messages = messages_of(entries_of(kernel, "domain"))
    opened = [each for each in messages if isinstance(each, Open)]
    assert {each.volume_key for each in opened} == {b"erofs,domain"}
    assert [each.cookie_key for each in opened] == [b"meta", b"blob", b"other", b"single"]
    names = {each.object_id: each.cookie_key for each in opened}
    closed = [names[each.object_id] for each in messages if isinstance(each, Close)]
    assert sorted(closed) == sorted(names.values())
    assert closed.index(b"meta") < closed.index(b"blob")  # with the second mount, not the first


@pytest.mark.parametrize("kernel", KERNELS)
def test_daemons_are_replaced(kernel: str) -> None:
    """`restore`: an OPEN and a READ are delivered again, under another object_id."""
    entries = entries_of(kernel, "failover")
    seen = replayed(entries).seen
    for opcode in (Opcode.OPEN, Opcode.READ):
        assert seen[opcode, RequestState.DELIVERED, RequestEvent.RESTORE]
    assert seen[Opcode.READ, RequestState.NEW, RequestEvent.COMPLETE]  # answered after `restore`
    assert seen[ObjectState.CLOSE, ObjectEvent.READ_MET]
    assert seen[ObjectState.REOPENING, ObjectEvent.COPEN]
    assert seen[ObjectState.OPEN, ObjectEvent.FD_CLOSED]
    by_id: dict[int, list[Message]] = {}
    for each in messages_of(entries):
        by_id.setdefault(each.msg_id, []).append(each)
    again = [each for each in by_id.values() if len(each) > 1]
    assert [type(each) for each, _ in again] == [Open, Read]
    assert all(first.object_id != second.object_id for first, second in again)


@pytest.mark.parametrize("kernel", KERNELS)
def test_mistakes_have_the_errno_that_the_commands_know(kernel: str) -> None:
    seen = replayed(entries_of(kernel, "mistakes")).seen
    numbers = ("EINVAL", "ERANGE", "EOPNOTSUPP", "EEXIST", "EBUSY", "EMSGSIZE")
    assert all(seen[getattr(errno, name)] for name in numbers)
    assert seen[Opcode.OPEN, RequestState.DELIVERED, RequestEvent.FAIL]


# ---- a recording that did not happen is told from one that did


def without(kind: Kind) -> Callable[[list[Entry]], list[Entry]]:
    """Leaves the first entry of a kind out."""

    def tampered(entries: list[Entry]) -> list[Entry]:
        at = [entry.kind for entry in entries].index(kind)
        return entries[:at] + entries[at + 1 :]

    return tampered


def with_message(old: Message, new: Message) -> Callable[[list[Entry]], list[Entry]]:
    """Has the kernel say something else."""

    def tampered(entries: list[Entry]) -> list[Entry]:
        said, instead = old.encode(), new.encode()
        assert any(each.payload == said for each in entries)
        return [
            replace(each, payload=instead) if each.payload == said else each for each in entries
        ]

    return tampered


def refused_copen(entries: list[Entry]) -> list[Entry]:
    """Has a copen refused that the kernel took."""
    return [
        replace(each, result=-22) if each.payload.startswith(b"copen 0,4") else each
        for each in entries
    ]


SAID = messages_of(entries_of("linux-6.12", "failover"))
FIRST, AGAIN = [each for each in SAID if isinstance(each, Open)][:2]
READ = [each for each in SAID if isinstance(each, Read)][1]
CLOSE = next(each for each in SAID if isinstance(each, Close))


@pytest.mark.parametrize(
    "tampered",
    [
        without(Kind.CLOSED),  # an OPEN of an object that has an fd
        without(Kind.READ),
        without(Kind.CREAD),
        without(Kind.POLL),
        with_message(AGAIN, replace(AGAIN, object_id=FIRST.object_id)),
        with_message(AGAIN, replace(AGAIN, msg_id=99)),
        with_message(READ, replace(READ, object_id=99)),
        with_message(READ, replace(READ, off=1)),
        with_message(CLOSE, replace(CLOSE, object_id=FIRST.object_id)),
        lambda entries: [each for each in entries if each.payload != b"restore"],
        lambda entries: entries[:-2],
        refused_copen,
    ],
)
def test_the_replay_finds_what_cannot_be(
    tampered: Callable[[list[Entry]], list[Entry]],
) -> None:
    entries = tampered(entries_of("linux-6.12", "failover"))
    with pytest.raises((Contradiction, IllegalTransition, ProtocolError, ValueError)):
        Replay().run(entries)
