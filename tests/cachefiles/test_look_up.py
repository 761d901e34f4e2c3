"""Looking an object up: what is made of the file that is found, by the rows of facts 7.3."""

import errno
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.cachefiles.files import PATH, found, graves, new_cache
from tests.cachefiles.filesystems import PLAIN, mounted
from tests.cachefiles.rig import PAGE, VOLUME
from tests.fds import open_fds

from pagein.cachefiles import xattr
from pagein.cachefiles.cache import Cache
from pagein.rangeset import RangeSet

SIZE = 3 * PAGE + 100
LENGTH = 4 * PAGE
HIT = RangeSet([(PAGE, 2 * PAGE)])


@pytest.fixture
def path(cache: Cache, tmp_path: Path) -> Path:
    """A cache file of `SIZE` bytes whose second page is present."""
    file = cache.look_up(PATH, SIZE)
    os.pwrite(file.fd, b"x" * PAGE, PAGE)
    file.close()
    return tmp_path / os.fsdecode(PATH)


def test_a_new_file_is_there_at_once(cache: Cache, tmp_path: Path) -> None:
    assert cache.find(PATH) is None
    assert not cache.exists(PATH)
    file = cache.look_up(PATH, SIZE)
    assert (tmp_path / os.fsdecode(PATH)).stat().st_size == LENGTH
    assert (tmp_path / os.fsdecode(PATH)).stat().st_mode & 0o777 == 0o600
    assert cache.exists(PATH)
    assert not file.present
    file.close()


@pytest.mark.root
@pytest.mark.parametrize("fstype", PLAIN)
def test_what_was_written_is_found_again(tmp_path: Path, fstype: str) -> None:
    with mounted(tmp_path, fstype) as directory:
        for size, present in ((SIZE, RangeSet()), (SIZE, HIT), (SIZE + 1, RangeSet())):
            cache = new_cache(directory)
            cache.prepare_volume(VOLUME)
            assert found(cache, size) == present
            file = cache.look_up(PATH, size)
            os.pwrite(file.fd, bytes(PAGE), PAGE)
            file.close()
            cache.close()


def attribute(size: int = SIZE, zero: int = 0, kind: int = 1, content: int = 0) -> bytes:
    return struct.pack(">QQBB", size, zero, kind, content)


@pytest.mark.parametrize(
    "value", [attribute(), attribute(content=1), attribute(content=255), attribute(zero=77)]
)
def test_hit(cache: Cache, path: Path, value: bytes) -> None:
    os.setxattr(path, xattr.NAME, value)
    file = cache.look_up(PATH, SIZE)
    assert file.present == HIT
    file.close()


STALE = [
    attribute(size=SIZE + 1),
    attribute(kind=2),
    attribute(content=4),
    attribute()[:17],
    b"",
]


@pytest.mark.parametrize("value", STALE)
def test_stale(cache: Cache, path: Path, value: bytes) -> None:
    os.setxattr(path, xattr.NAME, value)
    before = path.stat().st_ino
    with open(path, "rb") as kept:  # so that its number is not used again
        with pytest.raises(OSError) as caught:
            cache.look_up(PATH, SIZE)
        assert caught.value.errno == errno.EBUSY
        assert os.getxattr(path, xattr.NAME) == value
        assert os.pread(kept.fileno(), PAGE, PAGE) == b"x" * PAGE
        assert (path.stat().st_ino, path.stat().st_size) == (before, LENGTH)
    assert not found(cache, SIZE)


@pytest.mark.parametrize(
    ("value", "number"), [(None, errno.ENODATA), (attribute() + b"\0", errno.ERANGE)]
)
def test_a_hard_failure_every_time(
    cache: Cache, path: Path, value: bytes | None, number: int
) -> None:
    if value is None:
        os.removexattr(path, xattr.NAME)
    else:
        os.setxattr(path, xattr.NAME, value)
    before = open_fds()
    for _ in range(2):
        with pytest.raises(OSError) as caught:
            cache.look_up(PATH, SIZE)
        assert caught.value.errno == number
    assert open_fds() <= before
    path.unlink()  # heals it
    assert not found(cache, SIZE)


