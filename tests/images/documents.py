"""Images to serve and to push: bytes of layers, configs, manifests, OCI layouts."""

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

from pagein.images.manifest import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    digest_of,
)

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def describe(data: bytes, media_type: str, **members: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data), **members}


def dumps(document: object) -> bytes:
    return json.dumps(document).encode()


def layer(files: dict[str, bytes]) -> tuple[bytes, str]:
    """A tar+gzip of `files`, and the digest of the tar."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(raw.getvalue(), mtime=0), digest_of(raw.getvalue())


class Built(NamedTuple):
    """An image: its documents by digest, and its manifest."""

    blobs: dict[str, bytes]
    manifest: bytes
    layers: list[bytes]

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(
            media_type=OCI_MANIFEST, digest=digest_of(self.manifest), size=len(self.manifest)
        )

    def layer_descriptor(self, number: int) -> Descriptor:
        data = self.layers[number]
        return Descriptor(media_type=LAYER, digest=digest_of(data), size=len(data))


def build(seed: bytes, layers: int = 3, size: int = 5000, architecture: str = "amd64") -> Built:
    """A small image; `size` bytes of each layer's one file do not compress."""
    made = [
        layer({f"file{n}": hashlib.shake_128(seed + bytes([n])).digest(size)})
        for n in range(layers)
    ]
    config = dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {"Env": ["A=b"], "Cmd": ["/bin/true"], "WorkingDir": "/", "Volumes": None},
            "rootfs": {"type": "layers", "diff_ids": [diff for _, diff in made]},
            "history": None,
        }
    )
    manifest = dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": describe(config, OCI_CONFIG),
            "layers": [describe(data, LAYER) for data, _ in made],
            "annotations": None,
        }
    )
    blobs = {digest_of(data): data for data in (config, *(data for data, _ in made))}
    return Built(blobs, manifest, [data for data, _ in made])


def index_of(images: dict[str, Built]) -> bytes:
    """An index of images by platform (linux/amd64)."""
    entries = []
    for platform, image in images.items():
        os, architecture, *variant = platform.split("/")
        members = {"os": os, "architecture": architecture}
        members |= {"variant": variant[0]} if variant else {}
        entries.append(describe(image.manifest, OCI_MANIFEST, platform=members))
    return dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})


def write_layout(directory: Path, tags: dict[str, Built]) -> Path:
    """An OCI layout of images by tag."""
    store = directory / "blobs" / "sha256"
    store.mkdir(parents=True)
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    entries = []
    for tag, image in tags.items():
        for data in (*image.blobs.values(), image.manifest):
            (store / hashlib.sha256(data).hexdigest()).write_bytes(data)
        name = {"org.opencontainers.image.ref.name": tag}
        entries.append(describe(image.manifest, OCI_MANIFEST, annotations=name))
    document = {"schemaVersion": 2, "manifests": entries}
    (directory / "index.json").write_bytes(dumps(document))
    return directory
