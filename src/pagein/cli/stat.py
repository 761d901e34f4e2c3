"""`pagein stat [--json] SOURCE [PATH]`."""

from __future__ import annotations

import json
import os
from typing import Annotated, Any

import typer

from pagein.cli.errors import one_line_errors
from pagein.cli.ls import when
from pagein.cli.trees import (
    CacheOption,
    DeviceOption,
    PathArgument,
    SourceArgument,
    described,
    shown,
    tree_of,
)


def stat(
    ctx: typer.Context,
    source: SourceArgument,
    path: PathArgument = "/",
    follow: Annotated[bool, typer.Option("-L", help="What a symbolic link points to.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    device: DeviceOption = None,
    cache: CacheOption = None,
) -> None:
    """What an image says of a file, with its extended attributes."""
    with one_line_errors(), tree_of(ctx, source, device, cache) as tree:
        found = tree.lookup(os.fsencode(path), follow=follow)
        what = described(tree, found)
        xattrs = tree.xattrs(found)
        what["xattrs"] = {os.fsdecode(name): value.hex() for name, value in xattrs.items()}
    if as_json:
        print(json.dumps(what, indent=2))
    else:
        _print(what)


def _print(what: dict[str, Any]) -> None:
    xattrs = what.pop("xattrs")
    nanoseconds = what.pop("mtime_ns")
    what["mtime"] = f"{when(nanoseconds)} UTC ({nanoseconds} ns)"
    if "device" in what:
        what["device"] = "{}, {}".format(*what["device"])
    for name, value in what.items():
        print(f"{name:>6}: {shown(os.fsencode(str(value)))}")
    for name, value in xattrs.items():
        print(f" xattr: {shown(os.fsencode(name))} = 0x{value}")
