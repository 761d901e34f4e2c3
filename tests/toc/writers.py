"""Writers of eStargz and of zstd:chunked that lie where they are told to.

Written from the formats' descriptions, with Python's tarfile: nothing of pagein is in them.
"""

import base64
import gzip
import hashlib
import io
import json
import struct
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import zstandard

TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"
CHUNKED = "io.github.containers.zstd-chunked."
GZIP_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
ZSTD_TYPE = "application/vnd.oci.image.layer.v1.tar+zstd"
TYPES = {
    tarfile.REGTYPE: "reg",
    tarfile.AREGTYPE: "reg",
    tarfile.LNKTYPE: "hardlink",
    tarfile.SYMTYPE: "symlink",
    tarfile.CHRTYPE: "char",
    tarfile.BLKTYPE: "block",
    tarfile.DIRTYPE: "dir",
    tarfile.FIFOTYPE: "fifo",
}
ZEROS = 1024
"""Zeros in a row that are a chunk of their own."""

Document = dict[str, Any]
Change = Callable[[Document], object]


class Made(NamedTuple):
    """A layer: its bytes, the annotations of its descriptor, its tar and its TOC."""

    data: bytes
    annotations: dict[str, str]
    media_type: str
    tar: bytes
    toc: bytes


class Options(NamedTuple):
    """`inner`: bytes of a gzip member, beyond which the next file gets its own."""

    chunk: int = 4 << 20
    inner: int = 0
    change: Change | None = None
    """Of the TOC, before its digest is made."""


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def estargz(tar: bytes, options: Options = Options()) -> Made:  # noqa: B008
    """The tar's members as eStargz, which is a slightly longer tar."""
    out, content = bytearray(), bytearray()
    entries: list[Document] = []
    held = bytearray()  # of the member that is being written

    def close() -> None:
        content.extend(held)
        out.extend(gzip.compress(bytes(held), 9, mtime=0))
        held.clear()

    members = list(_members(tar))
    for member, head, data, padding in members:
        held += head
        entry = _entry(member, time.gmtime(int(member.mtime + 0.5)))
        entries.append(entry)
        for at in range(0, len(data), options.chunk):
            part = data[at : at + options.chunk]
            if len(held) >= options.inner:
                close()
            place = {"offset": len(out), "chunkDigest": sha256(part)}
            if held:
                place["innerOffset"] = len(held)
            if at:
                entry = {"name": member.name, "type": "chunk", "chunkOffset": at}
                entries.append(entry)
            if len(part) == options.chunk:
                entry["chunkSize"] = len(part)
            entry |= place
            held += part
        held += padding
    close()
    toc = _dumped({"version": 1, "entries": entries}, options.change)
    offset = len(out)
    held += tar_of("stargz.index.json", toc)
    close()
    out += footer(offset)  # which unpacks to nothing
    return Made(bytes(out), {TOC_DIGEST: sha256(toc)}, GZIP_TYPE, bytes(content), toc)


def footer(offset: int) -> bytes:
    """An empty gzip member whose extra field says where the TOC is."""
    extra = b"SG" + struct.pack("<H", 22) + b"%016xSTARGZ" % offset
    head = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + struct.pack("<H", len(extra)) + extra
    return head + b"\x01\0\0\xff\xff" + bytes(8)


