"""What commands pass on of registries: this process cannot read their user's files.

Credentials, and the hosts that stand for a registry with their keys and headers. They are kept in
memory, and in a directory of the runtime directory, which is on no disk, so that a user half that
was restarted goes on fetching. Never in the cache.
"""

from __future__ import annotations

import contextlib

import msgspec

from pagein.daemon.statefile import StateFile
from pagein.images.auth import Credentials
from pagein.images.hosts import Host


class Secrets:
    """A keychain. `directory_fd` is where it is kept, -1 for nowhere; it stays the caller's."""

    def __init__(self, directory_fd: int) -> None:
        self._known: dict[str, Credentials] = {}
        self._hosts: dict[str, tuple[Host, ...]] = {}
        self._known_file = StateFile(directory_fd, "credentials")
        self._hosts_file = StateFile(directory_fd, "hosts")
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            if (data := self._known_file.read()) is not None:
                self._known = msgspec.json.decode(data, type=dict[str, Credentials])
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            if (data := self._hosts_file.read()) is not None:
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
            self._known_file.write(msgspec.json.encode(self._known))

    def keep_hosts(self, registry: str, hosts: tuple[Host, ...]) -> None:
        """From now on these stand for `registry`. Blocks, shortly."""
        if self.hosts(registry) != hosts:
            self._hosts[registry] = hosts
            self._hosts_file.write(msgspec.json.encode(self._hosts))
