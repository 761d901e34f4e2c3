"""The same content on several servers: who is asked, in which order, and what follows a failure.

The order is that of the configuration, but for servers that are in trouble: those come last, until
they had time to recover (`health`). A server that does not have the content, or has another one, is
passed over for a while, and only for that content.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from pagein.origins.base import HostDown, OriginError
from pagein.origins.health import Health

log = logging.getLogger("pagein.origins")

WAIT: Final = 0.4
"""The part of a read's deadline that one wait may take: there is time for another try."""
WAIT_OTHERS: Final = 0.25
"""The same while there is somebody else to ask."""
DIAL_TROUBLED: Final = 2.0
"""Seconds to connect to a server whose last request failed, while there is somebody else."""

LACKING: Final = 60.0
"""Seconds for which a server that does not have some content is not asked for that."""
FAILED: Final = 5.0
"""The same for one that did not answer, whatever became of its server."""
CHANGED: Final = 300.0
"""The same for one that has another content."""


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds: for a connection, and for headers or next bytes."""

    dial: float
    read: float
    others: bool
    """Whether somebody else will be asked if this fails."""


class Place(Protocol):
    """One of the servers, for one content."""

    aside_until: float

    @property
    def server(self) -> str:
        """Scheme, host and port."""

    @property
    def health(self) -> Health:
        """Of the server."""


P = TypeVar("P", bound=Place)
R = TypeVar("R")


def in_order(places: Sequence[P]) -> list[P]:
    """`places`, the one to be asked first first."""
    now = asyncio.get_running_loop().time()

    def rank(place: P) -> tuple[int, float]:
        own = (1, place.aside_until) if now < place.aside_until else (0, 0.0)
        return max(own, place.health.rank(now))

    return sorted(places, key=rank)


@asynccontextmanager
async def first_answer(
    places: Sequence[P],
    ask: Callable[[P, Waits], AbstractAsyncContextManager[R]],
    timeout: float,
) -> AsyncIterator[tuple[P, R]]:
    """What `ask` gives for the first place that has something; else OriginError.

    `timeout`, in seconds, is that of whoever reads.
    """
    async with AsyncExitStack() as stack:

        async def enter(place: P, waits: Waits) -> R:
            return await stack.enter_async_context(ask(place, waits))

        yield await first_of(places, enter, timeout)


async def first_of(
    places: Sequence[P], ask: Callable[[P, Waits], Awaitable[R]], timeout: float
) -> tuple[P, R]:
    """As `first_answer`, for what is over when it has been had."""
    order = in_order(places)
    errors: list[OriginError] = []
    for number, place in enumerate(order):
        others = number + 1 < len(order)
        try:
            return place, await ask(place, waits_for(place, timeout, others=others))
        except OriginError as error:
            errors.append(error)
            if others:
                _pass_over(place, error)
    raise worst_of(errors)


def waits_for(place: Place, timeout: float, *, others: bool) -> Waits:
    """How long `place` is waited for; `others`: somebody else may be asked."""
    read = timeout * (WAIT_OTHERS if others else WAIT)
    dial = min(read, DIAL_TROUBLED) if others and place.health.troubled else read
    return Waits(dial, read, others)


def worst_of(errors: Sequence[OriginError]) -> OriginError:
    """What to say if nobody gave anything: what may pass, rather than what will not."""
    hopeful = [error for error in errors if error.retry]
    alive = [error for error in errors if not isinstance(error, HostDown)]
    return (hopeful or alive or errors)[-1]


def _pass_over(place: Place, error: OriginError) -> None:
    now = asyncio.get_running_loop().time()
    if error.errno in (errno.ENOENT, errno.EACCES):
        place.aside_until = now + LACKING
    elif not error.retry and not isinstance(error, HostDown):
        place.aside_until = now + CHANGED
        log.warning("%s; asking somebody else", error)
        return
    else:
        place.aside_until = now + FAILED
    log.info("%s; asking somebody else", error)
