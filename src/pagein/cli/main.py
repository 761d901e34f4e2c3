"""The `pagein` command.

Each command is a module that is loaded when it is asked for: loading all would take as long as some
commands do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

import typer

from pagein.cli.settings import CacheDir, HostsDir, Settings, StateDir

COMMANDS = (
    "mount",
    "run",
    "umount",
    "status",
    "top",
    "ls",
    "cat",
    "stat",
    "du",
    "extract",
    "images",
    "index",
    "trace",
    "seekable",
    "cull",
    "daemon",
    "device",
    "exec-daemon",
    "events",
    "debug",
)
"""In the order of `--help`. Each is a function, or an `app` of several, in a module of its name."""


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"pagein {version('pagein')}")
        raise typer.Exit


def _options(
    ctx: typer.Context,
    state_dir: StateDir = None,
    cache: CacheDir = None,
    hosts_dir: HostsDir = None,
    _: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Say the version."
    ),
) -> None:
    settings = ctx.obj = Settings().given(state_dir, cache, hosts_dir)
    if os.path.isdir(settings.path("containers")) and os.listdir(settings.path("containers")):
        from pagein.cli.places import sweep

        sweep(settings)


def app_of(commands: Iterable[str]) -> typer.Typer:
    """The application, with these commands only."""
    made = typer.Typer(
        name="pagein",
        help="Files of remote images, fetched when they are read.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback()(_options)
    for name in commands:
        module = import_module(f"pagein.cli.{name.replace('-', '')}")
        if hasattr(module, "app"):
            made.add_typer(module.app, name=name)
        else:
            context = getattr(module, "CONTEXT", None)
            made.command(name, context_settings=context)(getattr(module, name.replace("-", "_")))
    return made


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return app_of(COMMANDS)


def wanted(words: Sequence[str]) -> Sequence[str]:
    """The command that a command line names; all, where that is not plain to see."""
    at = 0
    while at < len(words) and words[at] in ("--state-dir", "--cache"):
        at += 2
    return words[at : at + 1] if words[at : at + 1] and words[at] in COMMANDS else COMMANDS


def main() -> None:
    """Entry point of the `pagein` script."""
    try:
        app_of(wanted(sys.argv[1:]))()
    except BrokenPipeError:
        os._exit(1)  # whoever read our output has gone, and there is nobody to tell


if __name__ == "__main__":
    main()
