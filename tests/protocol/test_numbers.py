"""The page of numbers: its layout is what a user half of another version finds there."""

from __future__ import annotations

import struct

import pytest

from pagein.protocol.numbers import SIZE, Number, Numbers

LAYOUT = [
    "reads",
    "misses",
    "read_bytes",
    "written_bytes",
    "unread_bytes",
    "wasted_bytes",
    "mounts",
    "blobs",
]


def test_each_number_has_its_place_for_ever() -> None:
    assert SIZE == 4096
    assert [number.name.lower() for number in sorted(Number)] == LAYOUT
    assert [number.value for number in Number] == list(range(len(LAYOUT)))


def test_what_one_writes_the_other_reads() -> None:
    page = bytearray(SIZE)
    ours, theirs = Numbers(page), Numbers(memoryview(page).toreadonly())
    for number in Number:
        ours[number] = 2**64 - 1 - number
    assert struct.unpack_from("=8Q", page) == tuple(2**64 - 1 - number for number in range(8))
    assert [theirs[number] for number in Number] == [2**64 - 1 - number for number in range(8)]
    assert theirs.values() == {name: 2**64 - 1 - at for at, name in enumerate(LAYOUT)}
    ours.cells[Number.MISSES] += 1
    assert theirs[Number.MISSES] == 2**64 - 1


def test_who_only_looks_cannot_write() -> None:
    page = Numbers(memoryview(bytearray(SIZE)).toreadonly())
    with pytest.raises(TypeError):
        page[Number.READS] = 1


def test_memory_of_its_own() -> None:
    first, second = Numbers(), Numbers()
    first[Number.BLOBS] = 3
    assert len(first.cells) == SIZE // 8
    assert set(second.values().values()) == {0}
