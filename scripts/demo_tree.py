"""The tree that scripts/demo makes an image of: files of this machine, copied and hashed."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

MB = 1_000_000
_ASK = "import sys, sysconfig; print(sys.base_prefix, sysconfig.get_path('stdlib'), sep='\\n')"


@dataclass(frozen=True)
class Python:
    """An interpreter of this machine, by absolute paths."""

    program: Path
    prefix: Path
    library: Path


@dataclass
class Tree:
    """A directory with copies of `parts`, at their paths below it.

    `checksums` has the SHA-256 of each original, by its path relative to "/".
    """

    root: Path
    python: Python
    parts: list[Path]
    checksums: dict[Path, str] = field(default_factory=dict)
    size: int = 0


def find_python() -> Python:
    """The system's Python, which can run from elsewhere; else the one that runs this."""
    for candidate in ("/usr/bin/python3", os.path.realpath(sys.executable)):
        if not os.access(candidate, os.X_OK):
            continue
        told = subprocess.run(
            [candidate, "-I", "-c", _ASK], capture_output=True, text=True, timeout=30, check=False
        )
        if told.returncode == 0:
            prefix, library = map(Path, told.stdout.splitlines())
            return Python(Path(candidate).resolve(), prefix, library)
    raise FileNotFoundError("no Python that says where its library is")


def copy_tree(root: Path, limit: int, progress: Callable[[int], object]) -> Tree:
    """Copy up to `limit` bytes below `root`; `progress` gets the bytes copied so far."""
    python = find_python()
    # The last one is only reached where the others are small.
    parts = [python.library, Path("/usr/share/doc"), Path("/usr/bin"), Path("/usr/lib")]
    tree = Tree(root, python, [])
    _copy(tree, python.program)
    progress(tree.size)
    for part in parts:
        before = tree.size
        for path in _walk(part):
            if tree.size >= limit:
                break
            _copy(tree, path)
            progress(tree.size)
        if tree.size > before:
            tree.parts.append(part)
    return tree


def _walk(top: Path) -> Iterator[Path]:
    for directory, names, files in os.walk(top):
        names.sort()
        for name in sorted(files):
            yield Path(directory, name)


def _copy(tree: Tree, source: Path) -> None:
    """Copy one file or symbolic link; what this user may not read, or is neither, is left out."""
    target = tree.root / source.relative_to("/")
    if os.path.lexists(target):  # parts may overlap
        return
    try:
        found = source.lstat()
        if stat.S_ISLNK(found.st_mode):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source.readlink())
        elif stat.S_ISREG(found.st_mode):
            checksum = hash_file(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            target.chmod(0o755 if found.st_mode & 0o111 else 0o644)
            os.utime(target, ns=(found.st_mtime_ns, found.st_mtime_ns))  # byte code goes by it
            tree.checksums[source.relative_to("/")] = checksum
            tree.size += found.st_size
    except PermissionError:
        return


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
