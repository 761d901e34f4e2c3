"""`pagein ls [-l] [-R] [--json] SOURCE [PATH]`."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from pagein.cli.errors import one_line_errors
from pagein.cli.trees import (
    CacheOption,
    DeviceOption,
    JsonLines,
    PathArgument,
    SourceArgument,
    Tree,
    described,
    shown,
    tree_of,
)

if TYPE_CHECKING:
    from pagein.erofs.inode import Inode


def ls(
    ctx: typer.Context,
    source: SourceArgument,
    path: PathArgument = "/",
    long: Annotated[
        bool, typer.Option("-l", help="Mode, links, owner, size, mtime (UTC).")
    ] = False,
    recursive: Annotated[bool, typer.Option("-R", help="Directories below, too.")] = False,
    as_json: JsonLines = False,
    device: DeviceOption = None,
    cache: CacheOption = None,
) -> None:
    """List a directory of an image, without root and without a mount."""
    with one_line_errors(), tree_of(ctx, source, device, cache) as tree:
        found = tree.lookup(os.fsencode(path), follow=not long)
        if as_json:
            for each in _entries(tree, found, recursive=recursive):
                print(json.dumps(described(tree, each)))
        elif not found.is_dir:
            _print(tree, [(os.fsencode(path), found)], long=long)
        elif not recursive:
            _print(tree, list(tree.scandir(found)), long=long)
        else:
            _print_recursively(tree, found, long=long)


def _entries(tree: Tree, found: Inode, *, recursive: bool) -> Iterator[Inode]:
    if not found.is_dir:
        yield found
    elif recursive:
        yield from tree.walk(found)
    else:
        yield from (each for _, each in tree.scandir(found))


def _print_recursively(tree: Tree, top: Inode, *, long: bool) -> None:
    between = ""
    for directory in tree.walk(top):
        if directory.is_dir:
            print(f"{between}{shown(directory.path) or '/'}:")
            between = "\n"
            _print(tree, list(tree.scandir(directory)), long=long)


def _print(tree: Tree, entries: list[tuple[bytes, Inode]], *, long: bool) -> None:
    if not long:
        print("".join(f"{shown(name)}\n" for name, _ in entries), end="")
        return
    rows = [_row(tree, name, found) for name, found in entries]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for mode, links, uid, gid, size, time, name in rows:
        left = f"{mode} {links:>{widths[1]}} {uid:<{widths[2]}} {gid:<{widths[3]}}"
        print(f"{left} {size:>{widths[4]}} {time} {name}")


def _row(tree: Tree, name: bytes, found: Inode) -> tuple[str, str, str, str, str, str, str]:
    size = str(found.size)
    if stat.S_ISCHR(found.mode) or stat.S_ISBLK(found.mode):
        size = f"{os.major(found.rdev)}, {os.minor(found.rdev)}"
    points = f" -> {shown(tree.readlink(found))}" if stat.S_ISLNK(found.mode) else ""
    return (
        stat.filemode(found.mode),
        str(found.nlink),
        str(found.uid),
        str(found.gid),
        size,
        when(found.mtime_ns),
        shown(name) + points,
    )


def when(mtime_ns: int) -> str:
    """A time for people, in UTC; seconds since the epoch where the calendar ends."""
    try:
        return datetime.fromtimestamp(mtime_ns // 1_000_000_000, UTC).strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):
        return f"@{mtime_ns // 1_000_000_000}"
