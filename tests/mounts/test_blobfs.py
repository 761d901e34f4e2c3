"""Blobs as files: a read gives the right bytes, waits, or fails EIO."""

import errno
import hashlib
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from tests.cachefiles.rig import PAGE, pages, refused
from tests.cachefiles.served import Served, cread, fill, served
from tests.fuse.mounted import DEADLINE, Process

from pagein.protocol.messages import Close, Open, Read

pytestmark = pytest.mark.root

READER = str(Path(__file__).parents[1] / "fuse" / "reader.py")
SIZE = 4 * PAGE - 100


@pytest.fixture
def half(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path, blobs=True) as half:
        half.open()
        yield half


@pytest.fixture
def readers() -> Iterator[list[Process]]:
    started: list[Process] = []
    yield started
    for reader in started:
        reader.kill()


def export(half: Served, key: str, size: int) -> tuple[Path, int]:
    """A blob as a file, with an anonymous fd to fill it through."""
    fd = half.serve_open(key, size)
    return half.blobs / half.order(f"export {key}")["name"], fd


def read_elsewhere(readers: list[Process], path: Path) -> Process:
    """A process that reads all of a file; it tells its checksum."""
    reader = Process([READER, str(path), str(os.O_RDONLY)])
    readers.append(reader)
    reader.wait_for("ready")
    reader.send("hash")
    return reader


def test_names_and_attributes(half: Served) -> None:
    path, _ = export(half, "blob", SIZE)
    assert os.listdir(half.blobs) == [path.name]
    found = path.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_size) == (0o400, 4 * PAGE)
    refused(errno.ENOENT, partial(os.stat, half.blobs / "other"))
    for mode in (os.O_WRONLY, os.O_RDWR):
        refused(errno.EACCES, partial(os.open, path, mode))
    os.statvfs(half.blobs)


def test_what_is_resident_asks_nobody(half: Served) -> None:
    path, fd = export(half, "blob", SIZE)
    with pages(1, 2, 3, 4) as data:
        os.pwrite(fd, data, 0)
        with open(path, "rb", buffering=0) as file:
            assert os.pread(file.fileno(), 3 * PAGE, PAGE) == data[PAGE:]
            assert os.pread(file.fileno(), 10, 100) == b"\1" * 10
    assert half.order("state")["reads"] == [2]
    assert os.read(half.fd, 1024) == b""


def test_a_hole_waits_for_the_daemon(half: Served, readers: list[Process]) -> None:
    path, fd = export(half, "blob", 2 * PAGE)
    with open(path, "rb", buffering=0) as file:
        reader = Process(["-c", READ_ONE, str(path)])
        readers.append(reader)
        message = half.take(Read)
        assert (message.off, message.len) == (0, 2 * PAGE)
        fill(fd, message, 5, 6)
        assert reader.wait_for("read")["sha256"] == hashlib.sha256(pages(5, 6)).hexdigest()
        assert os.pread(file.fileno(), PAGE, 0) == b"\5" * PAGE


READ_ONE = """
import hashlib, json, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
try:
    data = os.pread(fd, 8192, 0)
except OSError as problem:
    print(json.dumps({"event": "read", "errno": problem.errno}), flush=True)
else:
    print(json.dumps({"event": "read", "sha256": hashlib.sha256(data).hexdigest()}), flush=True)
"""


@pytest.mark.parametrize("filled", [0, 1])
def test_never_zeros_and_never_a_part(half: Served, readers: list[Process], filled: int) -> None:
    path, fd = export(half, "blob", 2 * PAGE)
    reader = Process(["-c", READ_ONE, str(path)])
    readers.append(reader)
    message = half.take(Read)
    if filled:
        fill(fd, message, 1)
        message = half.take(Read)
        assert (message.off, message.len) == (PAGE, PAGE)
    cread(fd, message.msg_id)
    assert reader.wait_for("read")["errno"] == errno.EIO


def test_past_the_end_is_eio_and_not_short(half: Served) -> None:
    path, fd = export(half, "blob", SIZE)
    with pages(1, 2, 3, 4, 5, 6) as data:
        os.pwrite(fd, data, 0)  # more than there is to be had
    with open(path, "rb", buffering=0) as file:
        for offset in (4 * PAGE, 3 * PAGE, 100 * PAGE):
            refused(errno.EIO, partial(os.pread, file.fileno(), 2 * PAGE, offset))


