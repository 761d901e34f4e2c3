"""A cache directory: who may have it, and what is made of the files found in it (facts 7.3)."""

import errno
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cachefiles.files import PATH, found, graves, new_cache
from tests.cachefiles.rig import PAGE, VOLUME
from tests.fds import open_fds

from pagein.cachefiles import xattr
from pagein.cachefiles.cache import Cache
from pagein.cachefiles.inflight import InflightTable

SIZE = 3 * PAGE + 100


@pytest.fixture
def path(cache: Cache, tmp_path: Path) -> Path:
    """A cache file of `SIZE` bytes whose second page is present."""
    file = cache.look_up(PATH, SIZE)
    os.pwrite(file.fd, b"x" * PAGE, PAGE)
    file.close()
    return tmp_path / os.fsdecode(PATH)


# ---- who has the directory ----------------------------------------------------------------------


def test_a_directory_is_bound_once(cache: Cache, tmp_path: Path) -> None:
    for shared in (False, True):
        with pytest.raises(OSError, match="another pagein") as caught:
            new_cache(tmp_path, shared=shared)
        assert caught.value.errno == errno.EBUSY
        assert caught.value.filename == str(tmp_path)


def test_a_shared_one_is_bound_by_many_who_share(tmp_path: Path) -> None:
    first, second = (new_cache(tmp_path, shared=True) for _ in range(2))
    with pytest.raises(OSError) as caught:
        new_cache(tmp_path)
    assert caught.value.errno == errno.EBUSY
    first.close()
    second.close()
    new_cache(tmp_path).close()


def test_the_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path)
    cache = Cache(b"a")
    monkeypatch.chdir("/")
    cache.prepare_volume(VOLUME)
    assert cache.directory == os.fsencode(tmp_path / "a")
    assert (tmp_path / "a" / "cache" / "Ierofs,test").stat().st_mode & 0o777 == 0o700
    cache.close()


@pytest.mark.parametrize(
    ("make", "number"),
    [
        (lambda path: None, errno.ENOENT),
        (lambda path: path.write_bytes(b""), errno.ENOTDIR),
    ],
)
def test_no_directory(tmp_path: Path, make: Callable[[Path], object], number: int) -> None:
    make(tmp_path / "it")
    with pytest.raises(OSError) as caught:
        new_cache(tmp_path / "it")
    assert caught.value.errno == number


@pytest.mark.parametrize("name", ["cache", "graveyard"])
def test_something_in_the_way(tmp_path: Path, name: str) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / name).symlink_to("real")
    before = open_fds()
    with pytest.raises(OSError, match="not a directory") as caught:
        new_cache(tmp_path)
    assert caught.value.errno == errno.EIO
    assert open_fds() <= before


def test_bound_again_the_half_written_is_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache, path = new_cache(tmp_path), tmp_path / os.fsdecode(PATH)
    file = cache.look_up(PATH, SIZE)
    os.pwrite(file.fd, b"x" * PAGE, PAGE)
    file.close()
    code = f"""
import os
from pagein.cachefiles.inflight import InflightTable
InflightTable({os.fsencode(tmp_path)!r}).enter({PATH!r}, {PAGE}, 1024)
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code], timeout=200)
    assert not found(cache, SIZE)  # while it is bound: not present, not dropped
    assert path.stat().st_blocks
    cache.close()
    with caplog.at_level(logging.WARNING, "pagein.cachefiles"):
        again = new_cache(tmp_path)
    assert "dropped 1024 bytes at 4096" in caplog.text
    assert not found(again, SIZE)
    assert not path.stat().st_blocks
    again.close()


def test_an_error_while_dropping_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    before = open_fds()
    monkeypatch.setattr(InflightTable, "drop_dead", broken)
    with pytest.raises(OSError, match="Input/output"):
        new_cache(tmp_path)
    assert open_fds() <= before
    monkeypatch.undo()
    new_cache(tmp_path).close()


# ---- volumes ------------------------------------------------------------------------------------


def test_a_volume(cache: Cache, tmp_path: Path) -> None:
    cache.prepare_volume(VOLUME)
    cache.prepare_volume(VOLUME)
    directory = tmp_path / "cache" / "Ierofs,test"
    assert os.getxattr(directory, xattr.NAME) == bytes(4)
    assert not any((tmp_path / "graveyard").iterdir())


def test_a_volume_without_its_attribute_cannot_be_used(cache: Cache, tmp_path: Path) -> None:
    os.removexattr(tmp_path / "cache" / "Ierofs,test", xattr.NAME)
    with pytest.raises(OSError) as caught:
        cache.prepare_volume(VOLUME)
    assert caught.value.errno == errno.ENOBUFS


def test_a_volume_that_is_a_file_cannot_be_used(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "cache" / "Ifile").write_bytes(b"")
    os.setxattr(tmp_path / "cache" / "Ifile", xattr.NAME, bytes(4))
    with pytest.raises(OSError) as caught:
        cache.prepare_volume(b"file")
    assert caught.value.errno == errno.ENOBUFS


def test_a_volume_of_another_kind_is_buried(cache: Cache, path: Path, tmp_path: Path) -> None:
    os.setxattr(tmp_path / "cache" / "Ierofs,test", xattr.NAME, bytes(3))
    cache.prepare_volume(VOLUME)
    (grave,) = graves(tmp_path)
    assert (grave / path.parent.name / path.name).exists()
    assert not cache.exists(PATH)
    assert not found(cache, SIZE)


def test_a_volume_is_there_with_its_attribute_or_not_at_all(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "setxattr", full)
    with pytest.raises(OSError, match="No space left"):
        cache.prepare_volume(b"new")
    assert not (tmp_path / "cache" / "Inew").exists()
    assert not any((tmp_path / "graveyard").iterdir())


def test_a_volume_made_by_two_at_once(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "cache" / "Inew"
    real = os.rename

    def rename(source: bytes, target: bytes) -> None:
        if not directory.exists():
            directory.mkdir()
            os.setxattr(directory, xattr.NAME, bytes(4))
            (directory / "@00").mkdir()
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    cache.prepare_volume(b"new")
    assert (directory / "@00").exists()
    assert not any((tmp_path / "graveyard").iterdir())
