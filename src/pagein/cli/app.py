"""What the `pagein` command is made of, for typer.

Each command is a module that is loaded when it is asked for: loading all would take as long as some
commands do.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib import import_module

import typer

from pagein.cli.settings import CacheDir, HostsDir, Settings, StateDir


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
