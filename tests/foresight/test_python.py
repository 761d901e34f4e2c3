"""Names in compiled Python code and in scripts, and the files of the modules they are."""

import importlib.util
import marshal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.traces.rig import IndexedLayer

from pagein.images.foresight import python
from pagein.images.foresight.modules import Modules
from pagein.images.foresight.tree import Tree
from pagein.images.layers.index import Index

SOURCE = """
'''Words of a text, such as fractions, are no names.'''
import decimal, queue as other
from xml.dom import minidom
from . import sibling
def later():
    from .cousin import thing
"""
LIB = "usr/lib/python3.11"


def compiled(source: str, path: str) -> bytes:
    code = compile(source, path, "exec")
    return importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(code)


def test_compiled_code_names_what_it_imports_and_where_it_is_from() -> None:
    data = compiled(SOURCE, "/usr/lib/python3.11/pack/mod.py")
    assert python.is_compiled(data)
    found = python.of_compiled(data)
    assert found.directory == b"/usr/lib/python3.11/pack"
    assert {b"decimal", b"queue", b"xml.dom", b"minidom", b"sibling", b"cousin"} <= {*found.names}
    assert b"fractions" not in found.names


def test_a_script_names_what_it_imports() -> None:
    assert python.of_script(SOURCE.encode()) == (b"decimal", b"queue", b"xml.dom", b"cousin")


@given(st.binary(max_size=2000))
def test_any_bytes_are_looked_into(data: bytes) -> None:
    for found in (python.of_compiled(data), python.of_compiled(b"16 bytes of head" + data)):
        assert all(0 < len(name) <= 0x60 for name in found.names)
    python.of_script(data)


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> list[IndexedLayer]:
    directory = tmp_path_factory.mktemp("layers")
    lower = [
        *("re/__init__.py", "re/__pycache__/__init__.cpython-311.pyc", "re/parser.py"),
        *("plain.py", "__pycache__/plain.cpython-311.pyc", "__pycache__/plain.cpython-39.pyc"),
        *("lib-dynload/_ssl.cpython-311-x86_64-linux-gnu.so", "os.py", "data/file.txt"),
    ]
    upper = ["usr/lib/python3/dist-packages/third/__init__.py", f"{LIB}/plain.py", "srv/mine.py"]
    return [
        IndexedLayer({f"{LIB}/{name}": name.encode() for name in lower}, directory / "0"),
        IndexedLayer({name: name.encode() for name in upper}, directory / "1"),
    ]


@pytest.mark.parametrize(
    ("name", "near", "wanted"),
    [
        (b"plain", b"", ["__pycache__/plain.cpython-311.pyc"]),
        (b"re", b"", ["re/__pycache__/__init__.cpython-311.pyc"]),
        (b"re.parser", b"", ["re/__pycache__/__init__.cpython-311.pyc", "re/parser.py"]),
        (b"parser", b"/usr/lib/python3.11/re", ["re/parser.py"]),
        (b"_ssl", b"", ["lib-dynload/_ssl.cpython-311-x86_64-linux-gnu.so"]),
        (b"third", b"", ["usr/lib/python3/dist-packages/third/__init__.py"]),
        (b"mine", b"/srv", ["srv/mine.py"]),
        (b"os", b"", []),  # is in the program
        (b"data", b"", []),  # no package
        (b"nothing.at.all", b"/nowhere", []),
    ],
)
def test_modules_are_found_where_an_interpreter_finds_them(
    layers: list[IndexedLayer], name: bytes, near: bytes, wanted: list[str]
) -> None:
    with Index(layers[0].path) as lower, Index(layers[1].path) as upper:
        found = Modules(Tree([lower, upper]), b"/usr/bin/python3.11").find(name, near)
        content = [
            layers[each.place.layer].blob[each.place.start :][: each.place.length].decode()
            for each in found
            if each.native == (name == b"_ssl")
        ]
    assert content == wanted


@pytest.mark.parametrize("program", [b"/usr/bin/python2.7", b"/usr/bin/perl", b"/bin/python3"])
def test_of_other_programs_no_modules_are_known(layers: list[IndexedLayer], program: bytes) -> None:
    with Index(layers[0].path) as index, pytest.raises(ValueError, match="not an interpreter"):
        Modules(Tree([index]), program)
