"""An http(s) URL as origin: ranged GETs, and a check of every answer before its first byte is used.

A server may ignore ranges, be swapped for another one, sit behind a cache that lies, or stop in
the middle. So an answer counts only if status, Content-Range, length and validators are all what
the identity and the request say (RFC 9110 14.4, 15.3.7); anything else is an OriginError. What
no header tells (a server that sends wrong bytes under right headers) is found by digests, not here.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from typing import ClassVar, NamedTuple, NoReturn

import aiohttp

from pagein.origins.base import Origin, OriginError, check_range, redact
from pagein.origins.health import Health
from pagein.origins.identity import Identity
from pagein.origins.mirrors import Waits, first_answer, in_order
from pagein.origins.retry import ATTEMPTS, Backoff, retry_after
from pagein.origins.session import BROKE_OFF, PASSING, Session, Target, send, timed_out

log = logging.getLogger("pagein.origins")

_MAX_REDIRECTS = 10
_NOBODY = {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH}
_CONTENT_RANGE = re.compile(r"bytes +(\d+)-(\d+)/(\d+|\*)", re.ASCII | re.IGNORECASE)
_NO_RANGES = "does not answer ranged requests: it has to be on a server that supports Range"
_CHANGED = "content changed since it was first read: mount or open it again"

# status: errno and advice. Statuses from 500 on, 408, 425 and 429 may pass (RFC 9110 15.6, 15.5.9).
_STATUS = {
    401: (errno.EACCES, "401 unauthorized: put user:password@ before the host, or fix them"),
    403: (errno.EACCES, "403 forbidden: check credentials, and whether a signed link has expired"),
    404: (errno.ENOENT, "404 not found: check the URL"),
    407: (errno.EACCES, "407: the proxy wants credentials"),
    410: (errno.ENOENT, "410 gone: the server no longer has it"),
    416: (errno.EIO, f"416, the range is not within the file: {_CHANGED}"),
    429: (errno.EIO, "429, the server says there are too many requests"),
}


class UrlPlace:
    """A URL at which the content is, the source's own or that of a mirror."""

    def __init__(self, target: Target, session: Session, *, mirror: bool = False) -> None:
        self.target = target
        self.mirror = mirror
        self.aside_until = 0.0
        self._session = session

    @property
    def server(self) -> str:
        """Scheme, host and port."""
        return self.target.server

    @property
    def health(self) -> Health:
        """Of the server."""
        return self._session.health(self.target.url)

    def prepare(self) -> None:
        """Have connections ready."""
        self._session.prepare(self.target)


class Served(NamedTuple):
    """An answer, who gave it, and how that server does."""

    name: str
    health: Health
    response: aiohttp.ClientResponse


