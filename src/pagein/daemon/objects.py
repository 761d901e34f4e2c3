"""Which anonymous fds belong to which object, and which objects are the same blob.

An object_id names one OPEN: the same cache file opened again has a new one (facts cachefiles-kernel
4.2). What outlives it is the blob, found by its volume and cookie key: its Fill goes on while any
object of it is open. An object may have several fds, made by dup (seed: The OPEN Request); CREAD
works through any of them, and CLOSE means all of them.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator
from dataclasses import dataclass, field

from pagein.daemon.device import AnonFd
from pagein.daemon.fill import Fill
from pagein.origins.base import Origin

Key = tuple[bytes, bytes]
"""Volume key (without its NUL) and cookie key."""


@dataclass(slots=True, eq=False)
class Blob:
    """One cache file that some object has open; `size` is in bytes."""

    key: Key
    origin: Origin
    size: int
    fill: Fill
    objects: list[int] = field(default_factory=list)
    seeding: asyncio.Task[None] | None = None
    prefetched: int = 0
    """Bytes that a trace brought into the cache."""
    edge: int = -1  # end of the last READ that might take the shortcut; of the thread that hears

    @property
    def name(self) -> str:
        """Both keys as text, for the log."""
        return name_of(self.key)

    @property
    def simple(self) -> bool:
        """Whether the origin may have bytes at hand, and what is missing is known and only ours."""
        seeded = self.seeding is not None and self.seeding.done()
        return seeded and self.origin.instant and self.fill.claim is None


class ObjectTable:
    """object_id -> fds and blob; (volume, cookie) -> blob."""

    def __init__(self) -> None:
        self._fds: dict[int, list[AnonFd]] = {}
        self._blob_of: dict[int, Blob] = {}
        self._blobs: dict[Key, Blob] = {}

    def attach(self, object_id: int, blob: Blob, anon: AnonFd) -> None:
        """An OPEN of `blob` was delivered as `object_id`; the table owns `anon` from now on."""
        if object_id in self._fds:
            raise ValueError(f"object {object_id} is open already")
        self._fds[object_id] = [anon]
        self._blob_of[object_id] = blob
        self._blobs[blob.key] = blob
        blob.objects.append(object_id)

    def blob(self, object_id: int) -> Blob | None:
        """The blob of an object, or None for an id nobody knows."""
        return self._blob_of.get(object_id)

    def find(self, key: Key) -> Blob | None:
        """The blob of a volume and cookie key, if an object of it is open."""
        return self._blobs.get(key)

    def blobs(self) -> Iterator[Blob]:
        """Every blob that has an object."""
        return iter(list(self._blobs.values()))

    def ids(self) -> list[int]:
        """Every object."""
        return list(self._fds)

    def fd(self, object_id: int) -> AnonFd:
        """One of an object's fds; OSError EBADF if it has none."""
        for anon in self._fds.get(object_id, ()):
            return anon
        raise OSError(errno.EBADF, f"object {object_id} is closed")

    def writer(self, blob: Blob) -> AnonFd:
        """An fd through which `blob` can be written: one of the object opened last."""
        if not blob.objects:
            raise OSError(errno.EBADF, f"{blob.name} is closed")
        return self.fd(blob.objects[-1])

    def dup(self, object_id: int) -> AnonFd:
        """A further fd of an object, for a worker; CLOSE closes it as well."""
        twin = self.fd(object_id).dup()
        self._fds[object_id].append(twin)
        return twin

    async def give_back(self, object_id: int, anon: AnonFd) -> None:
        """Close one fd of an object."""
        fds = self._fds.get(object_id, [])
        if anon in fds:
            fds.remove(anon)
        await anon.close()

    def detach(self, object_id: int) -> tuple[list[AnonFd], Blob | None]:
        """Forget an object: its fds, to be closed, and its blob if this was the last object."""
        fds = self._fds.pop(object_id, [])
        blob = self._blob_of.pop(object_id, None)
        if blob is None:
            return fds, None
        blob.objects.remove(object_id)
        if blob.objects:
            return fds, None
        if self._blobs.get(blob.key) is blob:
            del self._blobs[blob.key]
        return fds, blob


def readable(key: bytes) -> str:
    """A key as text: binary keys are allowed."""
    return key.decode("utf-8", "backslashreplace")


def name_of(key: Key) -> str:
    """What the log calls a blob."""
    return f"{readable(key[0])}/{readable(key[1])}"
