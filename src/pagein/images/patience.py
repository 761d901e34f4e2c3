"""Asking again while a layer is brought here and nobody reads it yet: there is no deadline then.

What may pass is asked for a few times in a row, with pauses. A server that goes on giving something
is gone on with; one that gives a few bytes at a time is given up, it would be asked for hours.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Final, TypeVar

from pagein.origins.base import Origin, OriginError
from pagein.origins.retry import Backoff

_TRIES: Final = 5  # in a row that brought less than _ENOUGH
_ENOUGH: Final = 256 << 10  # bytes
_FIRST, _MOST = 0.5, 4.0  # seconds, see Backoff

T = TypeVar("T")


class _Patience:
    """How often something failed in a row."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self.renew()

    def renew(self) -> None:
        """It did not quite fail."""
        self._failures = 0
        self._backoff = Backoff(_FIRST, _MOST)

    async def wait(self, problem: OriginError) -> None:
        """Pause before the next try; raises `problem` if there is none."""
        self._failures += 1
        later = problem.after is not None and problem.after > self._timeout
        if not problem.retry or self._failures == _TRIES or later:
            raise problem
        await asyncio.sleep(self._backoff.pause(problem.after))


async def patiently(call: Callable[[], Awaitable[T]], timeout: float) -> T:
    """What `call` returns, which is called again after what may pass.

    `timeout`: seconds that a server may ask to wait.
    """
    patience = _Patience(timeout)
    while True:
        try:
            return await call()
        except OriginError as problem:
            await patience.wait(problem)


async def whole(origin: Origin, size: int, timeout: float) -> AsyncGenerator[bytes, None]:
    """All `size` bytes of `origin`, in order, gone on with where a connection broke.

    `timeout` as of `patiently`. Raises OriginError.
    """
    patience = _Patience(timeout)
    done = 0
    while done < size:
        before = done
        try:
            async with aclosing(origin.stream(done, size - done)) as parts:  # type: ignore[type-var]
                async for part in parts:
                    done += len(part)
                    yield bytes(part)
        except OriginError as problem:
            if done - before >= _ENOUGH:
                patience.renew()
            await patience.wait(problem)
