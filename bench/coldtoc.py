"""The image of `coldimage` as eStargz or zstd:chunked, as stargz-snapshotter converts it."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

from coldimage import TAG
from coldparts import checked, containerd

KINDS = {"estargz": "--estargz", "zstdchunked": "--zstdchunked"}


def converted(layout: Path, kind: str, directory: Path) -> Path:
    """An OCI layout of the image in `layout`, kept beside it; `directory` is for what it takes."""
    kept = layout.with_name(f"{layout.name}.{kind}")
    if kept.exists():
        return kept
    directory.mkdir()
    source, target = directory / "source.tar", directory / "target.tar"
    with tarfile.open(source, "w") as tar:
        tar.add(layout, ".")
    with containerd(directory / "ctd"):
        ctr = ["ctr-remote", "--address", str(directory / "ctd/c.sock"), "images"]
        checked([*ctr, "import", "--no-unpack", "--base-name", "cold", source])
        checked([*ctr, "convert", KINDS[kind], "--oci", f"cold:{TAG}", f"cold:{kind}"])
        checked([*ctr, "export", target, f"cold:{kind}"])
    partial = directory / "layout"
    with tarfile.open(target) as tar:
        tar.extractall(partial, filter="data")
    path = partial / "index.json"
    index = json.loads(path.read_text())
    index["manifests"][0]["annotations"] = {"org.opencontainers.image.ref.name": TAG}
    path.write_text(json.dumps(index))
    shutil.move(partial, kept)
    shutil.rmtree(directory)
    return kept
