"""What a container's command line says will be read. Pure."""

from __future__ import annotations

import itertools
import posixpath
from collections.abc import Iterator, Sequence
from typing import NamedTuple

PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs are looked for in an image that does not say."""

_ARGUMENTS = 16  # that are looked at
_LINE = 256  # bytes of a "#!" line


class Command(NamedTuple):
    """Arguments, the first one names the program; PATH; working directory."""

    words: tuple[bytes, ...]
    path: bytes = PATH
    directory: bytes = b"/"

    def programs(self) -> Iterator[bytes]:
        """Where the program may be, in the order in which it is looked for."""
        if not self.words:
            return
        name = self.words[0]
        if b"/" in name:
            yield self._absolute(name)
            return
        for directory in self.path.split(b":"):
            yield posixpath.join(self._absolute(directory), name)

    def files(self) -> Iterator[bytes]:
        """Arguments that may be names of files."""
        for word in self.words[1:_ARGUMENTS]:
            if word and not word.startswith(b"-") and b"\n" not in word:
                yield self._absolute(word)

    def after(self, option: bytes) -> bytes:
        """The argument after an option, or b""."""
        words = self.words[1:_ARGUMENTS]
        return next((b for a, b in itertools.pairwise(words) if a == option), b"")

    def script(self, path: bytes, head: bytes) -> Command | None:
        """The command that the script at `path`, which begins with `head`, stands for."""
        line = head[:_LINE].partition(b"\n")[0]
        words = line[2:].split(None, 1) if line.startswith(b"#!") else []
        if not words:
            return None
        if posixpath.basename(words[0]) == b"env":
            words = words[1].split()[:1] if len(words) > 1 else []
        return self._replace(words=(*words, path, *self.words[1:])) if words else None

    def _absolute(self, name: bytes) -> bytes:
        return posixpath.normpath(posixpath.join(b"/", self.directory, name))


def command_of(
    config: Sequence[str],
    default: Sequence[str],
    entrypoint: str | None,
    given: Sequence[str],
) -> tuple[bytes, ...]:
    """Entrypoint and command, as docker combines the image's own with those that are given."""
    first = list(config) if entrypoint is None else [entrypoint] if entrypoint else []
    rest = list(given) or (list(default) if entrypoint is None else [])
    return tuple(word.encode("utf-8", "surrogateescape") for word in first + rest)
