"""Holes as the truth: which file systems tell them exactly, and what is made of them."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.cachefiles.filesystems import PLAIN, mounted, run

from pagein.cachefiles import presence
from pagein.cachefiles.presence import InexactHoles, data_ranges, probe, whole_pages
from pagein.rangeset import RangeSet

PAGE = presence.PAGE_SIZE
HUGE = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


@contextlib.contextmanager
def sparse_file(directory: Path, size: int) -> Iterator[int]:
    with tempfile.TemporaryFile(dir=directory) as file:
        os.ftruncate(file.fileno(), size)
        yield file.fileno()


@given(st.sets(st.integers(0, 15)))
def test_pages_written_are_what_is_found(written: set[int]) -> None:
    with sparse_file(Path(tempfile.gettempdir()), 16 * PAGE) as fd:
        for page in written:
            os.pwrite(fd, bytes(PAGE), page * PAGE)
        wanted = RangeSet((page * PAGE, (page + 1) * PAGE) for page in written)
        assert whole_pages(fd, 0, 16 * PAGE) == wanted
        assert RangeSet(data_ranges(fd, 4 * PAGE, 9 * PAGE)) == RangeSet(
            wanted.intersection(4 * PAGE, 9 * PAGE)
        )


def test_blocks_smaller_than_a_page_are_not_whole_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a file system with blocks of 1 KiB (facts cachefiles-kernel 9.3).
    ranges = [(1024, 3 * PAGE + 1024), (4 * PAGE + 1024, 4 * PAGE + 2048)]
    monkeypatch.setattr(presence, "data_ranges", lambda *_: iter(ranges))
    assert whole_pages(-1, 0, 8 * PAGE) == RangeSet([(PAGE, 3 * PAGE)])


def test_other_errors_of_lseek_are_told() -> None:
    with pytest.raises(OSError) as caught:
        list(data_ranges(-1, 0, PAGE))
    assert caught.value.errno == errno.EBADF


def test_round_up() -> None:
    assert [presence.round_up(n) for n in (0, 1, PAGE, PAGE + 1)] == [0, PAGE, PAGE, 2 * PAGE]


# ---- the probe of `bind` ------------------------------------------------------------------------


def assert_refused(directory: Path) -> None:
    with pytest.raises(InexactHoles) as caught:
        probe(str(directory))
    assert caught.value.errno == errno.EOPNOTSUPP
    assert caught.value.filename == str(directory)
    assert not any(directory.iterdir())


@pytest.mark.root
@pytest.mark.parametrize("fstype", PLAIN)
def test_plain_file_systems_are_exact(tmp_path: Path, fstype: str) -> None:
    with mounted(tmp_path, fstype) as directory:
        for item in directory.iterdir():
            item.rmdir()  # lost+found
        probe(str(directory))
        assert not any(directory.iterdir())


@pytest.mark.root
def test_blocks_of_1_kib_are_exact_enough(tmp_path: Path) -> None:
    image, target = tmp_path / "image", tmp_path / "target"
    target.mkdir()
    with open(image, "wb") as file:
        os.truncate(file.fileno(), 32 << 20)
    run("mkfs.ext4", "-q", "-b", "1024", image)
    run("mount", "-o", "loop", image, target)
    try:
        probe(str(target))
    finally:
        run("umount", target)


@pytest.mark.root
def test_tmpfs_with_huge_pages_is_refused(tmp_path: Path) -> None:
    if not HUGE.exists() or "[deny]" in HUGE.read_text():
        pytest.skip("the kernel has no huge pages for tmpfs")
    with mounted(tmp_path, "tmpfs", "size=64m,huge=always") as directory:
        assert_refused(directory)


@pytest.mark.root
def test_xfs_with_an_extent_size_hint_is_refused(tmp_path: Path) -> None:
    with mounted(tmp_path, "xfs") as directory:
        run("xfs_io", "-c", "extsize 1m", directory)
        assert_refused(directory)


def test_without_user_attributes_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    with pytest.raises(OSError, match="no user extended attributes") as caught:
        probe(os.fsencode(tmp_path))
    assert caught.value.errno == errno.EOPNOTSUPP


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        probe(str(tmp_path / "none"))
