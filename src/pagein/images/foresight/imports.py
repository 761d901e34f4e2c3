"""What Python source imports while it is itself imported: not what its functions import. Pure.

Found by how lines look, in little time: a layer has thousands of modules, and it is a hint.
"""

from __future__ import annotations

import re
from typing import Final

MOST: Final = 256
"""Names of a file."""

_LINES = 400  # that are looked back for what an indented statement stands in
_LIST = 4096  # bytes of a list in parentheses
_NAME = re.compile(rb"\.*[A-Za-z_][A-Za-z0-9_.]*|\.+")
_COMMENT = re.compile(rb"#[^\n]*")
_NEVER = (b"def ", b"async ", b"class ", b"except", b"lambda")
_HARDLY = (b"__name__", b"TYPE_CHECKING")


def imported(source: bytes) -> tuple[bytes, ...]:
    """Modules in the order of the statements, relative ones with their dots.

    Of `from a import b`, `a` and `a.b`: which of the two are modules shows when they are looked up.
    """
    names: dict[bytes, None] = {}
    at = source.find(b"import ")
    while at >= 0 and len(names) < MOST:
        start = source.rfind(b"\n", 0, at) + 1
        stop = source.find(b"\n", at)
        line = source[start : stop if stop >= 0 else len(source)]
        statement = line.lstrip(b" \t")
        if statement.startswith((b"import ", b"from ")):
            indent = len(line) - len(statement)
            if not indent or _runs(source, start, indent):
                names.update(dict.fromkeys(_of(source, start + indent, statement)))
        at = source.find(b"import ", max(at + 7, start + len(line)))
    return tuple(names)[:MOST]


def _of(source: bytes, start: int, statement: bytes) -> list[bytes]:
    """The names of one statement, which begins at `start`."""
    if statement.startswith(b"import "):
        return _list(statement[7:])
    module, _, rest = statement[5:].partition(b" import ")
    module = module.strip()
    if _NAME.fullmatch(module) is None:
        return []
    if rest.lstrip().startswith(b"("):
        end = source.find(b")", start, start + _LIST)
        rest = _COMMENT.sub(b"", source[start : max(end, start)].partition(b"(")[2])
    dot = b"" if module.endswith(b".") else b"."
    # Modules are not called LikeThis, and lists of classes are long.
    found = [module + dot + name for name in _list(rest) if not name[:1].isupper()]
    return found if not module.strip(b".") else [module, *found]


def _list(text: bytes) -> list[bytes]:
    """Names with commas between, without what they are to be called."""
    words = (part.split(None, 1)[:1] for part in text.partition(b"#")[0].split(b","))
    return [word[0] for word in words if word and _NAME.fullmatch(word[0].rstrip(b"\\;"))]


def _runs(source: bytes, start: int, indent: int) -> bool:
    """Whether the statement on the line at `start` is reached when the module is imported."""
    for _ in range(_LINES):
        if start <= 0:
            return False
        end, start = start - 1, source.rfind(b"\n", 0, start - 1) + 1
        line = source[start:end]
        text = line.lstrip(b" \t")
        depth = len(line) - len(text)
        if not text or depth >= indent or text.startswith((b"#", b")", b"]", b"}")):
            continue
        if text.startswith(_NEVER) or any(word in text for word in _HARDLY):
            return False
        if not depth:
            return text.rstrip().endswith(b":") or b":" in text
        indent = depth
    return False
