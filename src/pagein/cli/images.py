"""`pagein images [--json]`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer

from pagein.cli.errors import one_line_errors
from pagein.cli.settings import CacheDir, StateDir, settings_of
from pagein.cli.units import human


def images(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    state_dir: StateDir = None,
    cache: CacheDir = None,
) -> None:
    """List the images that can be mounted without asking their registry."""
    from pagein.images.catalogue import Catalogue

    with one_line_errors():
        known = Catalogue(os.path.join(settings_of(ctx, state_dir, cache).cache, "images")).images()
    for image in known:
        if as_json:
            print(json.dumps(asdict(image)))
            continue
        when = datetime.fromtimestamp(image.seen, UTC).strftime("%Y-%m-%d %H:%M")
        size = f"{image.layers} layers, {human(image.size)} compressed"
        print(f"{image.name}  {image.platform}  {image.manifest[:19]}  {size}  {when}")
