"""The EROFS superblock: what a bad one is called, and what mkfs.erofs writes."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagein.mounts.superblock import MAGIC, OFFSET, SIZE, SLOT_SIZE, superblock


def raw(
    *, magic: int = MAGIC, bits: int = 12, root: int = 0, blocks: int = 1, incompat: int = 0
) -> bytes:
    data = bytearray(SIZE)
    struct.pack_into("<I", data, 0, magic)
    struct.pack_into("<B", data, 12, bits)
    struct.pack_into("<H", data, 14, root)
    struct.pack_into("<I", data, 36, blocks)
    struct.pack_into("<I", data, 80, incompat)
    struct.pack_into("<HH", data, 86, 2, 9)
    return bytes(data)


def test_the_fields_are_where_the_kernel_has_them() -> None:
    found = superblock(raw(bits=9, root=36, blocks=7, incompat=0xC))
    assert (found.magic, found.blkszbits, found.blocks) == (MAGIC, 9, 7)
    assert (found.extra_devices, found.table) == (2, 9 * SLOT_SIZE)
    assert found.length == 7 * 512


def test_the_48_bit_layout_has_more_block_bits() -> None:
    assert superblock(raw(root=3, blocks=7, incompat=0x80)).blocks == 3 << 32 | 7
    slot = bytearray(SLOT_SIZE)
    struct.pack_into("<IIH", slot, 64, 5, 0, 1)
    assert superblock(raw(incompat=0x80)).device_length(slot) == (1 << 32 | 5) * 4096
    assert superblock(raw()).device_length(slot) == 5 * 4096


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "ends at 1024 bytes"),
        (raw()[:127], "ends at 1151 bytes"),
        (raw(magic=0xEF53), "magic is 0x0000ef53"),
        (raw(bits=8), "block of 1 << 8"),
        (raw(bits=17), "block of 1 << 17"),
    ],
)
def test_what_is_none_says_why(data: bytes, text: str) -> None:
    with pytest.raises(ValueError, match=f"not an EROFS image: .*{text}"):
        superblock(data)


@given(st.binary(max_size=2 * SIZE))
def test_any_bytes_are_one_or_not(data: bytes) -> None:
    try:
        found = superblock(data)
    except ValueError:
        return
    assert found.length >= found.blocks >= 0


def test_an_image_of_mkfs(tmp_path: Path) -> None:
    if shutil.which("mkfs.erofs") is None:
        pytest.skip("needs mkfs.erofs (erofs-utils)")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(bytes(range(256)) * 64)
    blob, image = tmp_path / "blob", tmp_path / "image"
    command = ["mkfs.erofs", "--chunksize=1048576", f"--blobdev={blob}"]
    command += [str(image), str(tmp_path / "tree")]
    subprocess.run(command, check=True, timeout=200, capture_output=True)
    data = image.read_bytes()
    found = superblock(data[OFFSET : OFFSET + SIZE])
    assert (found.extra_devices, found.blkszbits) == (1, 12)
    assert found.length == len(data)
    assert 0 < found.table <= len(data) - SLOT_SIZE