def tar_of(name: str, data: bytes) -> bytes:
    """A whole tar of one file."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return raw.getvalue()


def zstd_chunked(tar: bytes, options: Options = Options(chunk=64 << 10)) -> Made:  # noqa: B008
    """The tar as zstd:chunked, with a tar-split."""
    out = bytearray()
    entries: list[Document] = []
    split: list[Document] = []
    held = bytearray()
    raw, content = bytearray(), bytearray()

    def close() -> None:
        content.extend(held)
        out.extend(zstandard.compress(bytes(held)))
        held.clear()

    for member, head, data, padding in _members(tar):
        raw += head
        split.append(_segment(raw, len(split)))
        raw.clear()
        held += head
        entry = _entry(member, None)
        entries.append(entry)
        if data:
            close()
            parts = list(_parts(data, options.chunk))
            entry |= {"digest": sha256(data), "offset": len(out)}
            first = entry
            for at, part, zeros in parts:
                if at:
                    entry = {"type": "chunk", "name": member.name, "chunkOffset": at}
                    entries.append(entry)
                if len(parts) > 1:
                    entry |= {"chunkSize": len(part), "chunkDigest": sha256(part)}
                    entry |= {"chunkType": "zeros"} if zeros else {}
                    entry["offset"] = len(out)
                held += part
                close()
            first["endOffset"] = len(out)
        split.append(_file(member, data, len(split)))
        raw += padding
        held += padding
    held += bytes(1024)
    raw += bytes(1024)
    split.append(_segment(raw, len(split)))
    close()
    lines = b"".join(json.dumps(line).encode() + b"\n" for line in split)
    packed_split = zstandard.compress(lines)
    document = {"version": 1, "entries": entries, "tarSplitDigest": sha256(packed_split)}
    toc = _dumped(document, options.change)
    return _finished(bytes(out), bytes(content), toc, lines, packed_split)


def _finished(data: bytes, tar: bytes, toc: bytes, split: bytes, packed_split: bytes) -> Made:
    packed = zstandard.compress(toc)
    at = len(data) + 8
    split_at = at + len(packed) + 8
    numbers = (at, len(packed), len(toc), 1, split_at, len(packed_split), len(split))
    annotations = {
        f"{CHUNKED}manifest-checksum": sha256(packed),
        f"{CHUNKED}manifest-position": f"{at}:{len(packed)}:{len(toc)}:1",
        f"{CHUNKED}tarsplit-position": f"{split_at}:{len(packed_split)}:{len(split)}",
    }
    data += skippable(packed) + skippable(packed_split)
    data += skippable(struct.pack("<7Q", *numbers) + b"GNUlInUx")
    return Made(data, annotations, ZSTD_TYPE, tar, toc)


def skippable(data: bytes) -> bytes:
    """A zstd frame that decoders pass over."""
    return struct.pack("<II", 0x184D2A50, len(data)) + data


def _dumped(document: Document, change: Change | None) -> bytes:
    if change is not None:
        change(document)
    return json.dumps(document).encode()


def _members(tar: bytes) -> Iterator[tuple[tarfile.TarInfo, bytes, bytes, bytes]]:
    """Members: their headers, data and padding as the tar has them."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        for member in archive:
            stored = member.size if member.isreg() else 0
            end = member.offset_data + stored
            data = tar[member.offset_data : end]
            yield member, tar[member.offset : member.offset_data], data, bytes(-stored % 512)


def _entry(member: tarfile.TarInfo, moment: time.struct_time | None) -> Document:
    kind = TYPES[member.type]
    found: Document = {"name": member.name + "/" * member.isdir(), "type": kind}
    found |= {"mode": member.mode, "uid": member.uid, "gid": member.gid}
    if member.isreg():
        found["size"] = member.size
    if moment is not None:  # eStargz has whole seconds of UTC
        found["modtime"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", moment)
    else:
        whole, fraction = divmod(round(member.mtime * 100), 100)
        text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole + 3600))
        found["modtime"] = f"{text}.{fraction:02}+01:00"
    if kind in ("symlink", "hardlink"):
        found["linkName"] = member.linkname
    if kind in ("char", "block"):
        found |= {"devMajor": member.devmajor, "devMinor": member.devminor}
    prefix = "SCHILY.xattr."
    xattrs = {
        key.removeprefix(prefix): base64.b64encode(value.encode("utf-8", "surrogateescape"))
        for key, value in member.pax_headers.items()
        if key.startswith(prefix)
    }
    if xattrs:
        found["xattrs"] = {key: value.decode() for key, value in xattrs.items()}
    return found


def _parts(data: bytes, chunk: int) -> Iterator[tuple[int, bytes, bool]]:
    """Pieces of at most `chunk` bytes, and runs of zeros."""
    at = 0
    while at < len(data):
        zeros = len(data) - at - len(data[at:].lstrip(b"\0"))
        if zeros >= ZEROS:
            yield at, bytes(zeros), True
            at += zeros
            continue
        end = data.find(bytes(ZEROS), at, at + chunk + ZEROS)
        end = min(at + chunk, len(data)) if end < 0 else min(end, at + chunk)
        yield at, data[at:end], False
        at = end


def _segment(raw: bytes | bytearray, position: int) -> Document:
    return {"type": 2, "payload": base64.b64encode(raw).decode(), "position": position}


def _file(member: tarfile.TarInfo, data: bytes, position: int) -> Document:
    checksum = base64.b64encode(zlib.crc32(data).to_bytes(8, "big")).decode()
    found = {"type": 1, "name": member.name, "payload": checksum, "position": position}
    return {**found, "size": len(data)} if data else found
