"""The image of `coldimage` with layers of zstd, as skopeo makes them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from coldimage import TAG
from coldparts import checked


def zstd(layout: Path, directory: Path) -> Path:
    """An OCI layout of the image in `layout`, kept beside it; `directory` is for what it takes.

    By way of directories: to a registry that knows layers of gzip skopeo pushes those again.
    """
    kept = layout.with_name(f"{layout.name}.zstd")
    if kept.exists():
        return kept
    directory.mkdir()
    partial = kept.with_suffix(f".{os.getpid()}")
    copy = ["skopeo", "--insecure-policy", "copy", "--quiet"]
    plain, packed = directory / "plain", directory / "packed"
    to_zstd = ["--dest-compress", "--dest-compress-format", "zstd"]
    checked([*copy, "--dest-decompress", f"oci:{layout}:{TAG}", f"dir:{plain}"])
    checked([*copy, *to_zstd, f"dir:{plain}", f"dir:{packed}"])
    checked([*copy, f"dir:{packed}", f"oci:{partial}:{TAG}"])
    partial.rename(kept)
    shutil.rmtree(directory)
    return kept
