"""The halves share the protocol, and nothing else.

ARCHITECTURE.md, "Two halves": what is root never pulls in what parses network data, and the other
way round. What both may use (`SHARED`) is free of I/O, so that it can be trusted by both.

The rule is stated as what is allowed, so that it holds through any chain of imports and for modules
that do not exist yet. Imports inside functions and under TYPE_CHECKING count as well.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCE = Path(__file__).parent.parent / "src"

SHARED = frozenset({"protocol", "rangeset", "erofs"})
KERNEL_HALF = frozenset({"cachefiles", "fscache", "netfs", "fuse", "mounts", "kernelhalf"})
USER_HALF = frozenset({"daemon", "origins", "images"})
# The command line's line to each half, and how each process begins: nothing of either half.
CONTROL = frozenset({"control", "controlserver", "standby"})

# What a module of the first part of the name may import of pagein; modules that are not listed
# (keeper, library, cli, testing ...) stand above both halves and may import everything.
ALLOWED: dict[str, frozenset[str]] = {
    "protocol": frozenset({"protocol"}),
    "rangeset": frozenset(),
    "erofs": frozenset({"erofs"}),
    "control": frozenset(),
    "controlserver": frozenset({"control"}),
    "standby": frozenset(),
    **dict.fromkeys(KERNEL_HALF, KERNEL_HALF | SHARED | CONTROL),
    **dict.fromkeys(USER_HALF, USER_HALF | SHARED | CONTROL),
}

# "No I/O" as far as imports can say it: these modules of the standard library open nothing.
PURE = frozenset(
    {
        "__future__",
        "abc",
        "array",
        "binascii",
        "bisect",
        "collections",
        "contextlib",
        "dataclasses",
        "enum",
        "errno",
        "functools",
        "hashlib",
        "itertools",
        "math",
        "operator",
        "re",
        "stat",
        "string",
        "struct",
        "sys",
        "types",
        "typing",
    }
)
PURE_OS = frozenset({"fsdecode", "fsencode", "major", "makedev", "minor", "strerror"})
IMPURE_CALLS = frozenset({"open", "input", "exec", "eval", "__import__", "breakpoint"})


class Import(NamedTuple):
    """One imported module, by its absolute name, and the line that says so."""

    module: str
    line: int


def module_name(file: Path, root: Path) -> str:
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, module: str, *, is_package: bool) -> Iterator[Import]:
    """Every import anywhere in `tree`; `from a import b` yields a.b, which may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                up = node.level - is_package
                base = ".".join([*parents[: len(parents) - up], *filter(None, [base])])
            yield from (Import(f"{base}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            # importlib.import_module("pagein.x"), __import__("pagein.x")
            name = ast.unparse(node.func).rpartition(".")[2]
            first = node.args[0]
            if name in {"import_module", "__import__"} and isinstance(first, ast.Constant):
                yield Import(str(first.value), node.lineno)


def part(module: str) -> str:
    """`pagein.daemon.fill` is of the part `daemon`; pagein itself is of the part ``""``."""
    return [*module.split("."), ""][1]


def forbidden_imports(root: Path) -> list[str]:
    """One line for each import below `root`/pagein that the rule does not allow."""
    wrong = []
    for file in sorted((root / "pagein").rglob("*.py")):
        module = module_name(file, root)
        allowed = ALLOWED.get(part(module))
        if allowed is None:
            continue
        found = imports(ast.parse(file.read_bytes()), module, is_package=file.stem == "__init__")
        wrong += [
            f"{file.relative_to(root)}:{line}: {module} imports {imported}"
            for imported, line in found
            if imported.split(".")[0] == "pagein" and part(imported) not in allowed
        ]
    return wrong


def impure(root: Path) -> list[str]:
    """One line for each way out of the process in the shared parts below `root`/pagein."""
    wrong = []
    for file in sorted((root / "pagein").rglob("*.py")):
        module = module_name(file, root)
        if part(module) not in SHARED:
            continue
        tree = ast.parse(file.read_bytes())
        lines = [
            (line, f"imports {name}")
            for name, line in imports(tree, module, is_package=file.stem == "__init__")
            if name.split(".")[0] not in PURE | {"pagein"} and name != "os"
            if name.removeprefix("os.") not in PURE_OS
        ]
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and (call := ast.unparse(node.func)) in IMPURE_CALLS:
                lines.append((node.lineno, f"calls {call}"))
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "os":
                lines += [(node.lineno, f"uses os.{node.attr}")] * (node.attr not in PURE_OS)
        wrong += [f"{file.relative_to(root)}:{line}: {module} {what}" for line, what in lines]
    return wrong


# ---- pagein keeps the rule ----------------------------------------------------------------------


def test_the_halves_share_only_the_protocol() -> None:
    assert forbidden_imports(SOURCE) == []


def test_what_both_halves_share_does_no_io() -> None:
    assert impure(SOURCE) == []


@pytest.mark.parametrize("half", [KERNEL_HALF, USER_HALF, SHARED], ids=["kernel", "user", "shared"])
def test_loading_a_half_loads_nothing_of_the_other(half: frozenset[str]) -> None:
    """What the parser cannot see: pagein/__init__.py runs before any module of either half."""
    modules = [
        name
        for file in sorted((SOURCE / "pagein").rglob("*.py"))
        if part(name := module_name(file, SOURCE)) in half and file.stem != "__main__"
    ]
    assert modules, "the parts of this half have other names now"
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(*(name for name in sys.modules if name.startswith('pagein.')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *modules],
        stdout=subprocess.PIPE,
        text=True,
        timeout=200,
        check=True,
    )
    parts = {part(name) for name in done.stdout.split()}
    assert parts <= half | SHARED | CONTROL, sorted(parts - half - SHARED)


# ---- and the rule can be broken -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("cachefiles/cache.py", "import pagein.daemon.fill"),
        ("cachefiles/cache.py", "from pagein.daemon import fill"),
        ("cachefiles/cache.py", "from pagein import daemon"),
        ("cachefiles/cache.py", "from ..origins.base import Origin"),
        ("cachefiles/__init__.py", "from ..origins.base import Origin"),
        ("cachefiles/__init__.py", "from .. import images"),
        ("cachefiles/deep/er.py", "from ...daemon.loop import Daemon"),
        ("fscache.py", "from .daemon import fill"),
        ("fuse/abi.py", "def f():\n    import pagein.images.index"),
        ("mounts/erofs.py", "if TYPE_CHECKING:\n    from pagein.origins.base import Origin"),
        ("mounts/erofs.py", "importlib.import_module('pagein.daemon')"),
        ("kernelhalf.py", "from pagein.library import Library"),
        ("daemon/fill.py", "from pagein.cachefiles.presence import probe"),
        ("origins/http.py", "from pagein.testing.webserver import WebServer"),
        ("images/index.py", "from pagein.fuse.abi import Init"),
        ("protocol/states.py", "from pagein.rangeset import RangeSet"),
        ("protocol/states.py", "import pagein"),
        ("rangeset.py", "from pagein.protocol.messages import PAGE_SIZE"),
        ("erofs/writer.py", "from pagein.rangeset import RangeSet"),
        ("erofs/reader.py", "from pagein.origins.base import Origin"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path: Path, file: str, line: str) -> None:
    write_module(tmp_path, file, line)
    (found,) = forbidden_imports(tmp_path)
    assert found.startswith(f"pagein/{file}:")


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("cachefiles/cache.py", "from pagein.protocol import messages"),
        ("cachefiles/cache.py", "from .object import CachefilesObject"),
        ("cachefiles/__init__.py", "from .object import CachefilesObject"),
        ("mounts/blobfs.py", "from ..fuse import abi"),
        ("daemon/fill.py", "from pagein.rangeset import RangeSet"),
        ("daemon/loop.py", "from ..origins.base import Origin"),
        ("images/index.py", "from pagein.erofs.writer import write"),
        ("mounts/erofs.py", "from pagein.erofs.superblock import read_superblock"),
        ("protocol/commands.py", "from .messages import PAGE_SIZE"),
        ("keeper.py", "from pagein import daemon, kernelhalf"),
        ("cachefiles/cache.py", "import daemon"),
    ],
)
def test_an_allowed_import_is_not(tmp_path: Path, file: str, line: str) -> None:
    write_module(tmp_path, file, line)
    assert forbidden_imports(tmp_path) == []


@pytest.mark.parametrize(
    "line",
    [
        "import socket",
        "from os import read",
        "import os\nos.write(1, b'')",
        "def f():\n    open('/dev/cachefiles')",
        "import asyncio",
        "from pathlib import Path",
    ],
)
def test_io_in_the_shared_parts_is_found(tmp_path: Path, line: str) -> None:
    write_module(tmp_path, "protocol/messages.py", line)
    assert impure(tmp_path)
    write_module(tmp_path, "protocol/messages.py", "import os\nos.strerror(5)")
    assert impure(tmp_path) == []


def write_module(root: Path, file: str, text: str) -> None:
    path = root / "pagein" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")
