"""The scenarios there are, and the facts they hold."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tests.scenarios.world import World

Program: TypeAlias = Callable[[World], None]
HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Scenario:
    """A program, and the ids (see facts.toml) of the facts that its transcript shows."""

    name: str
    facts: tuple[str, ...]
    program: Program

    @property
    def path(self) -> Path:
        """Its transcript as the real kernel made it."""
        return HERE / "transcripts" / f"{self.name}.txt"

    @property
    def title(self) -> str:
        """The first line of its docstring."""
        return (self.program.__doc__ or "").strip().split("\n")[0]


_FOUND: dict[str, Scenario] = {}


def scenario(*facts: str) -> Callable[[Program], Program]:
    """Make a function a scenario, under its own name, that holds these facts."""

    def register(program: Program) -> Program:
        name = program.__name__
        if name in _FOUND or not facts:
            raise ValueError(f"scenario {name}: there is one of that name, or it holds no fact")
        _FOUND[name] = Scenario(name, facts, program)
        return program

    return register


def scenarios() -> dict[str, Scenario]:
    """All scenarios of the files `section_*.py`, by name."""
    for module in pkgutil.iter_modules([str(HERE)]):
        if module.name.startswith("section_"):
            importlib.import_module(f"tests.scenarios.{module.name}")
    return dict(sorted(_FOUND.items()))
