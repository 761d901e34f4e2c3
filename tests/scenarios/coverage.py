"""Which fact is held by which scenario: writes docs/conformance.md.

python -m tests.scenarios.coverage
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.scenarios.differences import DIFFERENCES, rows
from tests.scenarios.facts import Fact, facts
from tests.scenarios.registry import scenarios

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"
_SECTIONS = {
    "1": "The device node",
    "2": "Commands",
    "3": "read()",
    "4": "Requests",
    "5": "poll()",
    "6": "copen",
    "7": "The life of an object",
    "8": "The anonymous fd",
    "9": "READ requests",
    "10": "restore",
    "11": "Space and culling",
    "12": "On the disk",
    "13": "EROFS",
    "14": "What was wrong in the kernel once",
    "original": "The original mode, with a netfs that fetches by itself",
}
_HEAD = (
    "# Conformance\n\n"
    "What the kernel's CacheFiles does, fact by fact, and whether pagein's kernel"
    " half does the same.\n"
    "Each fact is held by scenarios ([tests/scenarios/](../tests/scenarios/README.md)): programs"
    " that run on both. Their transcripts are recorded on Linux 6.12 and compared line by line;"
    " `scripts/test` holds pagein against the recordings, `scripts/test --real-kernel` the kernel."
    "\n\n"
    "Made by `python -m tests.scenarios.coverage`. {held} facts are held on both: {same} are the"
    " same, {different} differ on purpose; {na} do not apply.\n"
)
_TABLE = ["| the kernel | scenario | pagein |", "|---|---|---|"]


def held_by() -> dict[str, list[str]]:
    """Fact -> names of the scenarios that hold it."""
    found: dict[str, list[str]] = {}
    for scenario in scenarios().values():
        for fact in scenario.facts:
            found.setdefault(fact, []).append(scenario.name)
    return found


def different() -> dict[str, set[str]]:
    """Fact -> rows of the table of differences that concern it."""
    found: dict[str, set[str]] = {}
    for entry in DIFFERENCES:
        for fact in entry.facts:
            found.setdefault(fact, set()).add(entry.row)
    return found


def page() -> str:
    """The text of docs/conformance.md."""
    every, held, differing = facts(), held_by(), different()
    na = sum(bool(fact.not_applicable) for fact in every.values())
    held_count = sum(fact in every for fact in held)
    numbers = {"held": held_count, "same": held_count - len(differing), "na": na}
    lines = [_HEAD.format(**numbers, different=len(differing))]
    for section, title in _SECTIONS.items():
        mine = [fact for fact in every.values() if _section(fact) == section]
        if mine:
            lines += [f"## {section}. {title}", "", *_TABLE]
            lines += _rows(mine, held, differing)
            lines.append("")
    return "\n".join(lines)


def _section(fact: Fact) -> str:
    return fact.id.split()[0].split(".")[0]


def _rows(
    mine: list[Fact], held: dict[str, list[str]], differing: dict[str, set[str]]
) -> Iterator[str]:
    table = rows()
    for fact in mine:
        if fact.not_applicable:
            result = f"not applicable: {fact.not_applicable}"
        elif fact.id in differing:
            result = "; ".join(_difference(row, table) for row in sorted(differing[fact.id]))
        else:
            result = "same"
        names = ", ".join(f"`{name}`" for name in held.get(fact.id, []))
        yield f"| {_cell(fact.text)} | {names} | {_cell(result)} |"


def _difference(row: str, table: dict[str, tuple[str, str]]) -> str:
    pagein, reason = table[row]
    return f"differs: {pagein}; because {reason}" if reason else f"differs: {pagein}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page())
