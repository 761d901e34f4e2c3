"""Which blobs are to be completed in the background: what mounts asked for, and what holds for all.

A wish is one for a cookie key, and lasts until no object of the blob is open any more. A user half
that takes over finds the wishes of the one before it, and goes on when an object of the blob is
opened again, which the next READ does (facts cachefiles-kernel 10).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

import msgspec

from pagein.daemon.background import Background
from pagein.daemon.objects import Blob
from pagein.daemon.policy import OFF, parse_background
from pagein.daemon.statefile import StateFile

log = logging.getLogger("pagein.daemon")


class Wishes:
    """What of `background` is wanted for which blob."""

    def __init__(
        self,
        background: Background,
        file: StateFile,
        find: Callable[[bytes], Blob | None],
        *,
        default: str = OFF,
    ) -> None:
        """`find` gives the blob of a cookie key, if it is open; `default` is for the others."""
        self._background = background
        self._file = file
        self._find = find
        self._default = default
        self._wishes: dict[str, str] = {}
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            self._wishes = msgspec.json.decode(file.read() or b"{}", type=dict[str, str])

    def wish(self, cookie: str, text: str) -> None:
        """From now on this is for a blob: `off`, `idle` or a rate. Raises OSError for others."""
        parse_background(text)
        self._wishes[cookie] = text
        self._keep()
        blob = self._find(cookie.encode())
        if blob is not None:
            self._apply(blob)

    def opened(self, blob: Blob) -> None:
        """A blob was opened; what is missing is known when it was looked at."""
        if blob.seeding is not None:
            blob.seeding.add_done_callback(lambda _: self._apply(blob))

    def closed(self, blob: Blob) -> None:
        """Nobody has it open any more."""
        self._background.remove(blob.fill)
        if self._wishes.pop(blob.key[1].decode("utf-8", "replace"), None) is not None:
            self._keep()

    def _apply(self, blob: Blob) -> None:
        text = self._wishes.get(blob.key[1].decode("utf-8", "replace"), self._default)
        rate = parse_background(text)
        if rate is None or not blob.objects:
            self._background.remove(blob.fill)
        elif not blob.fill.complete:
            self._background.add(blob.fill, rate)

    def _keep(self) -> None:
        try:
            self._file.write(msgspec.json.encode(self._wishes))
        except OSError as problem:
            log.warning("who takes over will not know what is to be completed: %s", problem)
