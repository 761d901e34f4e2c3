"""What files of a layer name, found while it is indexed, and read again."""

import stat
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.foresight.programs import elf

from pagein.images.foresight.elf import names as names_of
from pagein.images.layers.entry import Entry, Segment
from pagein.images.layers.names import PAGE, PROGRAM, RECORDS, SOURCE, Named, blocks, unpack
from pagein.images.layers.scan import LARGE, Scanner

texts = st.binary(min_size=1, max_size=20).filter(lambda each: not set(each) & set(b"\0\n"))
named = st.builds(
    Named,
    st.sampled_from([PROGRAM, SOURCE, b""]),
    st.one_of(st.just(b""), texts),
    st.lists(texts).map(tuple),
    st.lists(texts.filter(lambda each: b":" not in each)).map(tuple),
    st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(0, 1 << 40))).map(tuple),
)


@given(st.dictionaries(st.integers(0, 1 << 30).map(lambda each: each * PAGE), named, min_size=1))
def test_what_was_written_is_read(files: dict[int, Named]) -> None:
    ((key, content),) = blocks(sorted(files.items()))
    block = unpack(key, content)
    assert {start: block.find(start) for start in files} == files
    assert block.find(max(files) + PAGE) is None
    assert block.find(min(files) - PAGE) is None


def test_many_files_are_several_blocks() -> None:
    files = [(number * PAGE, Named(SOURCE, b"", (b"a",))) for number in range(RECORDS + 1)]
    found = list(blocks(files))
    assert [key for key, _ in found] == [0, RECORDS * PAGE]
    assert unpack(*found[1]).find(RECORDS * PAGE) == files[-1][1]
    assert list(blocks([])) == []


def test_what_cannot_be_written_is_left_out() -> None:
    odd = Named(SOURCE, b"#!a\0", (b"a\nb", b"", b"c"), (b"\0",))
    ((key, content),) = blocks([(0, odd)])
    assert unpack(key, content).find(0) == Named(SOURCE, b"", (b"c",))


GOOD = next(blocks([(0, Named(PROGRAM, b"ld", (b"a",), (), ((1, 2),))), (PAGE, Named(SOURCE))]))[1]


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=8))
def test_what_is_damaged_is_refused_or_something_else(changes: list[tuple[int, int]]) -> None:
    bad = bytearray(GOOD)
    for at, value in changes:
        bad[at] = value
    for content in (bytes(bad), bytes(bad[: len(bad) // 2])):
        try:
            block = unpack(0, content)
            for start in block.starts:
                block.find(start)
        except ValueError:
            pass


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\0", struct.pack("<I", 0), struct.pack("<I", 1 << 31), GOOD[:8]]
)
def test_no_block(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"should have|too short"):
        unpack(0, content)


def scanned(path: bytes, data: bytes, step: int) -> list[tuple[int, Named]]:
    """What is found of a file that comes in pieces, and of the one before it."""
    scanner = Scanner()
    at = 0
    for name, content, start in ((b"before", b"x" * 100, 0), (path, data, 8 * PAGE)):
        segments = (Segment(0, at, len(content)),)
        scanner.file(Entry(name, stat.S_IFREG, 0, size=len(content), segments=segments), start)
        for low in range(0, len(content), step):
            view = memoryview(content)[low : low + step]
            if scanner.wants(at + low, view):
                scanner.take(at + low, view)
        at += len(content)
    return scanner.found


@pytest.mark.parametrize("step", [1 << 30, 512 << 10, 100_000, 4096, 1000])
@pytest.mark.parametrize("size", [0, 9_000, 5 << 20, LARGE + 1])
def test_programs_in_pieces(size: int, step: int) -> None:
    program = elf("/lib/ld.so", ("libone.so", "libtwo.so"), size=size)
    ((start, found),) = scanned(b"usr/bin/a", program, step)
    assert (start, found[:3]) == (8 * PAGE, (PROGRAM, b"/lib/ld.so", (b"libone.so", b"libtwo.so")))
    whole = names_of(lambda offset, length: program[offset : offset + length])
    assert found.loaded == (whole.loaded if len(program) > LARGE else ())


@pytest.mark.parametrize("step", [1 << 30, 7, 3, 1])
@pytest.mark.parametrize(
    ("path", "data", "wanted"),
    [
        (b"a.py", b"import os", Named(SOURCE, b"", (b"os",))),
        (
            b"a",
            b"#!/usr/bin/python3 -I\nimport os\n",
            Named(SOURCE, b"#!/usr/bin/python3 -I", (b"os",)),
        ),
        (b"a", b"#!/bin/sh\nimport os\n", Named(b"", b"#!/bin/sh")),
        (b"a", b"import os", None),
        (b"a.py", b"pass", None),
        (b"x/tests/a.py", b"import os", None),
        (b"a", b"\x7fELF", None),
        (b"a", b"\x7fEL", None),
    ],
)
def test_scripts(path: bytes, data: bytes, wanted: Named | None, step: int) -> None:
    assert scanned(path, data, step) == ([] if wanted is None else [(8 * PAGE, wanted)])
