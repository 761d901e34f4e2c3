"""`pagein seekable FILE [--offset N] [--length M]`."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from pagein.cli.errors import one_line_errors
from pagein.cli.units import human

if TYPE_CHECKING:
    from pagein.seekable import FileIndex, Progress, SeekableFile

_PIECE = 1 << 20
_WIDE = 64 << 20
_SIZE = re.compile(r"(\d+)\s*(?:([KMGT])(?:i?B)?|B)?", re.ASCII | re.IGNORECASE)


def _bytes(text: str) -> int:
    """Bytes: a number, or one with K, M, G or T, powers of 1024."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a number of bytes, such as 4096 or 64M")
    return int(match[1]) << 10 * (" KMGT".index(match[2].upper()) if match[2] else 0)


def seekable(
    source: Annotated[
        str, typer.Argument(metavar="FILE", help="A .gz or .zst file: a path, or an http(s) URL.")
    ],
    offset: Annotated[
        int | None,
        typer.Option("--offset", parser=_bytes, metavar="BYTES", help="Write content from here."),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option("--length", parser=_bytes, metavar="BYTES", help="Write so much, or less."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="PATH", help="Write there, not to standard output."),
    ] = None,
    index: Annotated[
        str | None,
        typer.Option("--index", metavar="PATH", help="The index, instead of FILE.pgx."),
    ] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Build a new index, whatever is there.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Decode all of it by the index, and compare.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Say it as a JSON object.")] = False,
) -> None:
    """Index a gzip or zstd file for random access, or read a range of what is in it.

    The file stays as it is. The index is built in one pass; it has some tenths of a per cent of
    the file's size, and is put beside it, that of a URL into the user's cache. Sizes may end in K,
    M, G or T.
    """
    reading = offset is not None or length is not None or output is not None
    if reading and (verify or as_json):
        raise typer.BadParameter("a range is written as it is: leave --verify and --json out")
    with one_line_errors():
        if reading:
            with _opened(source, index, rebuild, beside=False) as file:
                _copy(file, offset or 0, length, output)
            return
        with _opened(source, index, rebuild, beside=True) as file:
            if verify:
                _verify(file)
            _say(file, as_json, verify)


@contextlib.contextmanager
def _opened(
    source: str, index: str | None, rebuild: bool, *, beside: bool
) -> Iterator[SeekableFile]:
    """The file, its index built if it has none; `beside` it, where that is possible."""
    from pagein import seekable
    from pagein.seekable.places import beside as place_beside

    with _progress(source) as progress:
        if beside and index is None and "://" not in source:
            index = place_beside(source)
        file = seekable.open(source, index=index, rebuild=rebuild, progress=progress)
    with file:
        yield file


@contextlib.contextmanager
def _progress(source: str) -> Iterator[Progress | None]:
    """A bar on standard error, if somebody looks at it, while an index is built."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = ("building the index", BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(source, total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


def _copy(file: SeekableFile, offset: int, length: int | None, output: str | None) -> None:
    """Write a range; an output file is there when all of it is, else not."""
    if offset > file.size:
        text = f"its content has {file.size} bytes: nothing is at {offset}"
        raise OSError(errno.EINVAL, text, file.name)
    end = file.size if length is None else min(file.size, offset + length)
    if output is None or output == "-":
        _write(file, offset, end, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    from pagein.seekable.indexing import new_file

    with new_file(os.path.abspath(output)) as out:
        _write(file, offset, end, out)


def _write(file: SeekableFile, offset: int, end: int, out: BinaryIO) -> None:
    while offset < end:
        offset += out.write(file.pread(min(_PIECE, end - offset), offset))


def _verify(file: SeekableFile) -> None:
    file.index.verify()
    for offset in range(0, file.size, _PIECE):
        file.pread(_PIECE, offset)


def _say(file: SeekableFile, as_json: bool, verified: bool) -> None:
    index = file.index
    if as_json:
        print(json.dumps(_facts(file.name, index, verified)))
        return
    of = f"{index.compression.name.lower()}, {human(index.packed_size)}"
    _line(f"{file.name}  {of}, {human(file.size)} of content{', verified' if verified else ''}")
    share = f"{index.file_size / index.packed_size:.1%}"
    _line(f"{index.path}  {human(index.file_size)}, {share}, {index.points} points")
    if (widest := index.widest_span()) > _WIDE:
        print(f"two points are up to {human(widest)} apart: a read may decode as much")


def _line(text: str) -> None:
    """Print a line with a file name in it, whatever bytes that has."""
    sys.stdout.buffer.write(os.fsencode(text) + b"\n")
    sys.stdout.buffer.flush()


def _facts(name: str, index: FileIndex, verified: bool) -> dict[str, object]:
    return {
        "file": name,
        "compression": index.compression.name.lower(),
        "packed_size": index.packed_size,
        "size": index.size,
        "digest": index.digest,
        "index": index.path,
        "index_size": index.file_size,
        "points": index.points,
        "widest_span": index.widest_span(),
        "verified": verified,
    }
