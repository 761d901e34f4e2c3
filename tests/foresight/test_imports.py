"""What a Python source imports while it is imported."""

import ast
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagein.images.foresight.imports import MOST, imported


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        (b"import os, re as r, a.b\n", [b"os", b"re", b"a.b"]),
        (
            b"from x import y, Z\nfrom . import a\nfrom ..b import c as d",
            [b"x", b"x.y", b".a", b"..b", b"..b.c"],
        ),
        (b"from . import (  # these\n    a,\n    b as c,  # and that\n)\n", [b".a", b".b"]),
        (b"from x import *\n", [b"x"]),
        (b"try:\n    import fast\nexcept ImportError:\n    import slow\n", [b"fast"]),
        (b"if a:\n    if b:\n\n        # why\n        import c\n", [b"c"]),
        (b"def f():\n    import a\nclass C:\n    import b\nasync def g(): import c\n", []),
        (b"if x:\n    def f():\n        import a\n    import b\n", [b"b"]),
        (b"if TYPE_CHECKING:\n    import a\nif __name__ == '__main__':\n    import b\n", []),
        (b"x = 'import a'\n# import b\nimportant = reimport = 1\n", []),
        (b"    import a\n", []),
        (b"import a", [b"a"]),
        (b"import ", []),
        (b"from a import (b", [b"a"]),
    ],
)
def test_statements(source: bytes, wanted: list[bytes]) -> None:
    assert list(imported(source)) == wanted


def test_there_is_a_limit() -> None:
    source = b"".join(b"import a%d\n" % number for number in range(2 * MOST))
    assert len(imported(source)) == MOST


@given(
    st.lists(
        st.sampled_from(
            [
                b"import ",
                b"from ",
                b"a",
                b".",
                b"(",
                b")",
                b"\n",
                b"  ",
                b",",
                b"def f():",
                b"#",
                b":",
                b"\\",
            ]
        )
    )
)
def test_whatever_it_is_it_ends(parts: list[bytes]) -> None:
    for name in imported(b"".join(parts)):
        assert name
        assert not set(name) & set(b" \n\0,()")


def test_what_a_parser_finds_at_the_top_of_the_standard_library_is_found() -> None:
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.glob("*.py"))[:60]:
        source = path.read_bytes()
        wanted = set()
        for statement in ast.parse(source).body:
            if isinstance(statement, ast.Import):
                wanted |= {each.name for each in statement.names}
            elif isinstance(statement, ast.ImportFrom) and statement.module:
                wanted.add("." * statement.level + statement.module)
        assert {name.encode() for name in wanted} <= set(imported(source)), path.name
