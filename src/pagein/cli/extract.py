"""`pagein extract SOURCE [PATH] --to DIR`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from pagein.cli.errors import one_line_errors
from pagein.cli.trees import CacheOption, DeviceOption, PathArgument, SourceArgument, tree_of


def extract(
    ctx: typer.Context,
    source: SourceArgument,
    path: PathArgument = "/",
    to: Annotated[str, typer.Option("--to", metavar="DIR", help="Made if it is not there.")] = ".",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that exist.")
    ] = False,
    device: DeviceOption = None,
    cache: CacheOption = None,
) -> None:
    """Write a file of an image, or all a directory holds, below DIR."""
    from pagein.cli.unpack import Unpacker

    with one_line_errors(), tree_of(ctx, source, device, cache) as tree:
        found = tree.lookup(os.fsencode(path))
        os.makedirs(to, exist_ok=True)
        unpacker = Unpacker(tree, to, overwrite=overwrite)
        unpacker.run(found)
    if unpacker.skipped:
        raise typer.Exit(1)
