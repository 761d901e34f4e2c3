"""`pagein du [-s] [-b] [--json] SOURCE [PATH]`."""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer

from pagein.cli.errors import one_line_errors
from pagein.cli.trees import (
    CacheOption,
    DeviceOption,
    JsonLines,
    PathArgument,
    SourceArgument,
    shown,
    tree_of,
    visits,
)
from pagein.cli.units import human

_BLOCK = 4096


def du(
    ctx: typer.Context,
    source: SourceArgument,
    path: PathArgument = "/",
    summary: Annotated[bool, typer.Option("-s", help="The total only.")] = False,
    in_bytes: Annotated[bool, typer.Option("-b", help="Bytes, no units.")] = False,
    as_json: JsonLines = False,
    device: DeviceOption = None,
    cache: CacheOption = None,
) -> None:
    """How large the directories of an image are, in blocks of 4 KiB."""
    with one_line_errors(), tree_of(ctx, source, device, cache) as tree:
        seen: set[object] = set()
        totals = [0]
        for found, entered in visits(tree, tree.lookup(os.fsencode(path))):
            if not entered:
                total = totals.pop()
                totals[-1] += total
                if not summary or len(totals) == 1:
                    _print(found.path, total, in_bytes=in_bytes, as_json=as_json)
                continue
            size = -(-found.size // _BLOCK) * _BLOCK
            if found.is_dir:
                totals.append(size)
            elif found.nlink == 1 or found.key not in seen:
                seen.add(found.key)
                totals[-1] += size
                if len(totals) == 1:
                    _print(found.path, size, in_bytes=in_bytes, as_json=as_json)


def _print(path: bytes, total: int, *, in_bytes: bool, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"path": os.fsdecode(path) or "/", "bytes": total}))
    else:
        print(f"{total if in_bytes else human(total)}\t{shown(path) or '/'}")
