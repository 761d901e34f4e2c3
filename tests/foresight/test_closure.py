"""All that a command names, out of indexes alone."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.foresight.programs import elf
from tests.traces.rig import IndexedLayer

from pagein.images.foresight.closure import Closure
from pagein.images.foresight.command import Command
from pagein.images.foresight.places import LIBRARY
from pagein.images.foresight.tree import Tree

LIB = "usr/lib/python3.11"
PYTHON, LOADER = "usr/bin/python3.11", "lib/ld.so"


def closure(directory: Path, *layers: dict[str, bytes], words: str) -> list[str]:
    """Names of files, in the order in which they are to come; with ranges of parts of them."""
    made = [
        IndexedLayer(files, directory / f"{number}.index", level=None)
        for number, files in enumerate(layers)
    ]
    indexes = [layer.opened() for layer in made]
    found = []
    names: dict[tuple[int, int], tuple[str, int]] = {}
    for number, (layer, index) in enumerate(zip(made, indexes, strict=True)):
        starts = [piece.offset for piece in index.pieces(0, len(layer.blob))]
        with_data = [(name, len(data)) for name, data in layer.files.items() if data]
        names |= {(number, start): each for start, each in zip(starts, with_data, strict=True)}
    for place in Closure(Tree(indexes)).of(Command(tuple(words.encode().split()))):
        number, start = max(key for key in names if key <= (place.layer, place.start))
        name, size = names[number, start]
        part = (place.start - start, place.length)
        found.append(name if part == (0, size) else f"{name} {part[0]}+{part[1]}")
    for index in indexes:
        index.close()
    return found


def test_libraries_of_libraries_breadth_first_where_a_loader_finds_them(tmp_path: Path) -> None:
    lower = {
        LOADER: elf(),
        "usr/bin/a": elf("/" + LOADER, ("liba.so", "libb.so", "libmissing.so")),
        "usr/lib/liba.so": elf("", ("libb.so", "libc.so")),
        "usr/lib/libb.so": elf("", ("libc.so", "liba.so")),
    }
    upper = {"usr/lib/libc.so": elf("", ("liba.so",)), "usr/lib/libd.so": elf()}
    wanted = ["usr/bin/a", LOADER, "usr/lib/liba.so", "usr/lib/libb.so", "usr/lib/libc.so"]
    assert closure(tmp_path, lower, upper, words="a") == wanted
    assert closure(tmp_path, lower, upper, words="b") == []
    assert closure(tmp_path, lower, {"usr/bin/a": b"text"}, words="a") == ["usr/bin/a"]


def test_of_a_large_library_what_its_loader_reads(tmp_path: Path) -> None:
    large = elf("", ("libb.so",), size=LIBRARY)
    files = {"bin/a": elf("", ("liba.so",)), "lib/liba.so": large, "lib/libb.so": elf()}
    assert closure(tmp_path, files, words="/bin/a") == [
        "bin/a",
        "lib/liba.so 0+1048576",
        "lib/libb.so",
    ]


def test_scripts_and_what_runs_them(tmp_path: Path) -> None:
    files = {
        "bin/sh": elf("/" + LOADER),
        LOADER: elf(),
        "bin/one": b"#!/bin/two -x\n",
        "bin/two": b"#!/usr/bin/env sh\n",
        "bin/round": b"#!/bin/round\n",
        "etc/passwd": b"root",
    }
    wanted = ["bin/one", "bin/two", "bin/sh", LOADER, "etc/passwd"]
    assert closure(tmp_path, files, words="one") == wanted
    assert closure(tmp_path, files, words="round") == ["bin/round"]


def modules(**sources: str) -> dict[str, bytes]:
    """Sources, and something compiled of each."""
    found = {}
    for name, source in sources.items():
        parent, _, stem = f"{LIB}/{name.replace('__', '/').replace('%', '__')}".rpartition("/")
        found[f"{parent}/{stem}.py"] = source.encode()
        found[f"{parent}/__pycache__/{stem}.cpython-311.pyc"] = name.encode()
    return found


def test_modules_come_in_the_order_of_imports(tmp_path: Path) -> None:
    files = {
        PYTHON: elf(),
        "srv/app.py": b"import near, a.b\n",
        "srv/near.py": b"import c\n",
        f"{LIB}/lib-dynload/_c.cpython-311.so": elf("", ("libx.so",)),
        "usr/lib/libx.so": elf(),
        **modules(
            **{
                "encodings__%init%": "import codecs",
                "a__%init%": "from . import first\nfrom .deep import thing, more",
                "a__first": "import c",
                "a__deep__%init%": "",
                "a__deep__more": "from ..first import x\nfrom ... import y",
                "a__b": "from a.deep import *",
                "a__unused": "import unused",
                "unused": "pass",
                "c": "import _c\n\ndef f():\n    import unused",
            }
        ),
    }
    cached = f"{LIB}/{{}}__pycache__/{{}}.cpython-311.pyc".format
    assert closure(tmp_path, files, words="python3.11 /srv/app.py") == [
        PYTHON,
        cached("encodings/", "__init__"),
        "srv/app.py",
        "srv/near.py",
        cached("", "c"),
        f"{LIB}/lib-dynload/_c.cpython-311.so",
        "usr/lib/libx.so",
        cached("a/", "__init__"),
        cached("a/", "first"),
        cached("a/deep/", "__init__"),
        cached("a/deep/", "more"),
        cached("a/", "b"),
    ]
    assert cached("", "unused") in closure(tmp_path, files, words="python3.11 -m unused")
    assert closure(tmp_path, files, words="python3.11 -m c")[-3] == cached("", "c")


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.lists(st.sampled_from("abcdefgh"), max_size=5))
)
def test_all_that_can_be_reached_and_nothing_else(
    tmp_path: Path, imports: dict[str, list[str]]
) -> None:
    files = {PYTHON: elf(), "srv/app.py": b"import a"}
    for name, names in imports.items():
        source = "".join(f"import {each}\n" for each in names)
        files |= modules(**{name: source or "pass"})
    reached: set[str] = set()
    todo = ["a"]
    while todo:
        name = todo.pop()
        if name in imports and name not in reached:
            reached.add(name)
            todo += imports[name]
    found = closure(tmp_path, files, words="python3.11 /srv/app.py")
    assert len(set(found)) == len(found)
    stems = {name.rpartition("/")[2].partition(".")[0] for name in found if "pyc" in name}
    assert stems == reached


@pytest.mark.parametrize("words", ["python3.11", "python3.11 /srv", "python3.11 /none -m", "/"])
def test_commands_that_name_little(tmp_path: Path, words: str) -> None:
    files = {PYTHON: elf(), "srv/x": b"1"}
    assert set(closure(tmp_path, files, words=words)) <= {PYTHON}
