"""The filter itself, run by an interpreter of classic BPF: which calls are seen."""

import struct

import pytest

from pagein.execdaemon.seccomp import ARCHITECTURES, EVERY, Architecture, Instruction, program

ALLOW, NOTIFY = 0x7FFF0000, 0x7FC00000
WINDOW = range(1008, 1024)
CREAD, FIONREAD = 0x40049801, 0x541B


def verdict(filter_: list[Instruction], audit: int, number: int, *args: int) -> int:
    data = struct.pack("=iIQ6Q", number, audit, 0, *args, *[0] * (6 - len(args)))
    accumulator = at = 0
    while True:
        code, jump_true, jump_false, k = filter_[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, k)
        elif code == 0x06:
            return k
        else:
            holds = accumulator == k if code == 0x15 else accumulator >= k
            at += jump_true if holds else jump_false


@pytest.fixture(params=sorted(ARCHITECTURES))
def machine(request: pytest.FixtureRequest) -> Architecture:
    return ARCHITECTURES[request.param]


@pytest.mark.parametrize(
    ("name", "args", "seen"),
    [
        ("openat", (0, 0, 0), True),
        ("openat2", (), True),
        ("open", (), True),
        ("mount", (), True),
        ("ioctl", (5, CREAD, 7), True),
        ("ioctl", (5, CREAD | 1 << 32, 7), True),  # the command is an unsigned int
        ("ioctl", (5, FIONREAD, 7), False),
        *((name, (1008, 0, 0), True) for name in ("read", "readv", "pread64", "preadv", "preadv2")),
        ("read", (1023, 0, 0), True),
        ("read", (1007, 0, 0), False),
        ("read", (1024, 0, 0), False),
        ("read", (0xFFFFFFFF, 0, 0), False),
        ("dup", (1008,), True),
        ("dup2", (1008, 3), True),
        ("dup3", (3, 1008, 0), False),
        ("fcntl", (1008, 0, 0), True),
        ("fcntl", (1008, 1030, 0), True),
        ("fcntl", (1008, 1, 0), False),  # F_GETFD
        ("fcntl", (3, 0, 0), False),
    ],
)
def test_what_is_seen(machine: Architecture, name: str, args: tuple[int, ...], seen: bool) -> None:
    if name not in machine.calls:
        assert name in ("open", "dup2")  # of old architectures only
        return
    number = machine.calls[name]
    found = verdict(program(machine, WINDOW), machine.audit, number, *args)
    assert found == (NOTIFY if seen else ALLOW)


@pytest.mark.parametrize("name", ["read", "preadv2"])
def test_every_read_may_be_seen(machine: Architecture, name: str) -> None:
    filter_ = program(machine, EVERY)
    assert verdict(filter_, machine.audit, machine.calls[name], 3) == NOTIFY
    assert verdict(filter_, machine.audit, machine.calls["dup"], 3) == ALLOW


def test_all_else_goes_its_way(machine: Architecture) -> None:
    filter_ = program(machine, WINDOW)
    known = set(machine.calls.values())
    for number in set(range(460)) - known:
        assert verdict(filter_, machine.audit, number, 1010) == ALLOW


def test_calls_of_another_architecture_are_not_taken_for_ours(machine: Architecture) -> None:
    number = machine.calls["openat"]
    assert verdict(program(machine, WINDOW), machine.audit ^ 1, number) == ALLOW
