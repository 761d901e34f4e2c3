"""`Connection` and the kernel: a server in one process, readers in others, the fd in ours."""

import errno
import hashlib
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.ending import killed
from tests.fuse.mounted import DEADLINE, MountedFs, Process, mounted_fs
from tests.fuse.reader import pattern

from pagein.fuse.handshake import MAX_WRITE

pytestmark = pytest.mark.root

READER = str(Path(__file__).with_name("reader.py"))
SIZE = 3 * MAX_WRITE + 12345


@pytest.fixture
def fs(tmp_path: Path) -> Iterator[MountedFs]:
    blob = tmp_path / "source"
    blob.write_bytes(os.urandom(SIZE))
    with mounted_fs(tmp_path, blob) as mounted:
        yield mounted


@pytest.fixture
def readers() -> Iterator[list[Process]]:
    started: list[Process] = []
    yield started
    for reader in started:
        reader.kill()


def start(readers: list[Process], path: Path, flags: int = os.O_RDONLY) -> Process:
    reader = Process([READER, str(path), str(flags)])
    readers.append(reader)
    reader.wait_for("ready")
    return reader


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_another_process_reads_the_file(fs: MountedFs, readers: list[Process]) -> None:
    server = fs.serve()
    reader = start(readers, fs.directory / "blob")
    reader.order("hash")
    found = reader.wait_for("hash")
    assert (found["sha256"], found["size"]) == (digest(fs.blob), SIZE)
    # max_read, max_pages: a read of a mebibyte is one request.
    assert server.wait_for("read", size=MAX_WRITE)["resent"] is False


def test_a_directory_is_listed_and_errors_pass(fs: MountedFs) -> None:
    fs.serve()
    assert sorted(os.listdir(fs.directory)) == ["bell", "blob", "notes"]
    with pytest.raises(FileNotFoundError):
        os.stat(fs.directory / "absent")
    with pytest.raises(OSError, match="broken") as failure:
        os.stat(fs.directory / "broken")
    assert failure.value.errno == errno.EIO  # the handler raised
    assert os.stat(fs.directory / "blob").st_size == SIZE  # and the next request is served


def test_a_large_write_arrives_whole(fs: MountedFs, readers: list[Process]) -> None:
    server = fs.serve()
    writer = start(readers, fs.directory / "notes", os.O_RDWR)
    size = 2 * MAX_WRITE + 8192
    writer.order(f"write {size}")
    assert writer.wait_for("write")["written"] == size
    sizes = [server.wait_for("write")["size"] for _ in range(3)]
    assert sizes == [MAX_WRITE, MAX_WRITE, 8192]
    writer.order("hash")
    assert writer.wait_for("hash")["sha256"] == hashlib.sha256(pattern(size)).hexdigest()


def test_writers_at_once_do_not_share_a_buffer(fs: MountedFs, readers: list[Process]) -> None:
    fs.serve()
    path = fs.directory / "notes"
    start(readers, path, os.O_RDWR).order(f"write {MAX_WRITE}")
    script = (
        "import os,sys\nfd=os.open(sys.argv[1],os.O_WRONLY)\nb=int(sys.argv[2])\n"
        "for i in range(20):\n assert os.pwrite(fd,bytes([b+i])*4096,(i*8+b//32)*4096)==4096"
    )
    command = ["python3", "-c", script, str(path)]
    running = [subprocess.Popen([*command, str(32 * number)]) for number in range(8)]
    with killed(*running):
        assert [one.wait(DEADLINE) for one in running] == [0] * 8
    data = path.read_bytes()
    for block in range(160):
        wanted = 32 * (block % 8) + block // 8
        assert data[block * 4096 : (block + 1) * 4096] == bytes([wanted]) * 4096


def test_poll_notification_wakes_an_epoll_elsewhere(fs: MountedFs, readers: list[Process]) -> None:
    server = fs.serve()
    waiter = start(readers, fs.directory / "bell")
    waiter.send("wait")
    assert waiter.wait_for("waiting")["ready"] == 0
    server.wait_for("poll", notify=True)
    server.order("ring")
    assert waiter.wait_for("wait")["mask"] == [select.EPOLLIN]


