"""Python's modules in an image: from a name to the files that an import of it reads (PEP 3147)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from posixpath import dirname

from pagein.erofs.inode import Inode
from pagein.images.foresight.tree import Place, Tree

_PROGRAM = re.compile(rb"python(3)\.(\d+)[a-z]*")
_PACKAGES = (b"site-packages", b"dist-packages")

FIRST = (b"encodings", b"encodings.aliases", b"encodings.utf_8", b"sitecustomize")
"""What an interpreter imports by itself."""

_FROZEN = frozenset(
    b"__main__ _collections_abc _sitebuiltins abc codecs genericpath importlib io ntpath os"
    b" posixpath runpy site stat zipimport".split()
)
_FROZEN_SINCE = 11
"""Modules that Python 3.11 and later have in the program (Python/frozen.c)."""


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

    def find(self, name: bytes, near: bytes = b"") -> list[tuple[Place, bool]]:
        """The files of a module and of the packages that it is in; `near` is looked at first.

        With each whether it is a shared library.
        """
        if name.partition(b".")[0] in self._frozen:
            return []
        for root in (near, *self.roots) if near else self.roots:
            if found := list(self._below(root, name.split(b"."))):
                return found
        return []

    def _below(self, directory: bytes, parts: list[bytes]) -> Iterator[tuple[Place, bool]]:
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
                if place is not None:
                    yield place, True
                return

    def _source(self, directory: bytes, stem: bytes) -> Iterator[tuple[Place, bool]]:
        """The compiled form of a module, or its source where there is none."""
        cached = self._tree.names(directory + b"/__pycache__")
        inode = cached.get(stem + b"." + self._tag + b".pyc")
        if inode is None:
            inode = self._tree.names(directory).get(stem + b".py")
        place = None if inode is None else self._tree.place(inode)
        if place is not None:
            yield place, False

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
