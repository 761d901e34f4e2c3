"""What commands pass on of registries: this process cannot read their user's files.

Credentials, and the hosts that stand for a registry with their keys and headers. They are kept in
memory, and in a directory of the runtime directory, which is on no disk, so that a user half that
was restarted goes on fetching. Never in the cache.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import msgspec

from pagein.images.auth import Credentials
from pagein.images.hosts import Host

_CREDENTIALS, _HOSTS = "credentials", "hosts"


class Secrets:
    """A keychain. `directory_fd` is where it is kept, -1 for nowhere; it stays the caller's."""

    def __init__(self, directory_fd: int) -> None:
        self._fd = directory_fd
        self._known: dict[str, Credentials] = {}
        self._hosts: dict[str, tuple[Host, ...]] = {}
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            data = self._read(_CREDENTIALS)
            self._known = msgspec.json.decode(data, type=dict[str, Credentials])
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            data = self._read(_HOSTS)
            self._hosts = msgspec.json.decode(data, type=dict[str, tuple[Host, ...]])

    async def look_up(self, host: str) -> Credentials | None:
        """The last credentials that a command passed on for the registry `host`."""
        return self._known.get(host)

    def hosts(self, registry: str) -> tuple[Host, ...]:
        """The last hosts that a command passed on for `registry`."""
        return self._hosts.get(registry, ())

    def keep(self, host: str, credentials: Credentials) -> None:
        """From now on these are for `host`. Blocks, shortly: the file is in memory."""
        if self._known.get(host) != credentials:
            self._known[host] = credentials
            self._write(_CREDENTIALS, self._known)

    def keep_hosts(self, registry: str, hosts: tuple[Host, ...]) -> None:
        """From now on these stand for `registry`. Blocks, shortly."""
        if self.hosts(registry) != hosts:
            self._hosts[registry] = hosts
            self._write(_HOSTS, self._hosts)

    def _write(self, name: str, content: Any) -> None:
        if self._fd < 0:
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        new = f"{name}.new"
        fd = os.open(new, flags, 0o600, dir_fd=self._fd)
        with os.fdopen(fd, "wb") as file:
            file.write(msgspec.json.encode(content))
        os.rename(new, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def _read(self, name: str) -> bytes:
        if self._fd < 0:
            return b"{}"
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        with os.fdopen(fd, "rb") as file:
            return file.read()