def test_a_killed_server_is_replaced_and_its_readers_get_their_data(
    fs: MountedFs, readers: list[Process]
) -> None:
    if not fs.init.resend:
        pytest.skip("needs FUSE_NOTIFY_RESEND (Linux 6.9)")
    first = fs.serve(hold=True)
    reader = start(readers, fs.directory / "blob")
    reader.send("hash")
    taken = first.wait_for("read")
    first.kill()
    second = fs.serve(resend=True)
    assert second.wait_for("resend")["known"] is True
    again = second.wait_for("read", resent=True)
    assert again["unique"] == taken["unique"] | 1 << 63
    assert reader.wait_for("hash")["sha256"] == digest(fs.blob)
    # The file stays open across servers.
    reader.order("hash")
    assert reader.wait_for("hash")["sha256"] == digest(fs.blob)
    assert second.count("open") == 0


def test_release_comes_with_the_last_of_all_dups(fs: MountedFs, readers: list[Process]) -> None:
    server = fs.serve()
    holder = start(readers, fs.directory / "notes", os.O_WRONLY)
    opened = server.wait_for("open")
    assert opened["pid"] == holder.pid
    for order in ("dup", "dup", "close", "close", "write 4096"):
        holder.order(order)
    server.order("go")  # what the server was sent before is told by now
    assert (server.count("flush"), server.count("write")) == (2, 1)
    assert server.count("release") == 0
    holder.order("close")
    assert server.wait_for("release")["fh"] == opened["fh"]
    assert server.count("release") == 1


def test_seek_ioctl_and_truncate_arrive_as_they_are(fs: MountedFs, readers: list[Process]) -> None:
    server = fs.serve()
    user = start(readers, fs.directory / "notes", os.O_WRONLY)
    user.order(f"seek {os.SEEK_HOLE} 0")
    assert user.wait_for("seek")["offset"] == SIZE  # what tinyfs says of every file
    user.order(f"seek {os.SEEK_DATA} 4096")
    assert user.wait_for("seek")["offset"] == 4096
    user.order(f"ioctl {0x40049801} 77")
    assert user.wait_for("ioctl")["result"] == 77
    user.order(f"ioctl {0x40049802} 77")
    assert user.wait_for("ioctl")["errno"] == errno.ENOTTY
    user.order("truncate")
    assert user.wait_for("truncate")["errno"] == errno.EINVAL
    assert server.wait_for("truncate")["size"] == 10


def test_a_killed_reader_is_told_of(fs: MountedFs, readers: list[Process]) -> None:
    server = fs.serve(hold=True)
    reader = start(readers, fs.directory / "blob")
    reader.send("hash")
    read = server.wait_for("read")
    os.kill(reader.pid, signal.SIGKILL)
    assert server.wait_for("interrupt")["unique"] == read["unique"]
    server.order("interrupt")
    assert reader.end() == -signal.SIGKILL


def test_umount_ends_the_connection(fs: MountedFs, readers: list[Process]) -> None:
    server = fs.serve()
    reader = start(readers, fs.directory / "blob")
    reader.order("close")
    server.wait_for("release")
    subprocess.run(["umount", str(fs.directory)], check=True, timeout=DEADLINE)
    server.wait_for("closed")
    assert server.end() == 0


def test_without_keeper_and_server_a_read_is_an_error(
    fs: MountedFs, readers: list[Process]
) -> None:
    server = fs.serve(hold=True)
    reader = start(readers, fs.directory / "blob")
    reader.send("hash")
    server.wait_for("read")
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, fs.fd, inheritable=False)  # the keeper's hold, and the number stays taken
    os.close(null)
    server.kill()
    assert reader.wait_for("hash")["errno"] in (errno.ECONNABORTED, errno.ENOTCONN, errno.EIO)
