"""Who has a cache file open: leases, and kernel EROFS mounted on the file itself."""

import asyncio
import contextlib
import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cachefiles.filesystems import mounted, run
from tests.ending import killed

from pagein.cachefiles.inuse import claimed, no_writer, open_cache_file, sole_user
from pagein.mounts.erofs import mount_image, umount_image


@pytest.fixture
def path(tmp_path: Path) -> bytes:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    return os.fsencode(file)


@pytest.fixture
def fd(path: bytes) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    yield fd
    os.close(fd)


def test_alone(fd: int) -> None:
    assert sole_user(fd)
    assert sole_user(fd)  # asking leaves nothing behind


@pytest.mark.parametrize("mode", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
def test_not_alone(path: bytes, fd: int, mode: int) -> None:
    other = os.open(path, mode | os.O_CLOEXEC)
    try:
        assert not sole_user(fd)
    finally:
        os.close(other)
    assert sole_user(fd)


def test_a_dup_is_no_other_user(fd: int) -> None:
    other = os.dup(fd)
    try:
        assert sole_user(fd)
    finally:
        os.close(other)


def test_no_writer(path: bytes) -> None:
    reader = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        assert no_writer(reader)
        writer = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            assert not no_writer(reader)
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def test_what_cannot_be_known_counts_as_used() -> None:
    read, write = os.pipe()  # no leases on pipes: EINVAL
    try:
        assert not sole_user(write)
    finally:
        os.close(read)
        os.close(write)


ASKER = """
import errno, fcntl, os, sys
from pagein.cachefiles import inuse
real = fcntl.fcntl
def meanwhile(fd, command, argument):
    answer = real(fd, command, argument)
    if (command, argument) == (fcntl.F_SETLEASE, fcntl.F_WRLCK):
        try:
            os.open(sys.argv[1], os.O_RDONLY | os.O_NONBLOCK)
        except BlockingIOError:
            print("refused", flush=True)
    return answer
fcntl.fcntl = meanwhile
fd = os.open(sys.argv[1], os.O_RDWR)
print(inuse.sole_user(fd))
"""


def test_who_opens_the_file_while_it_is_asked_for_kills_nobody(path: bytes) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASKER, path], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "refused\nTrue\n"), done.stderr


def test_other_errors_are_told() -> None:
    with pytest.raises(OSError) as caught:
        sole_user(1 << 20)
    assert caught.value.errno == errno.EBADF


def test_claimed(path: bytes, fd: int) -> None:
    with pytest.raises(OSError, match="in use") as caught, claimed(path):
        pass
    assert caught.value.errno == errno.EBUSY
    assert caught.value.filename == os.fsdecode(path)


def test_claimed_alone(path: bytes) -> None:
    with claimed(path) as fd:
        os.ftruncate(fd, 0)
    assert os.path.getsize(path) == 0


@pytest.mark.root
@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_a_direct_mount_is_a_user(tmp_path: Path, fstype: str) -> None:
    if shutil.which("mkfs.erofs") is None:
        pytest.skip("needs mkfs.erofs (erofs-utils)")
    tree, target = tmp_path / "tree", tmp_path / "target"
    tree.mkdir()
    target.mkdir()
    (tree / "file").write_bytes(os.urandom(100_000))
    with mounted(tmp_path, fstype) as directory:
        image = directory / "image"
        run("mkfs.erofs", image, tree)
        asyncio.run(mount_image(str(image), [], str(target), timeout=30, loop="never"))
        try:
            with pytest.raises(OSError) as caught, claimed(os.fsencode(image)):
                pass
            assert caught.value.errno == errno.EBUSY
        finally:
            asyncio.run(umount_image(str(target), timeout=30))
        with claimed(os.fsencode(image)):
            pass


# ---- two who ask at once ------------------------------------------------------------------------


@pytest.fixture
def lease(fd: int) -> Iterator[int]:
    """A lease that is held, as for the moment of asking."""
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    yield fd
    with contextlib.suppress(BlockingIOError):  # the test has given it up
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def test_an_open_waits_for_who_is_just_asking(
    path: bytes, lease: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = []

    def sleep(_: float) -> None:
        waited.append(1)
        if len(waited) == 3:
            fcntl.fcntl(lease, fcntl.F_SETLEASE, fcntl.F_UNLCK)

    monkeypatch.setattr("pagein.cachefiles.inuse.time.sleep", sleep)
    os.close(open_cache_file(path))
    assert len(waited) == 3


def test_but_not_for_ever(path: bytes, lease: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pagein.cachefiles.inuse._LEASE_HELD", 0.01)
    with pytest.raises(BlockingIOError):
        open_cache_file(path)


ASK = """
import os, sys
from pagein.cachefiles.inuse import open_cache_file, sole_user
for _ in range(2000):
    fd = open_cache_file(os.fsencode(sys.argv[1]))
    sole_user(fd)
    os.close(fd)
"""


def test_processes_that_ask_at_once_do_not_kill_each_other(path: bytes) -> None:
    # Whose lease is broken gets a signal, which by default would be the end of it.
    command = [sys.executable, "-c", ASK, os.fsdecode(path)]
    askers = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    with killed(*askers):
        endings = [asker.communicate(timeout=200)[1] for asker in askers]
    assert [asker.returncode for asker in askers] == [0] * 3, endings
