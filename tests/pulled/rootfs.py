"""A small image to run: busybox in three layers, with all that layers may do to each other."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.images.documents import LAYER, describe, dumps

from pagein.images.manifest import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, digest_of

BUSYBOX = "/bin/busybox"
PROGRAMS = "cat echo env false id ls sh sleep wc"
BIG = bytes(range(256)) * 1024
"""Content of /srv/big, 256 KiB."""

Adder = Callable[..., None]


def make_layer(fill: Callable[[Adder], None]) -> tuple[bytes, str]:
    """tar+gzip of what `fill` adds, and the digest of the tar."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:

        def add(name: str, data: bytes = b"", **fields: Any) -> None:
            member = tarfile.TarInfo(name)
            xattrs = fields.pop("xattrs", {})
            member.size, member.mtime, member.mode = len(data), 1_600_000_000, 0o644
            member.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in xattrs.items()}
            for key, value in fields.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(data))

        fill(add)
    return gzip.compress(raw.getvalue(), mtime=0), digest_of(raw.getvalue())


def add_directory(add: Adder, name: str, mode: int = 0o755, **fields: Any) -> None:
    """Add a directory."""
    add(name, type=tarfile.DIRTYPE, mode=mode, **fields)


def _base(add: Adder) -> None:
    for name in ("./", "bin", "etc", "srv", "gone", "opaque", "opaque/below"):
        add_directory(add, name)
    add_directory(add, "tmp", 0o1777, uid=70_000, mtime=1_600_000_002.5)
    add("bin/busybox", Path(BUSYBOX).read_bytes(), mode=0o755)
    for name in PROGRAMS.split():
        add(f"bin/{name}", type=tarfile.SYMTYPE, linkname="busybox", mode=0o777)
    add("etc/passwd", b"root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/:/bin/sh\n")
    add("etc/group", b"root:x:0:\napp:x:1001:\n")
    add("gone/file", b"of the lowest layer\n")
    add("opaque/old", b"covered\n")
    add("opaque/below/old", b"covered\n")
    add("srv/deleted", b"deleted later\n")
    add("srv/replaced", b"old\n")


def _middle(add: Adder) -> None:
    add_directory(add, "srv", mtime=1_600_000_001.25)
    add("srv/big", BIG, uid=1000, gid=1001)
    add("srv/hard", type=tarfile.LNKTYPE, linkname="srv/big", mode=0o644)
    add("srv/suid", b"#!/bin/sh\n", mode=0o4755)
    add("srv/attributes", b"x", xattrs={"user.colour": "blue"})
    add("srv/.wh.deleted")
    add("srv/replaced", b"new, and longer\n", mode=0o600)
    add_directory(add, "deep/without/parents")
    add("deep/without/parents/file", b"deep\n")


def _top(add: Adder) -> None:
    add(".wh.gone")
    add_directory(add, "opaque", 0o700)
    add("opaque/.wh..wh..opq")
    add("opaque/new", b"new\n")
    add("srv/text", b"text of the top\n")
    add("tmp/file", b"in a directory that is not described here\n")


def rootfs_layers() -> list[tuple[bytes, str]]:
    """The layers, lowest first: tar+gzip and diff_id."""
    return [make_layer(fill) for fill in (_base, _middle, _top)]


def write_image(
    directory: Path, layers: list[tuple[bytes, str]], *, tag: str = "v1", **config: Any
) -> Path:
    """An OCI layout of one image; its blobs can be read by everybody."""
    rootfs = {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]}
    document = {"architecture": "amd64", "os": "linux", "rootfs": rootfs, "config": config}
    packed = dumps(document)
    manifest = dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": describe(packed, OCI_CONFIG),
            "layers": [describe(data, LAYER) for data, _ in layers],
        }
    )
    names = {"org.opencontainers.image.ref.name": tag}
    index = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [describe(manifest, OCI_MANIFEST, annotations=names)],
    }
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for data in (packed, manifest, *(data for data, _ in layers)):
        (blobs / digest_of(data).partition(":")[2]).write_bytes(data)
    (directory / "index.json").write_text(json.dumps(index))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return directory
