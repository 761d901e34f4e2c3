"""The tables of `states` as diagrams and tables, for docs/states.md.

python -m pagein.protocol.diagrams
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from pagein.protocol.messages import Opcode
from pagein.protocol.states import (
    CACHE_TABLE,
    COPEN_TABLE,
    OBJECT_TABLE,
    REQUEST_TABLE,
    WAIT_TABLE,
    CacheState,
    End,
    ObjectState,
    RequestState,
    Wait,
)


def object_diagram() -> str:
    """Return `OBJECT_TABLE` as a mermaid diagram."""
    return _diagram(
        ObjectState.CLOSE,
        ((before, event, after) for (before, event), after in OBJECT_TABLE.items()),
    )


def request_diagram(opcode: Opcode) -> str:
    """Return the part of `REQUEST_TABLE` that is about one opcode as a mermaid diagram."""
    return _diagram(
        RequestState.NEW,
        (
            (before, event, after)
            for (code, before, event), after in REQUEST_TABLE.items()
            if code is opcode
        ),
    )


def cache_diagram() -> str:
    """Return `CACHE_TABLE` as a mermaid diagram."""
    return _diagram(
        CacheState.UNBOUND,
        ((before, event, after) for (before, event), after in CACHE_TABLE.items()),
    )


def copen_table() -> str:
    """Return `COPEN_TABLE` in Markdown."""
    rows = [["copen tells", "its anonymous fd is", "the write ends", "the OPEN ends"]]
    for (told, live), ends in COPEN_TABLE.items():
        rows.append([told.value, "open" if live else "closed", *(end or "well" for end in ends)])
    return _table(rows)


def wait_table() -> str:
    """Return `WAIT_TABLE` in Markdown."""
    rows = [["who waits", *(end.value for end in End)]]
    rows += [[wait.value, *(WAIT_TABLE.get((wait, end), "") for end in End)] for wait in Wait]
    return _table(rows)


def _table(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def _diagram(initial: Enum, transitions: Iterable[tuple[Enum, Enum, Enum]]) -> str:
    arrows = [
        f"    {before.name} --> {after.name}: {event.name}" for before, event, after in transitions
    ]
    return "\n".join(["stateDiagram-v2", f"    [*] --> {initial.name}", *arrows])


def _main() -> None:
    titles = {"object": object_diagram()}
    titles |= {f"{opcode.name} request": request_diagram(opcode) for opcode in Opcode}
    titles["cache"] = cache_diagram()
    for title, diagram in titles.items():
        print(f"### {title}\n\n```mermaid\n{diagram}\n```\n")
    for title, table in {"copen": copen_table(), "waits": wait_table()}.items():
        print(f"### {title}\n\n{table}\n")


if __name__ == "__main__":
    _main()