@pytest.mark.parametrize("length", [PAGE, 2 * PAGE, LENGTH - 1, LENGTH + PAGE])
def test_a_wrong_length_is_put_right(cache: Cache, path: Path, length: int) -> None:
    os.truncate(path, length)
    assert found(cache, SIZE) == (HIT if length > PAGE else RangeSet())


@pytest.mark.parametrize("length", [PAGE, LENGTH + PAGE])
def test_but_not_of_a_file_in_use(cache: Cache, path: Path, length: int) -> None:
    os.truncate(path, length)
    with open(path, "rb"), pytest.raises(OSError, match="wrong length") as caught:
        cache.look_up(PATH, SIZE)
    assert caught.value.errno == errno.EBUSY
    assert path.stat().st_size == length


def test_those_who_share_have_it_open_themselves(tmp_path: Path) -> None:
    cache = new_cache(tmp_path, shared=True)
    file = cache.look_up(PATH, SIZE)
    os.truncate(tmp_path / os.fsdecode(PATH), LENGTH + PAGE)
    assert not found(cache, SIZE)
    file.close()
    cache.close()


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(path.parent)
        try:
            listener.bind(path.name)
        finally:
            os.chdir(here)


@pytest.mark.parametrize(
    ("make", "buried"),
    [
        (Path.mkdir, True),
        (os.mkfifo, False),
        (make_socket, False),
        (lambda path: path.symlink_to("/etc/passwd"), False),
    ],
)
def test_what_is_no_regular_file_makes_way(
    cache: Cache, path: Path, tmp_path: Path, make: Callable[[Path], object], buried: bool
) -> None:
    path.unlink()
    make(path)
    assert cache.exists(PATH)
    assert not found(cache, SIZE)
    assert path.is_file() and not path.is_symlink()
    assert len(graves(tmp_path)) == buried


def test_an_unreadable_file_system_is_told(
    cache: Cache, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    before = open_fds()
    for name in ("lseek", "fstat", "ftruncate", "link"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, broken)
            if name in ("ftruncate", "link"):
                path.unlink(missing_ok=True)
            with pytest.raises(OSError) as caught:
                cache.look_up(PATH, SIZE)
            assert caught.value.errno == errno.EIO
    assert open_fds() <= before


# ---- many at once -------------------------------------------------------------------------------

MAKER = """
import os, sys
from pagein.cachefiles.cache import Cache
directory, volume, path, size = (os.fsencode(word) for word in sys.argv[1:])
cache = Cache(directory, shared=True)
sys.stdin.readline()
cache.prepare_volume(volume)
file = cache.look_up(path, int(size))
print(os.fstat(file.fd).st_ino, flush=True)
sys.stdin.read()
"""


def test_processes_that_make_one_file_at_once_get_the_same(tmp_path: Path) -> None:
    words = [str(tmp_path), os.fsdecode(VOLUME), os.fsdecode(PATH), str(SIZE)]
    makers = [
        subprocess.Popen(
            [sys.executable, "-c", MAKER, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    try:
        for maker in makers:
            assert maker.stdin is not None
            maker.stdin.write("\n")
            maker.stdin.flush()
        inodes = [maker.stdout.readline() for maker in makers if maker.stdout is not None]
        assert len(set(inodes)) == 1
        assert inodes[0].strip() == str((tmp_path / os.fsdecode(PATH)).stat().st_ino)
    finally:
        for maker in makers:
            maker.communicate(timeout=200)
    assert [maker.returncode for maker in makers] == [0] * 6


def test_made_by_another_at_the_last_moment(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link

    def link(*arguments: Any, **names: Any) -> None:
        monkeypatch.undo()
        file = cache.look_up(PATH, SIZE)
        os.pwrite(file.fd, b"x" * PAGE, PAGE)
        file.close()
        real(*arguments, **names)

    monkeypatch.setattr(os, "link", link)
    assert found(cache, SIZE) == HIT
