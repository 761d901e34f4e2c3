"""`pagein index IMAGE [--push | --output DIR]`."""

from __future__ import annotations

import errno
import os
import shutil
from typing import Annotated

import typer

from pagein.cli.errors import one_line_errors
from pagein.cli.settings import PlatformOption, Settings, settings_of
from pagein.cli.sources import is_image
from pagein.cli.trees import CacheOption
from pagein.cli.units import human


def index(
    ctx: typer.Context,
    image: Annotated[str, typer.Argument(help="docker://HOST/NAME:TAG, or oci:DIR:TAG.")],
    push: Annotated[
        bool, typer.Option("--push", help="Store them beside the image, as an artifact of it.")
    ] = False,
    output: Annotated[
        str | None, typer.Option("--output", metavar="DIR", help="Write a file a layer.")
    ] = None,
    platform: PlatformOption = "",
    cache: CacheOption = None,
) -> None:
    """Make the indexes of an image's layers, so that it is mounted before it is downloaded.

    Each layer is streamed once. Indexes that are done are kept: a run that was interrupted goes on
    with the layers that are left.
    """
    from pagein.cli.imagetree import Here

    settings = settings_of(ctx, None, cache)
    named = cache is not None or settings.cache != Settings().cache
    with one_line_errors():
        if not is_image(image):
            text = f"{image}: name an image as docker://HOST/NAME:TAG or oci:DIR:TAG"
            raise OSError(errno.EINVAL, text)
        with Here(settings.cache if named else None) as here:
            pull, pulled = here.pull(image, platform, keep_data=False)
            for blobs in {each[0].layer: each for each in pulled.layers}.values():
                path = here.store.path("indexes", blobs[0].index)
                size = os.path.getsize(path)
                share = f"{size / blobs[0].layer_size:.1%} of {human(blobs[0].layer_size)}"
                print(f"{blobs[0].layer}  {human(size)}, {share}")
                if output is not None:
                    os.makedirs(output, exist_ok=True)
                    name = f"{blobs[0].layer.replace(':', '-')}.index"
                    shutil.copyfile(path, os.path.join(output, name))
            if push:
                print(f"pushed as {here.push(pull, pulled)}")
