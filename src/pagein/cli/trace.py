"""`pagein trace record DIR`, `pagein trace record --run IMAGE ...`, `pagein trace show FILE`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from pagein.cli.errors import one_line_errors
from pagein.cli.settings import CacheDir, StateDir, settings_of

app = typer.Typer(
    help="What an image's start reads: recorded once, then fetched ahead of its readers.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


# What stands after the first argument is for `pagein run`.
@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def record(
    ctx: typer.Context,
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="DIR | --run [OPTIONS] IMAGE [COMMAND ...]",
            help="Where an image is mounted; or what `pagein run` is to run.",
        ),
    ],
    run: Annotated[
        bool, typer.Option("--run", help="Run a container, from nothing, and record that.")
    ] = False,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="Where the trace goes.")
    ] = "trace.jsonl",
    seconds: Annotated[
        float | None,
        typer.Option("--for", metavar="SECONDS", min=0.1, help="End by itself after that."),
    ] = None,
    state_dir: StateDir = None,
    cache: CacheDir = None,
) -> None:
    """Note what is read of an image, in which order: until Ctrl-C, or the container's end.

    Of a mount nothing is seen of what is in memory already, so begin with a fresh one. A container
    is run with a cache of its own, which is empty and thrown away; its exit status is passed on.
    """
    from pagein.cli.recording import record_mount, record_run, save

    settings = settings_of(ctx, state_dir, cache)
    status = 0
    with one_line_errors():
        if run:
            status, recorded = record_run(what, seconds)
        else:
            if len(what) != 1:
                raise typer.BadParameter("name one directory, or use --run")
            recorded = record_mount(settings, os.path.realpath(what[0]), seconds)
        save(recorded, output)
    raise typer.Exit(status)


@app.command()
def show(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A trace.")],
) -> None:
    """Show a trace: what is read when, layer by layer and file by file."""
    from pagein.cli.tracefile import load
    from pagein.cli.traceview import draw

    with one_line_errors():
        trace = load(file)
    draw(trace)
