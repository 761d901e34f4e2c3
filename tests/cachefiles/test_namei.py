"""Paths of cache files: what real kernels made of these keys (facts cachefiles-kernel 12)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagein.cachefiles import namei


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (b"plain.erofs", b"Dplain.erofs"),
        (b"\x21\x2e\x30\x7f", b"D!.0\x7f"),  # the ends of what is printable here
        (b"a b", b"E0x1yo"),
        (bytes([1, 2, 3, 4]), b"S1020304"),
        (bytes([1, 0x0A]), b"Ta01"),
        (b"/", b"T2f"),
        (bytes(4), b"S"),  # a word of 0 is empty
        (bytes(8), b"S,"),
        (bytes([1, 0, 0, 0, 0, 0, 0, 1]), b"S1000000,1"),
    ],
)
def test_object_names(key: bytes, name: bytes) -> None:
    assert namei.object_name(key) == name


@given(st.binary(min_size=1, max_size=namei.MAX_COOKIE_KEY))
def test_a_name_is_one_directory_entry(key: bytes) -> None:
    name = namei.object_name(key)
    assert name[:1] in (b"D", b"S", b"T", b"E")
    assert b"/" not in name and b"\0" not in name


@given(st.sets(st.binary(min_size=1, max_size=12), min_size=2, max_size=20))
def test_two_keys_of_one_length_have_two_names(keys: set[bytes]) -> None:
    # Of different lengths the kernel lets zero padding collide (`S1` is 00000001 and 000000 01).
    for length in {len(key) for key in keys}:
        same = [key for key in keys if len(key) == length]
        assert len({namei.object_name(key) for key in same}) == len(same)


@pytest.mark.parametrize("key", [b"", b"x" * 253])
def test_cookie_keys_that_no_kernel_could_name(key: bytes) -> None:
    with pytest.raises(ValueError, match="cookie key"):
        namei.object_name(key)


def test_the_longest_cookie_key() -> None:
    assert len(namei.object_name(b"x" * 252)) == 253


@pytest.mark.parametrize("key", [b"", b"v" * 255, b"a/b", b"a\0b"])
def test_volume_keys_that_no_kernel_could_name(key: bytes) -> None:
    with pytest.raises(ValueError, match="volume key"):
        namei.volume_name(key)


def test_the_longest_volume_key() -> None:
    # "erofs," and 248 characters: the longest domain that a real kernel took.
    assert len(namei.volume_name(b"erofs," + b"d" * 248)) == 255


def test_a_path() -> None:
    path = namei.object_path(b"erofs,plain.erofs", b"plain.erofs")
    parts = path.split(b"/")
    assert parts[0::3] == [b"cache", b"Dplain.erofs"]
    assert parts[1] == b"Ierofs,plain.erofs"
    assert parts[2] == namei.fanout(b"erofs,plain.erofs", b"plain.erofs")


def test_the_fan_out_is_the_low_byte_of_the_hash() -> None:
    low = namei.fscache_hash(namei.volume_hash(b"v"), b"c") & 0xFF
    assert namei.fanout(b"v", b"c") == b"@%02x" % low


def reference_hash(salt: int, data: bytes) -> int:
    """The formula of facts 12 once more, in the arithmetic of unbounded integers."""
    x, y, m = 0, salt, 1 << 32
    data += bytes(-len(data) % 4)
    for at in range(0, len(data), 4):
        x ^= int.from_bytes(data[at : at + 4], "little")
        y ^= x
        x = (x * 2**7 % m + x // 2**25 + y) % m
        y = (y * 2**20 % m + y // 2**12) * 9 % m
    return (y ^ x * 0x61C88647 % m) * 0x61C88647 % m


@given(st.integers(0, (1 << 32) - 1), st.binary(max_size=40))
def test_the_hash(salt: int, data: bytes) -> None:
    assert namei.fscache_hash(salt, data) == reference_hash(salt, data)