def test_a_file_cut_short_behind_our_back_is_eio(half: Served) -> None:
    path, fd = export(half, "blob", SIZE)
    with pages(1, 2, 3, 4) as data:
        os.pwrite(fd, data, 0)
    os.truncate(next((half.cache / "cache").rglob("Dblob")), PAGE)
    with open(path, "rb", buffering=0) as file:
        refused(errno.EIO, partial(os.pread, file.fileno(), 2 * PAGE, 0))
        assert os.pread(file.fileno(), PAGE, 0) == b"\1" * PAGE


def test_a_waiting_reader_can_be_killed(half: Served, readers: list[Process]) -> None:
    path, fd = export(half, "blob", SIZE)
    reader = Process(["-c", READ_ONE, str(path)])
    readers.append(reader)
    message = half.take(Read)
    os.kill(reader.pid, signal.SIGKILL)
    assert reader.end() == -signal.SIGKILL
    refused(errno.EINVAL, partial(cread, fd, message.msg_id))
    assert half.order("state")["pending"] == 0


def test_a_stream_larger_than_any_window(half: Served, readers: list[Process]) -> None:
    size = 20 << 20
    path, fd = export(half, "blob", size)
    part = os.urandom(1 << 20)
    with pages(*bytes(256)) as data:
        data[:] = part
        for number in range(20):
            assert os.pwrite(fd, data, number << 20) == 1 << 20
    wanted = hashlib.sha256(part * 20).hexdigest()
    reader = Process(["-c", READ_ALL, str(path), str(size)])
    readers.append(reader)
    assert reader.wait_for("read")["sha256"] == wanted
    # From disk as well.
    cached = os.open(next((half.cache / "cache").rglob("Dblob")), os.O_RDONLY)
    os.fsync(cached)
    os.posix_fadvise(cached, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(cached)
    reader = Process(["-c", READ_ALL, str(path), str(size)])
    readers.append(reader)
    assert reader.wait_for("read")["sha256"] == wanted


READ_ALL = """
import hashlib, json, os, sys
fd, size = os.open(sys.argv[1], os.O_RDONLY), int(sys.argv[2])
total = hashlib.sha256()
for offset in range(0, size, 131072):
    total.update(os.pread(fd, 131072, offset))
print(json.dumps({"event": "read", "sha256": total.hexdigest()}), flush=True)
"""


def test_given_back_when_nobody_holds_it_or_has_it_open(half: Served) -> None:
    path, fd = export(half, "blob", SIZE)
    with open(path, "rb", buffering=0), open(path, "rb", buffering=0):
        half.order("let-go blob")
        assert path.exists()
    assert half.take(Close).object_id == 1
    half.process.wait_for("released", key="blob")
    assert os.listdir(half.blobs) == []
    half.close(fd)


def test_held_it_stays(half: Served) -> None:
    path, fd = export(half, "blob", SIZE)
    with open(path, "rb", buffering=0):
        pass
    subprocess.run(["sync", "-f", str(half.cache)], timeout=DEADLINE)
    assert half.order("state")["objects"] == {"1": ["OPEN", 1]}
    assert os.listdir(half.blobs) == [path.name]
    half.order("let-go blob")
    half.take(Close)
    half.process.wait_for("released")
    half.close(fd)


def test_a_cookie_is_one_file(half: Served) -> None:
    path, _ = export(half, "blob", SIZE)
    half.process.send("acquire blob")
    half.process.wait_for("acquire")
    assert half.order("export blob")["name"] == path.name
    assert os.read(half.fd, 1024) == b""


def test_reads_after_the_device_was_closed(half: Served, readers: list[Process]) -> None:
    path, fd = export(half, "blob", SIZE)
    with pages(1, 2, 3, 4) as data:
        os.pwrite(fd, data, 0)
    half.close(half.fd)
    half.close(fd)
    with open(path, "rb", buffering=0) as file:
        refused(errno.EIO, partial(os.pread, file.fileno(), PAGE, 0))


def test_a_dead_daemon_is_waited_for(half: Served, readers: list[Process]) -> None:
    path, fd = export(half, "blob", 2 * PAGE)
    reader = Process(["-c", READ_ONE, str(path)])
    readers.append(reader)
    half.take(Read)
    half.close(fd)
    os.write(half.fd, b"restore")
    message = half.take(Open)
    fd = half.anon(message.object_id)
    os.write(half.fd, b"copen %d,%d" % (message.msg_id, 2 * PAGE))
    fill(fd, half.take(Read), 8, 9)
    assert reader.wait_for("read")["sha256"] == hashlib.sha256(pages(8, 9)).hexdigest()
