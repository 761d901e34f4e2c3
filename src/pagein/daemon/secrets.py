"""Credentials of registries that commands pass on: this process cannot read their user's files.

They are kept in memory, and in a directory of the runtime directory, which is on no disk, so that
a user half that was restarted goes on fetching. Never in the cache.
"""

from __future__ import annotations

import contextlib
import os

import msgspec

from pagein.images.auth import Credentials

_FILE, _NEW = "credentials", "credentials.new"


class Secrets:
    """A keychain. `directory_fd` is where it is kept, -1 for nowhere; it stays the caller's."""

    def __init__(self, directory_fd: int) -> None:
        self._fd = directory_fd
        self._known: dict[str, Credentials] = {}
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            self._known = msgspec.json.decode(self._read(), type=dict[str, Credentials])

    async def look_up(self, host: str) -> Credentials | None:
        """The last credentials that a command passed on for the registry `host`."""
        return self._known.get(host)

    def keep(self, host: str, credentials: Credentials) -> None:
        """From now on these are for `host`. Blocks, shortly: the file is in memory."""
        if self._known.get(host) == credentials:
            return
        self._known[host] = credentials
        if self._fd < 0:
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(_NEW, flags, 0o600, dir_fd=self._fd)
        with os.fdopen(fd, "wb") as file:
            file.write(msgspec.json.encode(self._known))
        os.rename(_NEW, _FILE, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def _read(self) -> bytes:
        if self._fd < 0:
            return b"{}"
        fd = os.open(_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        with os.fdopen(fd, "rb") as file:
            return file.read()
