"""What an ELF file names; and that no file, however odd, is more than read."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.foresight.programs import elf

from pagein.images.foresight.elf import Names, Read, names

PROGRAM = elf("/lib64/ld.so", ("libone.so.1", "libtwo.so"), size=5000)


def of(data: bytes) -> Read:
    return lambda offset, length: data[offset : offset + length]


def test_the_loader_and_the_libraries() -> None:
    assert names(of(PROGRAM))[:3] == Names(b"/lib64/ld.so", (b"libone.so.1", b"libtwo.so"))[:3]


def test_a_library_that_needs_nothing_and_a_program_without_a_loader() -> None:
    assert names(of(elf()))[:3] == Names(b"", ())[:3]
    assert names(of(elf("", ("libc.so",))))[:3] == Names(b"", (b"libc.so",))[:3]


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"#!/bin/sh\n", PROGRAM[:63], PROGRAM[:200]])
def test_what_is_none_names_nothing_more_than_it_has(data: bytes) -> None:
    assert names(of(data)).libraries == ()


@given(st.lists(st.tuples(st.integers(0, len(PROGRAM) - 1), st.integers(0, 255)), max_size=40))
def test_bytes_that_are_wrong_cost_little(changes: list[tuple[int, int]]) -> None:
    data = bytearray(PROGRAM)
    for at, value in changes:
        data[at] = value
    taken = 0

    def read(offset: int, length: int) -> bytes:
        nonlocal taken
        assert offset >= 0
        assert length >= 0
        taken += length
        return bytes(data[offset : offset + length])

    names(read)
    assert taken < 100_000


def test_as_the_loader_of_this_machine_sees_it() -> None:
    program = Path(sys.executable).resolve()
    ldd = subprocess.run(["ldd", program], capture_output=True, text=True)
    if ldd.returncode:
        pytest.skip(f"ldd: {ldd.stderr}")
    found = names(of(program.read_bytes()))
    for name in (found.loader, *found.libraries):
        assert name.decode() in ldd.stdout
    assert found.libraries
