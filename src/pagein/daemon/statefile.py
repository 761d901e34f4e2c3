"""A file of the runtime directory that a user half leaves to the one that follows it.

The runtime directory is on no disk, and root's alone: it is reached by an fd that was opened while
there were privileges.
"""

from __future__ import annotations

import os


class StateFile:
    """The file `name` in a directory; without one nothing is kept."""

    def __init__(self, directory_fd: int, name: str) -> None:
        """`directory_fd` is -1 for nowhere; it stays the caller's."""
        self._fd = directory_fd
        self._name = name

    def read(self) -> bytes | None:
        """What was written last, or None. Raises OSError."""
        if self._fd < 0:
            return None
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(self._name, flags, dir_fd=self._fd)
        except FileNotFoundError:
            return None
        with os.fdopen(fd, "rb") as file:
            return file.read()

    def write(self, data: bytes) -> None:
        """Replace what it holds. Blocks, shortly: the file is in memory. Raises OSError."""
        if self._fd < 0:
            return
        new = f"{self._name}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(new, flags, 0o600, dir_fd=self._fd)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        os.rename(new, self._name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
