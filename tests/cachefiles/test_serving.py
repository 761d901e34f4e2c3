"""SERVE over FUSE: bytes, CREAD and the next message in one call."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from tests.cachefiles.rig import PAGE, pages, refused
from tests.cachefiles.served import Served, cread, fill, served
from tests.fuse.mounted import Process

from pagein.protocol.messages import Message, Read, decode
from pagein.protocol.serving import SIZE_MOST, Serve, decode_answer, ioc_serve

pytestmark = pytest.mark.root

READS = """
import hashlib, json, os, sys
fd, found = os.open(sys.argv[1], os.O_RDONLY), []
for offset, length in json.loads(sys.argv[2]):
    try:
        found.append(hashlib.sha256(os.pread(fd, length, offset)).hexdigest())
    except OSError as problem:
        found.append(problem.errno)
print(json.dumps({"event": "read", "found": found}), flush=True)
"""


@pytest.fixture
def half(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path, blobs=True) as half:
        half.open()
        yield half


@pytest.fixture
def started() -> Iterator[list[Process]]:
    started: list[Process] = []
    yield started
    for process in started:
        process.kill()


def serve(fd: int, message: Read, *numbers: int, offset: int | None = None) -> Message | None:
    """Answer a READ with pages of these numbers; the next message, if one comes in time."""
    where = message.off if offset is None else offset
    said = Serve(message.msg_id, where, b"".join(bytes([n]) * PAGE for n in numbers))
    argument = said.encode_into(memoryview(bytearray(SIZE_MOST)))
    length = fcntl.ioctl(fd, ioc_serve(len(argument)), argument, True)
    raw, waited = decode_answer(argument, length)
    assert 0 <= waited < 60
    return decode(raw) if raw else None


def export(half: Served, key: str, size: int) -> tuple[Path, int]:
    fd = half.serve_open(key, size)
    return half.blobs / half.order(f"export {key}")["name"], fd


def reading(started: list[Process], path: Path, *reads: tuple[int, int]) -> Process:
    """A process that reads these (offset, length) one after the other."""
    process = Process(["-c", READS, str(path), json.dumps(reads)])
    started.append(process)
    return process


def sums(*numbers: int) -> list[str]:
    return [hashlib.sha256(bytes([n]) * PAGE).hexdigest() for n in numbers]


def test_reads_one_after_the_other(half: Served, started: list[Process]) -> None:
    path, fd = export(half, "blob", 400 * PAGE)
    wanted = [(number * 2 * PAGE, PAGE) for number in range(200)]
    reader = reading(started, path, *wanted)
    came: Message | None = None
    for number in range(200):
        message = came or half.take(Read)
        assert isinstance(message, Read)
        assert (message.off, message.len) == wanted[number]
        came = serve(fd, message, number)
    assert came is None
    assert reader.wait_for("read")["found"] == sums(*range(200))
    assert half.order("state")["pending"] == 0
    assert [os.lseek(fd, at, os.SEEK_DATA) for at in (0, PAGE, 398 * PAGE)] == [
        0,
        2 * PAGE,
        398 * PAGE,
    ]


def test_what_waits_already_comes_at_once(half: Served) -> None:
    fd = half.serve_open("blob", 8 * PAGE)
    for page in (0, 2, 4):
        half.process.send(f"read blob {page * PAGE} {PAGE}")
    found = half.take(Read)
    got = [found.off]
    while len(got) < 3:
        coming = serve(fd, found, 7) or half.take(Read)
        assert isinstance(coming, Read)
        found = coming
        got.append(found.off)
    assert serve(fd, found, 7) is None
    assert got == [0, 2 * PAGE, 4 * PAGE]
    for _ in got:
        assert half.process.wait_for("read")["sha256"] == sums(7)[0]


def test_a_reader_whose_part_is_missing_waits_on(half: Served, started: list[Process]) -> None:
    path, fd = export(half, "blob", 8 * PAGE)
    reader = reading(started, path, (0, 3 * PAGE))
    message = half.take(Read)
    assert message.len == 3 * PAGE
    rest = serve(fd, message, 1) or half.take(Read)
    assert isinstance(rest, Read)
    assert (rest.off, rest.len) == (PAGE, 2 * PAGE)
    assert serve(fd, rest, 2, 3) is None
    whole = hashlib.sha256(pages(1, 2, 3)).hexdigest()
    assert reader.wait_for("read")["found"] == [whole]


def test_what_was_not_written_is_never_answered(half: Served, started: list[Process]) -> None:
    path, fd = export(half, "blob", 8 * PAGE)
    reader = reading(started, path, (0, PAGE), (2 * PAGE, PAGE), (4 * PAGE, PAGE))
    second = serve(fd, half.take(Read)) or half.take(Read)  # without data
    assert isinstance(second, Read)
    third = serve(fd, second, 5, offset=6 * PAGE) or half.take(Read)  # elsewhere
    assert isinstance(third, Read)
    with pages(4) as data:
        os.pwrite(fd, data, third.off)
    assert serve(fd, third) is None
    assert reader.wait_for("read")["found"] == [errno.EIO, errno.EIO, *sums(4)]


def test_a_read_that_is_gone_is_no_error(half: Served, started: list[Process]) -> None:
    path, fd = export(half, "blob", 4 * PAGE)
    reader = reading(started, path, (0, PAGE))
    message = half.take(Read)
    os.kill(reader.pid, signal.SIGKILL)
    assert reader.end() == -signal.SIGKILL
    assert serve(fd, message, 9) is None
    assert reading(started, path, (0, PAGE)).wait_for("read")["found"] == sums(9)


def test_what_is_refused_completes_nothing(half: Served, started: list[Process]) -> None:
    path, fd = export(half, "blob", 4 * PAGE)
    reader = reading(started, path, (0, PAGE))
    message = half.take(Read)
    refused(errno.ENOBUFS, partial(serve, fd, message, 1, offset=100))
    refused(errno.ENOTTY, partial(serve, half.fd, message, 1))
    memory = bytearray(b"\xff" * 2000)
    refused(errno.EINVAL, partial(fcntl.ioctl, fd, ioc_serve(len(memory)), memory, True))
    refused(errno.EINVAL, partial(fcntl.ioctl, fd, ioc_serve(100), bytearray(100), True))
    assert half.order("state")["pending"] == 1
    fill(fd, message, 3)
    assert reader.wait_for("read")["found"] == sums(3)


SERVES = """
import fcntl, json, sys
fd, msg_id = int(sys.argv[1]), int(sys.argv[2])
from pagein.protocol.serving import SIZE_MOST, Serve, ioc_serve
argument = Serve(msg_id, 0, bytes([6]) * 4096).encode_into(memoryview(bytearray(SIZE_MOST)))
print(json.dumps({"event": "ready"}), flush=True)
while True:
    fcntl.ioctl(fd, ioc_serve(len(argument)), argument, True)
"""


def test_whoever_waits_can_be_killed_and_loses_nothing(
    half: Served, started: list[Process]
) -> None:
    path, fd = export(half, "blob", 8 * PAGE)
    reader = reading(started, path, (0, PAGE), (2 * PAGE, PAGE))
    first = half.take(Read)
    daemon = Process(["-c", SERVES, str(fd), str(first.msg_id)], pass_fds=(fd,))
    started.append(daemon)
    daemon.wait_for("ready")
    os.kill(daemon.pid, signal.SIGKILL)
    assert daemon.end() == -signal.SIGKILL
    os.write(half.fd, b"restore")
    second: Message | None = half.take(Read)
    if second == first:  # it was killed before it said anything
        second = serve(fd, first, 6) or half.take(Read)
    assert isinstance(second, Read)
    assert second.off == 2 * PAGE
    fill(fd, second, 8)
    assert reader.wait_for("read")["found"] == sums(6, 8)
    refused(errno.EINVAL, partial(cread, fd, second.msg_id))
