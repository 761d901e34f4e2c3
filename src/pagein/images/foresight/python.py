"""What Python code imports, as far as its names show: scripts, and compiled modules (.pyc). Pure.

Compiled code is not unmarshalled: strings in it that are names are enough. Which of those are
modules shows when they are looked for (`modules`).
"""

from __future__ import annotations

import re
from typing import NamedTuple

_HEADER = 16  # bytes of a .pyc (PEP 552)
_MAGIC_END = b"\r\n"
_TEXT = re.compile(rb"[\xdazZ\xfa](.)(/[^\0]{1,250}\.py)", re.DOTALL)
"""A short string of ASCII (Python/marshal.c) that is the path of a source file."""
_NAME = re.compile(rb"[\xda\xfaZz]([\x01-\x60])([A-Za-z_][A-Za-z0-9_.]*)")
"""Such a one, interned or not, that is a name."""
_IMPORT = re.compile(rb"^[ \t]*(?:import|from)[ \t]+([^#\r\n]+)", re.MULTILINE)
_MODULE = re.compile(rb"[A-Za-z_][A-Za-z0-9_.]*")
_FIRST = re.compile(rb"[ \t]*([A-Za-z_.][A-Za-z0-9_.]*)")


class Names(NamedTuple):
    """Names that may be modules', and the directory of the source of what names them, or b""."""

    directory: bytes
    names: tuple[bytes, ...]


def is_compiled(head: bytes) -> bool:
    """Whether a file that begins so may be a .pyc."""
    return len(head) >= 4 and head[2:4] == _MAGIC_END


def of_compiled(data: bytes) -> Names:
    """Of the beginning of a .pyc, or all of it."""
    body = data[_HEADER:]
    directory = b""
    for found in _TEXT.finditer(body):
        path = found[2][: found[1][0]]
        if path.endswith(b".py"):
            directory = path.rpartition(b"/")[0]
            break
    names = {
        found[2][: found[1][0]]: None
        for found in _NAME.finditer(body)
        if len(found[2]) >= found[1][0]
    }
    return Names(directory, tuple(name for name in names if not name.endswith(b".")))


def of_script(data: bytes) -> tuple[bytes, ...]:
    """What the import statements of a source file name."""
    names: dict[bytes, None] = {}
    for statement in _IMPORT.findall(data):
        for part in statement.partition(b" import ")[0].split(b","):
            if (found := _FIRST.match(part)) is not None:
                names[found[1].lstrip(b".")] = None
    return tuple(name for name in names if _MODULE.fullmatch(name))
