"""The facts that scenarios hold, read from facts.toml."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

PATH = Path(__file__).with_name("facts.toml")


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that the real kernel does; `id` is "SECTION NAME"."""

    id: str
    text: str
    not_applicable: str = ""
    """Why our half cannot be held to it; then no scenario does."""


def facts() -> dict[str, Fact]:
    """All facts by id, in the order of the file."""
    found = {}
    for section, entries in tomllib.loads(PATH.read_text()).items():
        for name, value in entries.items():
            number = f"{section} {name}"
            if isinstance(value, str):
                found[number] = Fact(number, value)
            else:
                found[number] = Fact(number, value["text"], value["na"])
    return found
