"""How a command fails: one clear line on standard error, exit code 1, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer


def fail(message: str) -> NoReturn:
    """Say what is wrong and end the command."""
    print(f"pagein: {message}", file=sys.stderr)
    raise typer.Exit(1)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an OSError that reaches the user into its one line."""
    from pagein.control import message_of

    try:
        yield
    except BrokenPipeError:
        raise  # `main` knows what to do
    except OSError as problem:
        fail(message_of(problem))
