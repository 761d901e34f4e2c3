"""The image of `coldimage` as eStargz, converted by stargz-snapshotter's own tool."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from pathlib import Path

from coldimage import TAG
from coldparts import checked, containerd


def estargz(layout: Path, directory: Path) -> Path:
    """An OCI layout of the image in `layout`, kept beside it; `directory` is for what it takes."""
    kept = layout.with_name(f"{layout.name}.estargz")
    if kept.exists():
        return kept
    directory.mkdir()
    source, target = directory / "source.tar", directory / "target.tar"
    with tarfile.open(source, "w") as tar:
        tar.add(layout, ".")
    with containerd(directory / "ctd"):
        ctr = ["ctr-remote", "--address", str(directory / "ctd/c.sock"), "images"]
        checked([*ctr, "import", "--no-unpack", "--base-name", "cold", source])
        checked([*ctr, "convert", "--estargz", "--oci", f"cold:{TAG}", "cold:estargz"])
        checked([*ctr, "export", target, "cold:estargz"])
    partial = kept.with_suffix(f".{os.getpid()}")
    with tarfile.open(target) as tar:
        tar.extractall(partial, filter="data")
    path = partial / "index.json"
    index = json.loads(path.read_text())
    index["manifests"][0]["annotations"] = {"org.opencontainers.image.ref.name": TAG}
    path.write_text(json.dumps(index))
    partial.rename(kept)
    shutil.rmtree(directory)
    return kept
