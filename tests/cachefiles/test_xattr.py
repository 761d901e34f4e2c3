"""The extended attribute of a cache file (facts cachefiles-kernel 12, 7.3)."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagein.cachefiles import xattr
from pagein.cachefiles.xattr import ObjectXattr, Unusable

U64 = st.integers(0, (1 << 64) - 1)
U8 = st.integers(0, 255)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    yield fd
    os.close(fd)


def test_what_a_real_kernel_wrote(file: int) -> None:
    xattr.set_object(file, ObjectXattr(0x8BD000))
    value = os.getxattr(file, "user.CacheFiles.cache")
    assert value == bytes.fromhex("00000000008bd00000000000000000000100")
    assert xattr.get_object(file) == ObjectXattr(0x8BD000)


def test_the_attribute_of_a_volume() -> None:
    assert bytes.fromhex("00000000") == xattr.volume_coherency()


@given(U64, U64, U8, U8)
def test_a_match_is_size_and_type_and_not_dirty(size: int, zero: int, kind: int, what: int) -> None:
    found = ObjectXattr(size, zero, kind, what)
    assert found.matches(ObjectXattr(size)) == (kind == 1 and what != 4)
    assert not found.matches(ObjectXattr(size ^ 1))


def test_missing_is_a_failure_and_not_a_retry(file: int) -> None:
    with pytest.raises(Unusable) as caught:
        xattr.get_object(file)
    assert caught.value.errno == errno.ENODATA


def test_one_byte_more_is_a_failure(file: int) -> None:
    os.setxattr(file, xattr.NAME, bytes(19))
    with pytest.raises(Unusable) as caught:
        xattr.get_object(file)
    assert caught.value.errno == errno.ERANGE


@pytest.mark.parametrize("length", [0, 17])
def test_too_short_is_stale(file: int, length: int) -> None:
    os.setxattr(file, xattr.NAME, bytes(length))
    assert xattr.get_object(file) is None


def test_other_errors_are_told() -> None:
    with pytest.raises(OSError) as caught:
        xattr.get_object(1 << 20)
    assert caught.value.errno == errno.EBADF
