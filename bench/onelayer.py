"""An OCI layout with an image of one layer."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

TAG = "1"


def layout_of(tar: Path, layer: Path, kind: str, layout: Path) -> Path:
    """An OCI layout with an image of this layer, which is moved there."""
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True)

    def named(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def put(document: object) -> dict[str, object]:
        data = json.dumps(document).encode()
        name = hashlib.sha256(data).hexdigest()
        (blobs / name).write_bytes(data)
        return {"digest": f"sha256:{name}", "size": len(data)}

    size, name = layer.stat().st_size, named(layer)
    layer.rename(blobs / name)
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{named(tar)}"]}
    config = put({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs})
    image = "application/vnd.oci.image"
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{image}.manifest.v1+json",
        "config": {"mediaType": f"{image}.config.v1+json", **config},
        "layers": [{"mediaType": kind, "digest": f"sha256:{name}", "size": size}],
    }
    entry = {"mediaType": f"{image}.manifest.v1+json", **put(manifest)}
    entry["annotations"] = {"org.opencontainers.image.ref.name": TAG}
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    return blobs / name
