"""A cache object: what the kernel calls `struct cachefiles_object`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from pagein.cachefiles.backing import BackingFile
from pagein.protocol.states import ObjectEvent, ObjectState, next_object_state

NEVER_OPENED = 0
FD_CLOSED = -1


@dataclass(eq=False, slots=True)
class CachefilesObject:
    """One cache file in use, its state in the on-demand protocol, and its anonymous fds."""

    volume_key: bytes
    cookie_key: bytes
    path: bytes
    """Relative to the cache directory."""
    state: ObjectState = ObjectState.CLOSE
    ondemand_id: int = NEVER_OPENED
    """`object_id` of the last OPEN delivered; 0 before the first, -1 once its fds are closed."""
    size: int | None = None
    """Bytes, as the user daemon's copen told; None before."""
    file: BackingFile | None = None
    """None before copen and after withdrawal: writes are then answered ENOBUFS."""
    handles: set[int] = field(default_factory=set)
    """Open file descriptions of the anonymous file `ondemand_id`."""
    looking_up: asyncio.Event | None = field(default_factory=asyncio.Event)
    """None when the lookup that an OPEN belongs to has ended, well or badly."""
    worker: asyncio.Task[None] | None = None
    """Sends the OPEN of a reopening."""
    requests: int = 0
    """READ requests sent since the object was opened."""

    def event(self, event: ObjectEvent) -> None:
        """Go to the state that the table of `protocol.states` names."""
        self.state = next_object_state(self.state, event)

    def looked_up(self) -> None:
        """The lookup has ended: who waits for its file may go on."""
        if self.looking_up is not None:
            self.looking_up.set()
            self.looking_up = None

    @property
    def live_id(self) -> int | None:
        """The id under which its anonymous file can be opened now, or None."""
        return self.ondemand_id if self.ondemand_id > 0 else None
