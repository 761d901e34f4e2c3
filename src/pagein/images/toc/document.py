"""The TOC itself, JSON, as both formats have it.

Rules: stargz-snapshotter `docs/estargz.md` "TOC, TOCEntries and Footer", and `TOCEntry` in
`estargz/types.go` (innerOffset); containers/storage `pkg/chunked/internal/minimal` (chunkType).
"""

from __future__ import annotations

import calendar
import datetime
import functools
import re
from typing import Final

import msgspec

from pagein.images.layers.errors import LayerError, show

MAX_TOC: Final = 64 << 20
"""Bytes of a TOC, unpacked. An entry has some 400."""
MAX_OBJECTS: Final = 400_000
"""What is an object in JSON: entries, above all."""
_VERSION: Final = 1
_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:[Zz]|([+-])(\d\d):(\d\d))",
    re.ASCII,
)


class TocEntry(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """A member of the tar, or a further chunk of the last one. Sizes and offsets in bytes."""

    name: str
    type: str
    size: int = 0
    modtime: str | None = None
    link_name: str = ""
    mode: int = 0
    uid: int = 0
    gid: int = 0
    dev_major: int = 0
    dev_minor: int = 0
    xattrs: dict[str, bytes | None] | None = None
    digest: str = ""
    offset: int = 0
    """In the layer: where the chunk's gzip member or zstd frame begins."""
    inner_offset: int = 0
    """Where in what that unpacks to the chunk begins."""
    chunk_offset: int = 0
    """In the file."""
    chunk_size: int = 0
    """0: up to the end of the file."""
    chunk_digest: str = ""
    chunk_type: str = ""


class Toc(msgspec.Struct, frozen=True, rename="camel"):
    """A table of contents."""

    version: int
    entries: list[TocEntry] | None
    tar_split_digest: str = ""


def parse_toc(data: bytes) -> Toc:
    """The TOC in `data`; LayerError if it is none, or too large to be read."""
    if len(data) > MAX_TOC:
        raise LayerError(f"a TOC of more than {MAX_TOC} bytes")
    if data.count(b"{") > MAX_OBJECTS:
        raise LayerError(f"a TOC of more than {MAX_OBJECTS} entries")
    try:
        toc = msgspec.json.decode(data, type=Toc)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        detail = " ".join(str(error).split())[:200]
        raise LayerError(f"not a valid TOC: {detail}") from None
    if toc.version != _VERSION:
        raise LayerError(f"a TOC of version {toc.version}: {_VERSION} is known")
    return toc


@functools.lru_cache(maxsize=4096)
def nanoseconds(text: str) -> int:
    """A time of RFC 3339 in nanoseconds since 1970; 0 for none, as for Go's zero time."""
    if not text or text.startswith("0001-01-01T00:00:00"):
        return 0
    match = _TIME.fullmatch(text)
    if match is None:
        raise LayerError(f"not a time: {show(text.encode())}")
    *parts, fraction, sign, hours, minutes = match.groups()
    try:
        moment = datetime.datetime(*map(int, parts))  # type: ignore[arg-type]
    except ValueError:
        raise LayerError(f"not a time: {show(text.encode())}") from None
    seconds = calendar.timegm(moment.timetuple())
    if sign:
        shift = int(hours) * 3600 + int(minutes) * 60
        seconds -= shift if sign == "+" else -shift
    return seconds * 10**9 + int((fraction or "").ljust(9, "0"))
