"""Count the mutants that the tests kill.

    python -m tests.mutants [--jobs N] [--least PERCENT] [MODULE ...]

Ends with 0 when at least 90 % of each module's are killed. Those that survive are printed.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
from tests.mutants.mutate import Mutant, mutants

SOURCE = Path(__file__).resolve().parents[2] / "src"
TESTS: dict[str, tuple[str, ...]] = {
    "pagein.rangeset": ("tests/test_rangeset.py",),
    "pagein.protocol.messages": (
        "tests/protocol/test_messages.py",
        "tests/protocol/test_uapi_header.py",
    ),
    "pagein.protocol.commands": ("tests/protocol/test_commands.py",),
    "pagein.protocol.numbers": ("tests/protocol/test_numbers.py",),
    "pagein.protocol.serving": ("tests/protocol/test_serving.py",),
    "pagein.protocol.space": ("tests/protocol/test_space.py",),
    "pagein.protocol.states": (
        "tests/protocol/test_states.py",
        "tests/cachefiles/test_state_tables.py",
    ),
}
LIMIT = 60
"""Seconds of one mutant; one that never ends has been noticed."""


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Has the altered tree in place of the module's source."""

    def __init__(self, name: str, tree: ast.Module) -> None:
        self._name, self._tree = name, tree

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(name, self) if name == self._name else None

    def exec_module(self, module: ModuleType) -> None:
        module.__file__ = str(source_of(self._name))
        exec(compile(self._tree, module.__file__, "exec"), module.__dict__)


def source_of(name: str) -> Path:
    """The file of a module."""
    return SOURCE.joinpath(*name.split(".")).with_suffix(".py")


def killed(name: str, mutant: Mutant | None) -> bool:
    """Whether the tests of a module fail with its mutant in its place; in a fork."""
    child = os.fork()
    if child == 0:
        signal.alarm(LIMIT)  # the default: it ends us
        code = 1
        with contextlib.suppress(BaseException):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            if mutant is not None:
                sys.meta_path.insert(0, _Finder(name, mutant.tree))
            quiet = [
                "-x",
                "-q",
                "--tb=no",
                "--assert=plain",
                "-p",
                "no:cacheprovider",
                "--hypothesis-seed=0",
            ]
            code = int(pytest.main([*quiet, *TESTS[name]]))
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0


def main() -> int:
    """Count; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--least", type=float, default=90.0, metavar="PERCENT")
    parser.add_argument("modules", nargs="*", metavar="MODULE", default=list(TESTS))
    options = parser.parse_args()
    started, all_of_them, dead = time.monotonic(), 0, 0
    worst = 100.0
    for name in options.modules:
        if killed(name, None):
            print(f"the tests of {name} fail without any change", file=sys.stderr)
            return 1
        count, survivors = _count(name, options.jobs)
        share = 100 * (count - len(survivors)) / count
        worst = min(worst, share)
        all_of_them, dead = all_of_them + count, dead + count - len(survivors)
        for mutant in survivors:
            print(f"  {name}:{mutant.line}: {mutant.what}")
        print(f"{name:28} {count - len(survivors)} of {count} killed: {share:.1f} %", flush=True)
    seconds = time.monotonic() - started
    print(f"{dead} of {all_of_them} killed: {100 * dead / all_of_them:.1f} % in {seconds:.0f} s")
    return 0 if worst >= options.least else 1


def _count(name: str, jobs: int) -> tuple[int, list[Mutant]]:
    tried = list(mutants(source_of(name).read_text()))
    # Processes, since a fork of one with threads may find their locks taken.
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        verdicts = pool.starmap(killed, [(name, mutant) for mutant in tried], chunksize=1)
    return len(tried), [each for each, dead in zip(tried, verdicts, strict=True) if not dead]


if __name__ == "__main__":
    sys.exit(main())
