"""`pagein index IMAGE [--push | --output DIR]`."""

from __future__ import annotations

import errno
import os
import shutil
from typing import TYPE_CHECKING, Annotated

import typer

from pagein.cli.errors import one_line_errors
from pagein.cli.settings import HostsDir, PlatformOption, Settings, settings_of
from pagein.cli.sources import is_image
from pagein.cli.trees import CacheOption
from pagein.cli.units import human

if TYPE_CHECKING:
    from pagein.cli.imagetree import Here
    from pagein.images.pull import Pulled
    from pagein.images.traces.document import Trace


def index(
    ctx: typer.Context,
    image: Annotated[str, typer.Argument(help="docker://HOST/NAME:TAG, or oci:DIR:TAG.")],
    push: Annotated[
        bool, typer.Option("--push", help="Store them beside the image, as an artifact of it.")
    ] = False,
    output: Annotated[
        str | None, typer.Option("--output", metavar="DIR", help="Write a file a layer.")
    ] = None,
    trace: Annotated[
        str | None,
        typer.Option("--trace", metavar="FILE", help="Store this beside them: what is read first."),
    ] = None,
    platform: PlatformOption = "",
    cache: CacheOption = None,
    hosts_dir: HostsDir = None,
) -> None:
    """Make the indexes of an image's layers, so that it is mounted before it is downloaded.

    Each layer is streamed once. Indexes that are done are kept: a run that was interrupted goes on
    with the layers that are left.
    """
    from pagein.cli.imagetree import Here
    from pagein.cli.tracefile import load

    settings = settings_of(ctx, None, cache, hosts_dir)
    named = cache is not None or settings.cache != Settings().cache
    with one_line_errors():
        if not is_image(image):
            text = f"{image}: name an image as docker://HOST/NAME:TAG or oci:DIR:TAG"
            raise OSError(errno.EINVAL, text)
        with Here(settings.cache if named else None, settings.hosts_dir) as here:
            recorded = load(trace) if trace is not None else None
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
            if recorded is not None:
                _check(str(trace), recorded, here, pulled)
                if output is not None:
                    shutil.copyfile(str(trace), os.path.join(output, "trace.jsonl"))
            if push:
                document = recorded.dump() if recorded else None
                print(f"pushed as {here.push(pull, pulled, document)}")


def _check(name: str, trace: Trace, here: Here, pulled: Pulled) -> None:
    """Say what a trace asks for; OSError when it is of another image."""
    from pagein.images.layers.index import Index
    from pagein.images.traces.wanted import plan_layer

    known = requests = size = 0
    for blobs in {each[0].layer: each for each in pulled.layers}.values():
        with Index(here.store.path("indexes", blobs[0].index), root=blobs[0].root) as index:
            of_layer = sum(
                trace.layers[touch.layer] == index.header.layer.diff_id for touch in trace.touches
            )
            pieces, missed = plan_layer(index, trace)
        known += of_layer - missed
        requests += len(pieces)
        size += sum(piece.high - piece.low for piece in pieces)
    if not known:
        raise OSError(errno.EINVAL, f"{name}: nothing in this trace is in this image")
    text = f"{known} of {len(trace.touches)} touches, {human(size)} in {requests} requests"
    print(f"{name}  {text}")
