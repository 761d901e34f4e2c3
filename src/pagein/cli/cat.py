"""`pagein cat SOURCE PATH...`."""

from __future__ import annotations

import errno
import os
import stat
import sys
from typing import Annotated

import typer

from pagein.cli.errors import one_line_errors
from pagein.cli.trees import CacheOption, DeviceOption, SourceArgument, pieces, tree_of


def cat(
    ctx: typer.Context,
    source: SourceArgument,
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Within the image.")],
    device: DeviceOption = None,
    cache: CacheOption = None,
) -> None:
    """Write files of an image to standard output."""
    with one_line_errors(), tree_of(ctx, source, device, cache) as tree:
        for path in paths:
            found = tree.lookup(os.fsencode(path), follow=True)
            if found.is_dir:
                raise OSError(errno.EISDIR, "is a directory: `pagein ls` lists it", path)
            if not stat.S_ISREG(found.mode):
                raise OSError(errno.EINVAL, "is not a regular file", path)
            for piece in pieces(tree, found, 0, found.size):
                sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
