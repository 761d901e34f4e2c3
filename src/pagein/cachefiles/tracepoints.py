"""Trace events of the kernel half, under the names of the kernel's tracepoints.

The names and the short names of fields are those of include/trace/events/cachefiles.h, so that who
knows the one log reads the other (docs/events.md has the table). Fields that are numbers of kernel
memory are left out, and `key`, the cookie's, stands where the kernel has nothing better than `o`.

Off, an event costs one look at `trace.on`, as a tracepoint costs a jump that is not taken: nothing
is computed, nothing is kept, no memory and no system call is used::

    if trace.on:
        trace.event(ONDEMAND_CREAD, obj.cookie_key, msg_id)

On, the last `CAPACITY` events are kept in memory, and who wants them asks (`pagein events show`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

CAPACITY: Final = 16_384
"""Events that are kept; older ones are counted and forgotten."""


@dataclass(frozen=True, slots=True)
class Event:
    """One kind of event: its name without `cachefiles_`, and its fields behind the object's."""

    name: str
    fields: tuple[str, ...]
    when: str
    """What has happened, for the table in the docs."""


REF = Event("ref", ("u", "why"), "an object is made, looked up, withdrawn, or gets or loses an fd")
LOOKUP = Event("lookup", ("e",), "its file was looked for in the cache; `e` is 0 or an errno")
MKDIR = Event("mkdir", ("path",), "a directory of the cache was made")
TMPFILE = Event("tmpfile", ("B",), "a new file was made, without a name yet")
LINK = Event("link", ("B",), "it was given its name")
UNLINK = Event("unlink", ("path", "w"), "a file was removed, and why")
RENAME = Event("rename", ("path", "w"), "something was moved to the graveyard, and why")
COHERENCY = Event("coherency", ("why",), "whether a file may be used for its object")
VOL_COHERENCY = Event("vol_coherency", ("path", "why"), "whether a directory may for its volume")
PREP_READ = Event("prep_read", ("why", "s", "l"), "a reader asks: found-hole or have-data")
READ = Event("read", ("s", "l"), "bytes of a cache file were read")
TRUNC = Event("trunc", ("why", "from", "to"), "a file was made longer or shorter")
MARK_ACTIVE = Event("mark_active", ("B",), "a cache file is in use")
MARK_INACTIVE = Event("mark_inactive", ("B",), "a cache file is in use no more")
VFS_ERROR = Event("vfs_error", ("where", "e"), "the cache's file system failed one call")
IO_ERROR = Event("io_error", ("where", "e"), "the cache's file system cannot be used any more")
ONDEMAND_OPEN = Event("ondemand_open", ("mid", "oid", "fd", "f"), "an OPEN was delivered")
ONDEMAND_COPEN = Event("ondemand_copen", ("mid", "l"), "a copen was taken; `l` is size or -errno")
ONDEMAND_CLOSE = Event("ondemand_close", ("mid", "oid"), "a CLOSE was delivered")
ONDEMAND_READ = Event("ondemand_read", ("mid", "oid", "s", "l"), "a READ was delivered")
ONDEMAND_CREAD = Event("ondemand_cread", ("mid",), "a CREAD was taken")
ONDEMAND_FD_WRITE = Event("ondemand_fd_write", ("s", "l"), "the daemon writes to an anonymous fd")
ONDEMAND_FD_RELEASE = Event("ondemand_fd_release", ("oid",), "its last fd of an object was closed")
WRITE = Event("write", ("s", "l"), "bytes of a cache file were written")

EVENTS: Final = (
    REF, LOOKUP, MKDIR, TMPFILE, LINK, UNLINK, RENAME, COHERENCY, VOL_COHERENCY, PREP_READ, READ,
    WRITE, TRUNC, MARK_ACTIVE, MARK_INACTIVE, VFS_ERROR, ONDEMAND_OPEN, ONDEMAND_COPEN,
    ONDEMAND_CLOSE, ONDEMAND_READ, ONDEMAND_CREAD, ONDEMAND_FD_WRITE, ONDEMAND_FD_RELEASE,
)  # fmt: skip
"""All of them, in the kernel's order."""

ABSENT: Final = {
    "mark_failed": "an inode that could not be marked is the kernel's; files are locked here",
    "io_error": "each failure is a vfs_error; none takes the whole cache down here",
}
"""The kernel's tracepoints that have no event here, and why."""


class Trace:
    """The events of this process, while they are switched on."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.on = False
        """Looked at before each event."""
        self.count = 0
        """Events since they were last switched on, kept or not."""
        self._ring: deque[tuple[float, Event, bytes, tuple[Any, ...]]] = deque(maxlen=capacity)

    def switch(self, on: bool) -> None:
        """Begin anew, or end; what is kept stays until the next beginning."""
        if on and not self.on:
            self._ring.clear()
            self.count = 0
        self.on = on

    def event(self, kind: Event, who: bytes, *values: int | bytes | str) -> None:
        """Keep an event of the object with the cookie key `who`, or of a path in the cache."""
        self.count += 1
        self._ring.append((time.monotonic(), kind, who, values))

    @property
    def lost(self) -> int:
        """How many events of this time were forgotten."""
        return self.count - len(self._ring)

    def records(self) -> Iterator[dict[str, Any]]:
        """What is kept, oldest first: `t` (monotonic, in seconds), `event`, `o` and fields."""
        for when, kind, who, values in list(self._ring):
            fields = {name: _text(value) for name, value in zip(kind.fields, values, strict=True)}
            yield {"t": when, "event": f"cachefiles_{kind.name}", "o": _text(who), **fields}


def line_of(record: dict[str, Any]) -> str:
    """A record as the kernel's trace would have it: numbers in hexadecimal, but for errno."""
    words = [f"{record['t']:.6f}: {record['event']}:"]
    for name, value in record.items():
        if name not in ("t", "event"):
            shown = f"{value:x}" if isinstance(value, int) and name != "e" else value
            words.append(f"{name}={shown}")
    return " ".join(words)


def _text(value: int | bytes | str) -> int | str:
    return value.decode("ascii", errors="backslashreplace") if isinstance(value, bytes) else value


trace: Final = Trace()
"""Of this process: as in the kernel, there is one."""


def table() -> str:
    """The events as a table for the docs."""
    lines = ["| event `cachefiles_...` | fields | when |", "|---|---|---|"]
    for event in EVENTS:
        fields = " ".join(f"`{name}`" for name in ("o", *event.fields))
        lines.append(f"| `{event.name}` | {fields} | {event.when} |")
    lines += [f"| `{name}` | | not here: {why} |" for name, why in ABSENT.items()]
    return "\n".join(lines)
