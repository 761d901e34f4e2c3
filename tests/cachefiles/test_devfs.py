"""The device as a path, by raw system calls: what a daemon written for /dev/cachefiles meets."""

import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import select
import stat
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from tests.cachefiles.rig import PAGE, pages, refused
from tests.cachefiles.served import Served, cread, fill, served
from tests.fuse.mounted import Process

from pagein.protocol.messages import IOC_READ_COMPLETE, Close, Open, Read

pytestmark = pytest.mark.root

SIZE = 4 * PAGE - 100
READER = str(Path(__file__).parents[1] / "fuse" / "reader.py")


@pytest.fixture
def half(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path) as half:
        yield half


def sha256(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


# ---- the device ---------------------------------------------------------------------------------


def test_it_looks_like_a_directory_with_a_device(half: Served) -> None:
    half.open()
    assert sorted(os.listdir(half.directory)) == ["anon", "cachefiles"]
    assert os.listdir(half.directory / "anon") == []
    assert stat.S_IMODE(os.stat(half.path).st_mode) == 0o600
    half.serve_open("blob", SIZE)
    assert os.listdir(half.directory / "anon") == ["1"]
    for path in ("nothing", "anon/2", "anon/x", "anon/-1"):
        refused(errno.ENOENT, partial(os.stat, half.directory / path))
    os.statvfs(half.directory)


@pytest.mark.parametrize("mode", [os.O_RDWR, os.O_RDONLY, os.O_WRONLY])
def test_a_second_open_is_ebusy(half: Served, mode: int) -> None:
    fd = half.open(bind=False)
    refused(errno.EBUSY, partial(os.open, half.path, mode))
    duplicate = half.keep(os.dup(fd))
    half.close(fd)
    refused(errno.EBUSY, partial(os.open, half.path, mode))
    half.close(duplicate)
    half.open(bind=False)


def test_busy_as_long_as_an_anonymous_fd_lives(half: Served) -> None:
    fd = half.open()
    anon = half.serve_open("blob", SIZE)
    half.close(fd)
    refused(errno.EBUSY, partial(os.open, half.path, os.O_RDWR))
    with pages(1) as data:
        assert os.pwrite(anon, data, 0) == PAGE  # still taken (facts 7.5)
    refused(errno.EINVAL, partial(cread, anon, 0))
    half.close(anon)
    half.open()


def test_the_access_mode_holds(half: Served) -> None:
    fd = half.keep(os.open(half.path, os.O_RDONLY))
    refused(errno.EBADF, partial(os.write, fd, b"tag x"))
    half.close(fd)
    fd = half.keep(os.open(half.path, os.O_WRONLY))
    refused(errno.EBADF, partial(os.read, fd, 1024))


def test_only_root_opens_it(public_tmp: Path) -> None:
    public_tmp.chmod(0o755)
    with served(public_tmp) as half:
        done = subprocess.run(
            ["sh", "-c", f": <> {half.path}"],
            user=65534,
            env={"LC_ALL": "C"},
            capture_output=True,
            timeout=200,
        )
        assert b"Operation not permitted" in done.stderr
        half.open()


def test_nothing_to_read_is_0_bytes_at_once(half: Served) -> None:
    fd = half.open(bind=False)
    assert os.read(fd, 1024) == b""
    os.write(fd, b"dir " + os.fsencode(half.cache))
    os.write(fd, b"bind ondemand")
    assert os.read(fd, 1024) == b""
    assert os.pread(fd, 1024, 4096) == b""  # the offset does not matter


def test_commands(half: Served) -> None:
    fd = half.open(bind=False)
    for command, number in (
        (b"no such", errno.EOPNOTSUPP),
        (b" bind", errno.EOPNOTSUPP),
        (b"x" * 4096, errno.EOPNOTSUPP),
        (b"tag \0", errno.EINVAL),
        (b"bind ondemand", errno.EINVAL),
        (b"restore", errno.EOPNOTSUPP),
    ):
        refused(number, partial(os.write, fd, command))
    assert os.write(fd, b"tag x\nwhatever") == 14
    refused(errno.EEXIST, partial(os.write, fd, b"tag x"))
    os.write(fd, b"dir " + os.fsencode(half.cache / "none"))
    refused(errno.ENOENT, partial(os.write, fd, b"bind ondemand"))


def test_a_shell_can_write_to_it(half: Served) -> None:
    # Of O_TRUNC and O_APPEND nothing is heard, as of a device.
    done = subprocess.run(
        ["sh", "-c", f"echo 'dir {half.cache}' > {half.path}"], capture_output=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")
    half.open(bind=False)
    os.truncate(half.path, 0)


def test_ioctl_on_the_device(half: Served) -> None:
    fd = half.open()
    refused(errno.ENOTTY, partial(cread, fd, 0))


def test_emsgsize_keeps_the_request(half: Served) -> None:
    fd = half.open()
    half.process.send("acquire blob")
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    assert poll.poll(100_000) == [(fd, select.POLLIN)]
    length = 32 + len(b"erofs,test\0blob")
    refused(errno.EMSGSIZE, partial(os.read, fd, length - 1))
    assert poll.poll(0) == [(fd, select.POLLIN)]
    message = os.read(fd, length)
    assert len(message) == length
    assert poll.poll(0) == []
    os.write(fd, b"copen 0,-2")
    assert half.process.wait_for("acquire")["errno"] == errno.EIO


def test_epoll_wakes_who_waits(half: Served) -> None:
    fd = half.open()
    with select.epoll() as epoll:
        epoll.register(fd, select.EPOLLIN)
        assert epoll.poll(0) == []
        half.process.send("acquire blob")
        assert epoll.poll(100) == [(fd, select.EPOLLIN)]
        half.take(Open)
        assert epoll.poll(0) == []
        os.write(fd, b"restore")
        assert epoll.poll(100) == [(fd, select.EPOLLIN)]
        assert half.take(Open).object_id == 2
    os.write(fd, b"copen 0,-2")


def test_epoll_by_edges(half: Served) -> None:
    fd = half.open()
    with select.epoll() as epoll:
        epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        for number in range(3):
            half.process.send(f"acquire blob{number}")
            assert epoll.poll(100) == [(fd, select.EPOLLIN)]
            message = half.take(Open)
            os.write(fd, b"copen %d,-2" % message.msg_id)
            epoll.poll(0)


def test_who_waits_for_writing_waits_for_culling(half: Served) -> None:
    fd = half.open()
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    assert poll.poll(0) == []  # facts 5: never writable in the usual sense


# ---- the anonymous file -------------------------------------------------------------------------


def test_it_is_opened_for_writing_only(half: Served) -> None:
    half.open()
    half.serve_open("blob", SIZE)
    for mode in (os.O_RDONLY, os.O_RDWR):
        refused(errno.EACCES, partial(half.anon, 1, mode))
    refused(errno.EISDIR, partial(os.open, half.directory / "anon", os.O_WRONLY))


def test_what_it_is_not_for(half: Served) -> None:
    half.open()
    fd = half.serve_open("blob", SIZE)
    refused(errno.EBADF, partial(os.read, fd, 10))
    refused(errno.EBADF, partial(os.pread, fd, 10, 0))
    refused(errno.EINVAL, partial(os.ftruncate, fd, 0))
    refused(errno.EINVAL, partial(os.fsync, fd))
    refused(errno.ENODEV, partial(os.posix_fallocate, fd, 0, PAGE))
    punch = ctypes.CDLL(None, use_errno=True).fallocate
    punch.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    assert punch(fd, 3, 0, PAGE) == -1 and ctypes.get_errno() == errno.ENODEV
    refused(errno.EINVAL, partial(fcntl.ioctl, fd, 0x40049802, bytearray(4), True))
    refused(errno.EINVAL, partial(fcntl.ioctl, fd, 0x40089801, bytearray(8), True))
    refused(errno.EFAULT, partial(fcntl.ioctl, fd, IOC_READ_COMPLETE, 5))  # by value
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600
    poll = select.poll()
    poll.register(fd)
    assert poll.poll(0) == [(fd, select.POLLIN | select.POLLOUT)]
    cache = next((half.cache / "cache").rglob("Dblob"))
    assert cache.stat().st_size == 4 * PAGE


def test_writes_and_seeks(half: Served) -> None:
    half.open()
    half.process.send("acquire blob")
    message = half.take(Open)
    fd = half.anon(message.object_id)
    with pages(1, 2) as data:
        refused(errno.ENOBUFS, partial(os.pwrite, fd, data, 0))  # before copen
        refused(errno.ENOBUFS, partial(os.lseek, fd, 0, os.SEEK_DATA))
        os.write(half.fd, b"copen %d,%d" % (message.msg_id, SIZE))
        half.process.wait_for("acquire")
        refused(errno.ENOBUFS, partial(os.pwrite, fd, data, 512))
        refused(errno.EINVAL, partial(os.pwrite, fd, data[:100], 0))
        refused(errno.EINVAL, partial(os.pwrite, fd, data[:512], 0))
        assert os.pwrite(fd, data, PAGE) == 2 * PAGE
        assert os.pwrite(fd, data[:0], 0) == 0
    assert os.lseek(fd, 0, os.SEEK_DATA) == PAGE
    assert os.lseek(fd, PAGE, os.SEEK_HOLE) == 3 * PAGE
    assert os.lseek(fd, 0, os.SEEK_END) == 4 * PAGE
    refused(errno.ENXIO, partial(os.lseek, fd, 3 * PAGE, os.SEEK_DATA))
    # write() goes by this fd's own position, from the start.
    os.lseek(fd, 0, os.SEEK_SET)
    with pages(7) as data:
        assert os.write(fd, data) == PAGE
    assert os.lseek(fd, 0, os.SEEK_CUR) == PAGE
    half.process.send("read blob 0 8192")
    assert half.process.wait_for("read")["sha256"] == sha256(pages(7, 1))


def test_a_write_of_several_requests(half: Served) -> None:
    half.open()
    fd = half.serve_open("blob", 5 << 20)
    data = os.urandom(5 << 20)
    # As for direct I/O memory must be aligned: of other the parts that it is cut into are not.
    refused(errno.EINVAL, partial(os.pwrite, fd, data, 0))
    with mmap.mmap(-1, len(data)) as memory:
        memory.write(data)
        done = os.pwrite(fd, memory, 0)
        assert done == len(data)
    half.process.send(f"read blob 0 {5 << 20}")
    assert half.process.wait_for("read")["sha256"] == sha256(data)


def test_reads_are_served(half: Served) -> None:
    half.open()
    fd = half.serve_open("blob", SIZE)
    half.process.send("read blob 4096 8192")
    message = half.take(Read)
    assert (message.off, message.len, message.object_id) == (PAGE, 2 * PAGE, 1)
    fill(fd, message, 1, 2)
    assert half.process.wait_for("read")["sha256"] == sha256(pages(1, 2))
    half.process.send("read blob 0 4096")
    cread(fd, half.take(Read).msg_id)  # without data: EIO
    assert half.process.wait_for("read")["errno"] == errno.EIO


def test_cread_through_a_dup_after_the_original_was_closed(half: Served) -> None:
    half.open()
    fd = half.serve_open("blob", SIZE)
    other = half.serve_open("other", SIZE)
    half.process.send("read blob 0 4096")
    message = half.take(Read)
    duplicate = half.keep(os.dup(fd))
    half.close(fd)
    for wrong_fd, wrong_id in ((other, message.msg_id), (duplicate, 77), (duplicate, 0)):
        refused(errno.EINVAL, partial(cread, wrong_fd, wrong_id))
    fill(duplicate, message, 3)
    refused(errno.EINVAL, partial(cread, duplicate, message.msg_id))  # twice
    assert half.process.wait_for("read")["sha256"] == sha256(pages(3))


def test_an_object_closes_with_the_last_of_all_its_fds(half: Served) -> None:
    half.open()
    fd = half.serve_open("blob", SIZE)
    fds = [fd, half.keep(os.dup(fd)), half.anon(1)]
    fds.append(half.keep(os.dup(fds[2])))
    reader = Process([READER, str(half.directory / "anon/1"), str(os.O_WRONLY)])
    reader.wait_for("ready")
    for each in fds:
        half.close(each)
        assert half.order("state")["objects"]["1"][0] == "OPEN"
    assert reader.end() == 0
    state = half.order("state")
    assert (state["objects"], state["anonymous"]) == ({}, 0)
    refused(errno.ENOENT, partial(half.anon, 1))
    # A READ brings it back under a new id.
    half.process.send("read blob 0 4096")
    message = half.take(Open)
    assert message.object_id == 2
    fd = half.anon(2)
    os.write(half.fd, b"copen %d,%d" % (message.msg_id, SIZE))
    fill(fd, half.take(Read), 9)
    assert half.process.wait_for("read")["sha256"] == sha256(pages(9))


def test_a_killed_daemon_closes_its_fds(half: Served) -> None:
    half.open()
    fd = half.serve_open("blob", SIZE)
    daemon = Process([READER, str(half.directory / "anon/1"), str(os.O_WRONLY)])
    daemon.wait_for("ready")
    half.close(fd)
    assert half.order("state")["objects"] == {"1": ["OPEN", 1]}
    daemon.kill()
    assert half.order("state")["objects"] == {}


def test_close_is_taken_and_writes_end(half: Served) -> None:
    half.open()
    fd = half.serve_open("blob", SIZE)
    half.process.send("give-back blob")
    assert half.take(Close).object_id == 1
    half.process.wait_for("give-back")
    with pages(1) as data:
        refused(errno.ENOBUFS, partial(os.pwrite, fd, data, 0))
    refused(errno.ENOBUFS, partial(os.lseek, fd, 0, os.SEEK_DATA))
    refused(errno.EINVAL, partial(cread, fd, 0))
    refused(errno.ENOENT, partial(half.anon, 1))
    assert half.order("state")["objects"] == {"1": ["DROPPING", 1]}
    half.close(fd)
    assert half.order("state")["objects"] == {}


def test_the_last_close_of_the_device_fails_who_waits(half: Served) -> None:
    fd = half.open()
    anon = half.serve_open("blob", SIZE)
    half.process.send("read blob 0 4096")
    half.take(Read)
    half.close(fd)
    assert half.process.wait_for("read")["errno"] == errno.EIO
    half.close(anon)
    assert half.order("state")["objects"] is None
    half.open()
    half.process.send("acquire blob")
    assert half.process.wait_for("acquire")["errno"] == errno.ENOBUFS