class HttpOrigin(Origin):
    """The URL of `identity`, or its mirrors; each wait is some part of `timeout` seconds.

    `session` stays its owner's; with None the origin makes one at its first request and closes it.
    `name` is what errors call it, the URL if there is none.
    """

    changed: ClassVar[str] = _CHANGED
    """What errors say of other content than that of the identity."""

    def __init__(
        self,
        identity: Identity,
        session: Session | None,
        timeout: float,
        *,
        name: str | None = None,
    ) -> None:
        self._identity = identity
        self._target = Target(identity.source, name)
        self.server = str(self._target.url.origin())
        self._session = session
        self._own_session = session is None
        self._closed = False
        self._timeout = timeout
        self._places: list[UrlPlace] = []

    def __str__(self) -> str:
        return redact(self._target.source)

    async def size(self) -> int:
        """The size in bytes, as the identity has it."""
        return self._identity.size

    async def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`, all within `timeout` seconds, or OriginError."""
        try:
            async with asyncio.timeout(self._timeout):
                async with aclosing(self.stream(offset, length)) as pieces:
                    return b"".join([piece async for piece in pieces])
        except OriginError:
            raise
        except TimeoutError as exc:
            raise timed_out(self._target.source, self._timeout) from exc

    async def stream(self, offset: int, length: int) -> AsyncGenerator[bytes, None]:
        """The bytes as they arrive; nothing before the headers were checked, never too many.

        The deadline is for each wait; how long all of it may take is the caller's to say. After
        an OriginError in the middle, what was yielded before is right and the rest is missing.
        """
        check_range(self._target.source, offset, length, self._identity.size)
        if length == 0:
            return
        now = asyncio.get_running_loop().time
        async with self._ask(offset, length) as served:
            left = length
            # As they came: put together they would be copied once more.
            async for piece, _ in served.response.content.iter_chunks():
                if not piece:
                    continue
                if served.health.alive(now()):
                    log.warning("%s answers again", served.health.name)
                left -= len(piece)
                if left < 0:
                    self._fail(served.name, f"sent more than the {length} bytes it was asked for")
                yield piece
            if left:
                self._fail(served.name, BROKE_OFF, retry=True)

    def prepare(self) -> None:
        """Connections are made ahead, to the server that will be asked."""
        with suppress(OriginError):
            in_order(self._all_places())[0].prepare()

    async def close(self) -> None:
        """Close the session if it is the origin's own; later reads raise OriginError."""
        self._closed = True
        if self._own_session and self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def _ask(self, offset: int, length: int) -> AsyncIterator[Served]:
        """A checked answer to a GET of a range; where else bytes are asked for, overridden."""

        def get(place: UrlPlace, waits: Waits) -> AbstractAsyncContextManager[Served]:
            return self._get(place, waits, offset, length)

        async with first_answer(self._all_places(), get, self._timeout) as (_, served):
            yield served

    @asynccontextmanager
    async def _get(
        self, place: UrlPlace, waits: Waits, offset: int, length: int
    ) -> AsyncIterator[Served]:
        session = self._usable_session()
        async with _get(session, place.target, offset, length, waits.read, waits.dial) as response:
            self._check(place.target.source, response, offset, length, mirror=place.mirror)
            yield Served(place.target.source, place.health, response)

    def _all_places(self) -> list[UrlPlace]:
        session = self._usable_session()
        if not self._places:
            mirrors = [Target(url) for url in self._identity.mirrors]
            self._places = [UrlPlace(target, session, mirror=True) for target in mirrors]
            self._places.append(UrlPlace(self._target, session))
        return self._places

    def _usable_session(self) -> Session:
        if self._closed or (self._session is not None and self._session.closed):
            raise OriginError.of(self._target.source, "the origin is closed", errno=errno.EBADF)
        if self._session is None:
            self._session = Session()
        return self._session

    def _check(
        self,
        source: str,
        response: aiohttp.ClientResponse,
        offset: int,
        length: int,
        *,
        mirror: bool = False,
    ) -> None:
        wanted = self._identity
        if response.status in (200, 206):
            # Before the range is looked at: a changed file is the better explanation of both.
            self._check_validator(source, response, "ETag", wanted.etag)
            # A copy may be younger; if it has the same ETag that says nothing.
            if not mirror or wanted.etag is None:
                self._check_validator(source, response, "Last-Modified", wanted.last_modified)
        first, last, total = _content_range(source, response)
        if total is not None and total != wanted.size:
            self._fail(source, f"{self.changed} (size {total}, was {wanted.size})")
        if (first, last) != (offset, offset + length - 1):
            asked = f"{offset}-{offset + length - 1}"
            self._fail(source, f"answered with bytes {first}-{last}, not {asked}")
        self._check_length(source, response, length)

    def _check_validator(
        self, source: str, response: aiohttp.ClientResponse, name: str, wanted: str | None
    ) -> None:
        found = response.headers.get(name)
        if wanted is not None and found != wanted:
            self._fail(source, f"{self.changed} ({name} {found!r}, was {wanted!r})")

    def _check_length(self, source: str, response: aiohttp.ClientResponse, length: int) -> None:
        announced = response.content_length
        if announced is not None and announced < length:
            cause = f"announced {announced} bytes of the {length} asked for"
            self._fail(source, cause, retry=True)
        if announced is not None and announced > length:
            cause = f"announced {announced} bytes, more than the {length} asked for"
            self._fail(source, cause)

    def _fail(self, source: str, cause: str, *, retry: bool = False) -> NoReturn:
        raise OriginError.of(source, cause, retry=retry)


async def resolve_http(source: str, *, timeout: float, session: Session | None = None) -> Identity:
    """The identity of `source`, from the answer to a GET of its first byte, within `timeout` s.

    A HEAD would be one byte cheaper, and would not show whether the server honours ranges.
    """
    target = Target(source)
    used = Session() if session is None else session
    try:
        async with asyncio.timeout(timeout):
            return await _ask_patiently(target, used, timeout)
    except OriginError:
        raise
    except TimeoutError as exc:
        raise timed_out(source, timeout) from exc
    finally:
        if session is None:
            await used.close()


async def _ask_patiently(target: Target, session: Session, timeout: float) -> Identity:
    """Again after what may pass, if there is a server at all; a start need not wait for one."""
    backoff = Backoff()
    for _ in range(ATTEMPTS - 1):
        try:
            return await _ask_identity(target, session, timeout)
        except OriginError as problem:
            if not problem.retry or problem.errno in _NOBODY or (problem.after or 0) > timeout:
                raise
            await asyncio.sleep(backoff.pause(problem.after))
    return await _ask_identity(target, session, timeout)


async def _ask_identity(target: Target, session: Session, timeout: float) -> Identity:
    async with _get(session, target, 0, 1, timeout) as response:
        _check_not_empty(target.source, response)
        first, last, size = _content_range(target.source, response)
        if (first, last) != (0, 0):
            raise OriginError.of(target.source, f"answered with bytes {first}-{last}, not 0-0")
        if size is None:
            raise OriginError.of(target.source, "does not tell the size of the file")
        # The byte itself is of no use; taking it lets the connection serve the next request.
        if len(await response.content.read(2)) != 1:
            raise OriginError.of(target.source, BROKE_OFF, retry=True)
        headers = response.headers
        return Identity(
            source=target.source,
            size=size,
            etag=headers.get("ETag"),
            last_modified=headers.get("Last-Modified"),
        )


def _check_not_empty(source: str, response: aiohttp.ClientResponse) -> None:
    """An empty file has no first byte: 416 with its size, or 200 with no body (RFC 9110 14.4)."""
    refused = response.status == 416 and response.headers.get("Content-Range") == "bytes */0"
    if refused or (response.status == 200 and response.content_length == 0):
        raise OriginError.of(source, "is empty: nothing to serve", errno=errno.EINVAL)


def _content_range(source: str, response: aiohttp.ClientResponse) -> tuple[int, int, int | None]:
    """First byte, last byte and total (None: not told) of a good 206; OriginError for others."""
    _check_status(source, response)
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        cause = f"sends its bytes encoded ({encoding}) although that was not asked for"
        raise OriginError.of(source, cause)
    header = response.headers.get("Content-Range", "")
    match = _CONTENT_RANGE.fullmatch(header)
    if match is None:
        raise OriginError.of(source, f"answered a range with Content-Range {header!r}")
    total = None if match[3] == "*" else int(match[3])
    return int(match[1]), int(match[2]), total


def _check_status(source: str, response: aiohttp.ClientResponse) -> None:
    status = response.status
    if status == 206:
        return
    if status == 200:
        raise OriginError.of(source, _NO_RANGES, errno=errno.EOPNOTSUPP)
    number, cause = _STATUS.get(status, (errno.EIO, f"the server answered {status}"))
    passing = status >= 500 or status in PASSING
    after = retry_after(response.headers) if passing else None
    if after is not None:
        cause += f", and asks to come back in {after:.0f} s"
    raise OriginError.of(source, cause, errno=number, retry=passing, after=after)


@asynccontextmanager
async def _get(
    session: Session,
    target: Target,
    offset: int,
    length: int,
    timeout: float,
    dial: float | None = None,
) -> AsyncIterator[aiohttp.ClientResponse]:
    """The answer to a GET of a range; what goes wrong until the block is left is an OriginError."""
    headers = {"Range": f"bytes={offset}-{offset + length - 1}"}
    async with send(
        session, "GET", target, timeout, headers=headers, redirects=_MAX_REDIRECTS, dial=dial
    ) as response:
        yield response
