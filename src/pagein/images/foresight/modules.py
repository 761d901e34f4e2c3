"""Python's modules in an image: from a name to the files that an import of it reads (PEP 3147)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from posixpath import dirname
from typing import NamedTuple

from pagein.erofs.inode import Inode
from pagein.images.foresight.tree import Place, Tree

_PROGRAM = re.compile(rb"python(3)\.(\d+)[a-z]*")
_PACKAGES = (b"site-packages", b"dist-packages")

FIRST = (b"encodings", b"encodings.aliases", b"encodings.utf_8", b"sitecustomize")
"""What an interpreter imports by itself."""

_FROZEN = frozenset(
    b"__main__ _collections_abc _sitebuiltins abc codecs genericpath importlib._bootstrap"
    b" importlib._bootstrap_external importlib.machinery importlib.util io ntpath os posixpath"
    b" runpy site stat zipimport".split()
)
_FROZEN_SINCE = 11
"""Modules that Python 3.11 and later have in the program (Python/frozen.c)."""


class Found(NamedTuple):
    """A file that an import reads."""

    place: Place
    path: bytes
    """Of a shared library; of others that of their source."""
    native: bool
    source: Place | None
    """Where what it imports is written."""


class Modules:
    """The modules of an interpreter at `program`, its real path. ValueError if it is none."""

    def __init__(self, tree: Tree, program: bytes) -> None:
        directory, _, name = program.rpartition(b"/")
        version = _PROGRAM.fullmatch(name)
        if version is None:
            raise ValueError("not an interpreter whose modules are known")
        self._tree = tree
        self._tag = b"cpython-" + version[1] + version[2]
        self._frozen = _FROZEN if int(version[2]) >= _FROZEN_SINCE else frozenset()
        prefix = dirname(directory)
        library = b"python3." + version[2]
        bases = dict.fromkeys((prefix, prefix + b"/local", b"/usr/local"))
        own = [prefix + b"/lib/" + library, prefix + b"/lib/" + library + b"/lib-dynload"]
        packages = [
            base + b"/lib/" + each + b"/" + kind
            for base in bases
            for each in (library, b"python3")
            for kind in _PACKAGES
        ]
        self.roots = [root for root in (*own, *packages) if tree.names(root)]
        self._native: dict[bytes, dict[bytes, Inode]] = {}

    def find(self, name: bytes, near: bytes = b"") -> list[Found]:
        """The files of a module and of the packages that it is in; `near` is looked at first."""
        if name in self._frozen:
            name = name.rpartition(b".")[0]
        if not name or name.partition(b".")[0] in self._frozen:
            return []
        for root in (near, *self.roots) if near else self.roots:
            if found := list(self._below(root, name.split(b"."))):
                return found
        return []

    def settings(self) -> Iterator[bytes]:
        """Paths of files that the interpreter reads beside its modules (site)."""
        for root in self.roots:
            for name in self._tree.names(root):
                if name.endswith(b".pth"):
                    yield root + b"/" + name

    def beside(self, name: bytes, package: bytes) -> list[Found]:
        """The same of a relative name, in a module of the package in the directory `package`."""
        bare = name.lstrip(b".")
        for _ in range(len(name) - len(bare) - 1):
            package = dirname(package)
        return list(self._below(package, bare.split(b"."))) if bare and package else []

    def _below(self, directory: bytes, parts: list[bytes]) -> Iterator[Found]:
        for part in parts:
            names = self._tree.names(directory)
            if part in names and names[part].is_dir:
                directory += b"/" + part
                if b"__init__.py" not in self._tree.names(directory):
                    return
                yield from self._source(directory, b"__init__")
            elif part + b".py" in names:
                yield from self._source(directory, part)
                return
            else:
                native = self._natives(directory).get(part)
                place = None if native is None else self._tree.place(native)
                if native is not None and place is not None:
                    yield Found(place, native.path, True, None)
                return

    def _source(self, directory: bytes, stem: bytes) -> Iterator[Found]:
        """The compiled form of a module, or its source where there is none."""
        cached = self._tree.names(directory + b"/__pycache__")
        inode = cached.get(stem + b"." + self._tag + b".pyc")
        written = self._tree.names(directory).get(stem + b".py")
        source = None if written is None else self._tree.place(written)
        place = source if inode is None else self._tree.place(inode)
        if place is not None:
            yield Found(place, directory + b"/" + stem + b".py", False, source)

    def _natives(self, directory: bytes) -> dict[bytes, Inode]:
        """The shared libraries of a directory by the names of their modules."""
        found = self._native.get(directory)
        if found is None:
            names = self._tree.names(directory)
            found = {
                name.partition(b".")[0]: inode
                for name, inode in names.items()
                if name.endswith(b".so")
            }
            self._native[directory] = found
        return found
