"""Whole trees, as they are seen on this machine and as umoci unpacks them."""

import os
import stat
import subprocess
from pathlib import Path
from typing import Any

from tests.images.processes import need


def tree(top: Path) -> dict[str, dict[str, Any]]:
    """All below `top`: what stat(2), readlink(2), listxattr(2) and read(2) say."""
    found = {}
    for directory, names, files in os.walk(top):
        for name in (*names, *files, *(["."] if directory == str(top) else [])):
            path = os.path.join(directory, name)
            said = os.lstat(path)
            kind = stat.S_IFMT(said.st_mode)
            entry: dict[str, Any] = {"mode": said.st_mode, "uid": said.st_uid, "gid": said.st_gid}
            entry["xattrs"] = {
                each: os.getxattr(path, each, follow_symlinks=False)
                for each in os.listxattr(path, follow_symlinks=False)
            }
            entry["mtime"] = said.st_mtime_ns
            if kind != stat.S_IFDIR:
                entry |= {"size": said.st_size, "nlink": said.st_nlink}
            if kind == stat.S_IFREG:
                entry["content"] = Path(path).read_bytes()
            elif kind == stat.S_IFLNK:
                entry["target"] = os.readlink(path)
            found[os.path.relpath(path, top)] = entry
    return found


def unpacked(layout: Path, directory: Path, tag: str = "v1") -> Path:
    """An image of a layout as umoci unpacks it."""
    argv = [need("umoci"), "unpack", "--image", f"{layout}:{tag}", str(directory / "bundle")]
    subprocess.run(argv, check=True, capture_output=True, timeout=200)
    return directory / "bundle/rootfs"
