"""The `pagein` command."""

from __future__ import annotations

import os

import typer

from pagein.cli import (
    cat,
    cull,
    daemon,
    device,
    du,
    extract,
    images,
    index,
    ls,
    mount,
    run,
    stat,
    status,
    umount,
)
from pagein.cli.settings import CacheDir, Settings, StateDir

app = typer.Typer(
    name="pagein",
    help="Files of remote images, fetched when they are read.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"pagein {version('pagein')}")
        raise typer.Exit


@app.callback()
def _options(
    ctx: typer.Context,
    state_dir: StateDir = None,
    cache: CacheDir = None,
    _: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Say the version."
    ),
) -> None:
    settings = ctx.obj = Settings().given(state_dir, cache)
    if os.path.isdir(settings.path("containers")) and os.listdir(settings.path("containers")):
        from pagein.cli.places import sweep

        sweep(settings)


app.command("mount")(mount.mount)
app.command("run")(run.run)
app.command("umount")(umount.umount)
app.command("status")(status.status)
app.command("ls")(ls.ls)
app.command("cat")(cat.cat)
app.command("stat")(stat.stat)
app.command("du")(du.du)
app.command("extract")(extract.extract)
app.command("images")(images.images)
app.command("index")(index.index)
app.command("cull")(cull.cull)
app.command("daemon")(daemon.daemon)
app.command("device")(device.device)


def main() -> None:
    """Entry point of the `pagein` script."""
    try:
        app()
    except BrokenPipeError:
        os._exit(1)  # whoever read our output has gone, and there is nobody to tell


if __name__ == "__main__":
    main()
