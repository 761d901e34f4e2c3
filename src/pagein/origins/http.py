"""An http(s) URL as origin: ranged GETs, and a check of every answer before its first byte is used.

A server may ignore ranges, be swapped for another one, sit behind a cache that lies, or stop in
the middle. So an answer counts only if status, Content-Range, length and validators are all what
the identity and the request say (RFC 9110 14.4, 15.3.7); anything else is an OriginError. What
no header tells (a server that sends wrong bytes under right headers) is found by digests, not here.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import io
import ipaddress
import os
import re
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import ClassVar, NoReturn

import aiohttp
from yarl import URL

from pagein.origins.base import Origin, OriginError, check_range, redact
from pagein.origins.identity import Identity

READ_BUFFER = 1 << 20
"""Bytes of a body that may wait in memory, per connection, before the server is slowed down."""

_MAX_CONNECTIONS = 64
_MAX_REDIRECTS = 10
_CONTENT_RANGE = re.compile(r"bytes +(\d+)-(\d+)/(\d+|\*)", re.ASCII | re.IGNORECASE)
_NO_RANGES = "does not answer ranged requests: it has to be on a server that supports Range"
_CHANGED = "content changed since it was first read: mount or open it again"
_BROKE_OFF = "the connection was lost before the end of the body"

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
_PASSING = {408, 425, 429}


def new_session() -> aiohttp.ClientSession:
    """A session for all http origins of the running event loop; its owner closes it."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=_MAX_CONNECTIONS),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept-Encoding": "identity", "User-Agent": "pagein"},
        read_bufsize=READ_BUFFER,
        auto_decompress=False,
        # Signed links must be followed as they are written.
        requote_redirect_url=False,
    )


class HttpOrigin(Origin):
    """The URL of `identity`; no wait for connection, headers or next bytes exceeds `timeout` s.

    `session` stays its owner's; with None the origin makes one at its first request and closes it.
    `name` is what errors call it, the URL if there is none.
    """

    changed: ClassVar[str] = _CHANGED
    """What errors say of other content than that of the identity."""

    def __init__(
        self,
        identity: Identity,
        session: aiohttp.ClientSession | None,
        timeout: float,
        *,
        name: str | None = None,
    ) -> None:
        self._identity = identity
        self._target = Target(identity.source, name)
        self._session = session
        self._own_session = session is None
        self._closed = False
        self._timeout = timeout

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
            raise _timed_out(self._target.source, self._timeout) from exc

    async def stream(self, offset: int, length: int) -> AsyncGenerator[bytes, None]:
        """The bytes as they arrive; nothing before the headers were checked, never too many.

        The deadline is for each wait; how long all of it may take is the caller's to say. After
        an OriginError in the middle, what was yielded before is right and the rest is missing.
        """
        check_range(self._target.source, offset, length, self._identity.size)
        if length == 0:
            return
        async with self._ask(offset, length) as response:
            self._check(response, offset, length)
            left = length
            async for piece in response.content.iter_any():
                left -= len(piece)
                if left < 0:
                    self._fail(f"sent more than the {length} bytes it was asked for")
                yield piece
            if left:
                self._fail(_BROKE_OFF, retry=True)

    async def close(self) -> None:
        """Close the session if it is the origin's own; later reads raise OriginError."""
        self._closed = True
        if self._own_session and self._session is not None:
            await self._session.close()

    def _ask(self, offset: int, length: int) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """The answer to a GET of a range, unchecked; where else bytes are asked for, overridden."""
        return _get(self._usable_session(), self._target, offset, length, self._timeout)

    def _usable_session(self) -> aiohttp.ClientSession:
        if self._closed or (self._session is not None and self._session.closed):
            raise OriginError.of(self._target.source, "the origin is closed", errno=errno.EBADF)
        if self._session is None:
            self._session = new_session()
        return self._session

    def _check(self, response: aiohttp.ClientResponse, offset: int, length: int) -> None:
        wanted = self._identity
        if response.status in (200, 206):
            # Before the range is looked at: a changed file is the better explanation of both.
            self._check_validator(response, "ETag", wanted.etag)
            self._check_validator(response, "Last-Modified", wanted.last_modified)
        first, last, total = _content_range(self._target.source, response)
        if total is not None and total != wanted.size:
            self._fail(f"{self.changed} (size {total}, was {wanted.size})")
        if (first, last) != (offset, offset + length - 1):
            self._fail(f"answered with bytes {first}-{last}, not {offset}-{offset + length - 1}")
        self._check_length(response, length)

    def _check_validator(
        self, response: aiohttp.ClientResponse, name: str, wanted: str | None
    ) -> None:
        found = response.headers.get(name)
        if wanted is not None and found != wanted:
            self._fail(f"{self.changed} ({name} {found!r}, was {wanted!r})")

    def _check_length(self, response: aiohttp.ClientResponse, length: int) -> None:
        announced = response.content_length
        if announced is not None and announced < length:
            self._fail(f"announced {announced} bytes of the {length} asked for", retry=True)
        if announced is not None and announced > length:
            self._fail(f"announced {announced} bytes, more than the {length} asked for")

    def _fail(self, cause: str, *, retry: bool = False) -> NoReturn:
        raise OriginError.of(self._target.source, cause, retry=retry)


async def resolve_http(
    source: str, *, timeout: float, session: aiohttp.ClientSession | None = None
) -> Identity:
    """The identity of `source`, from the answer to a GET of its first byte, within `timeout` s.

    A HEAD would be one byte cheaper, and would not show whether the server honours ranges.
    """
    target = Target(source)
    used = new_session() if session is None else session
    try:
        async with asyncio.timeout(timeout):
            return await _ask_identity(target, used, timeout)
    except OriginError:
        raise
    except TimeoutError as exc:
        raise _timed_out(source, timeout) from exc
    finally:
        if session is None:
            await used.close()


async def _ask_identity(target: Target, session: aiohttp.ClientSession, timeout: float) -> Identity:
    async with _get(session, target, 0, 1, timeout) as response:
        _check_not_empty(target.source, response)
        first, last, size = _content_range(target.source, response)
        if (first, last) != (0, 0):
            raise OriginError.of(target.source, f"answered with bytes {first}-{last}, not 0-0")
        if size is None:
            raise OriginError.of(target.source, "does not tell the size of the file")
        # The byte itself is of no use; taking it lets the connection serve the next request.
        if len(await response.content.read(2)) != 1:
            raise OriginError.of(target.source, _BROKE_OFF, retry=True)
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
    _check_status(source, response.status)
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


def _check_status(source: str, status: int) -> None:
    if status == 206:
        return
    if status == 200:
        raise OriginError.of(source, _NO_RANGES, errno=errno.EOPNOTSUPP)
    number, cause = _STATUS.get(status, (errno.EIO, f"the server answered {status}"))
    raise OriginError.of(source, cause, errno=number, retry=status >= 500 or status in _PASSING)


class Target:
    """A URL taken apart once: without credentials, their headers, its proxy."""

    def __init__(self, url_: str, source: str | None = None) -> None:
        self.source = url_ if source is None else source
        """What errors call it."""
        try:
            # What is plain ASCII is sent as it is written, so that a signed link stays valid.
            url = URL(url_, encoded=url_.isascii() and url_.isprintable())
            if not url.host:
                raise ValueError("no host")
            user, password = url.user or "", url.password or ""
            self.url = url.with_user(None)
        except ValueError:
            # The cause would show the URL with its password.
            raise OriginError.of(self.source, "is not a valid URL", errno=errno.EINVAL) from None
        self.headers = _basic_auth(user, password) if user or password else {}
        self.proxy = _proxy(self.url)


def _basic_auth(user: str, password: str) -> dict[str, str]:
    """RFC 7617. A header, which aiohttp drops when a redirect leaves the server."""
    token = base64.b64encode(f"{user}:{password}".encode()).decode("ascii")
    return {"Authorization": f"Basic {token}"}


def _proxy(url: URL) -> str | None:
    """The proxy that http_proxy, https_proxy and no_proxy name; never one for this machine."""
    host = url.host or ""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if local or urllib.request.proxy_bypass(host):
        return None
    return urllib.request.getproxies().get(url.scheme)


@asynccontextmanager
async def _get(
    session: aiohttp.ClientSession, target: Target, offset: int, length: int, timeout: float
) -> AsyncIterator[aiohttp.ClientResponse]:
    """The answer to a GET of a range; what goes wrong until the block is left is an OriginError."""
    headers = {"Range": f"bytes={offset}-{offset + length - 1}"}
    async with send(
        session, "GET", target, timeout, headers=headers, redirects=_MAX_REDIRECTS
    ) as response:
        yield response


@asynccontextmanager
async def send(
    session: aiohttp.ClientSession,
    method: str,
    target: Target,
    timeout: float,
    *,
    headers: Mapping[str, str],
    body: bytes | None = None,
    redirects: int = 0,
) -> AsyncIterator[aiohttp.ClientResponse]:
    """The answer to one request; what goes wrong until the block is left is an OriginError.

    No wait for a connection, the headers or next bytes exceeds `timeout` seconds. With 0
    `redirects` a redirect is an answer like others.
    """
    waits = aiohttp.ClientTimeout(
        total=None, connect=timeout, sock_connect=timeout, sock_read=timeout
    )
    try:
        async with session.request(
            method,
            target.url,
            headers={**target.headers, "Accept-Encoding": "identity", **headers},
            # From a file object it is sent in pieces, and may be sent again.
            data=None if body is None else io.BytesIO(body),
            timeout=waits,
            proxy=target.proxy,
            allow_redirects=redirects > 0,
            max_redirects=max(redirects, 1),
            read_bufsize=READ_BUFFER,
        ) as response:
            try:
                yield response
            except Exception:
                # What still comes after an answer that was wrong is not the next one's.
                response.close()
                raise
    except OriginError:
        raise
    except TimeoutError:
        raise _timed_out(target.source, timeout) from None
    except (aiohttp.ClientError, OSError, ValueError) as exc:
        raise _translate(target.source, exc) from None


def _timed_out(source: str, timeout: float) -> OriginError:
    cause = f"no answer within {timeout:g} s"
    return OriginError.of(source, cause, errno=errno.ETIMEDOUT, retry=True)


def _translate(source: str, exc: Exception) -> OriginError:
    """The OriginError for what aiohttp raised, whose own text may hold a URL with its password."""
    match exc:
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ServerFingerprintMismatch():
            cause, number, retry = "its TLS certificate is not valid", errno.EPROTO, False
        case aiohttp.ClientSSLError():
            cause, number, retry = "TLS could not be set up", errno.EPROTO, True
        case aiohttp.ClientConnectorDNSError():
            cause, number, retry = "the host name is not known", errno.EHOSTUNREACH, True
        case aiohttp.ClientConnectorError():
            # No errno: asyncio's own error for a connection closed during the TLS handshake.
            number = exc.os_error.errno or errno.ECONNRESET
            cause = f"cannot connect: {os.strerror(number).lower()}: is the server running?"
            retry = True
        case aiohttp.TooManyRedirects():
            cause, number, retry = "redirects too many times", errno.ELOOP, False
        case aiohttp.InvalidURL() | aiohttp.NonHttpUrlClientError() | ValueError():
            cause, number, retry = "is, or redirects to, no valid URL", errno.EINVAL, False
        case aiohttp.ClientResponseError():
            # Perhaps what was left on the connection of the answer before.
            cause, number, retry = "the answer is not proper HTTP", errno.EPROTO, True
        case aiohttp.ClientPayloadError():
            cause, number, retry = _BROKE_OFF, errno.EIO, True
        case _:
            cause, number, retry = "the connection was lost", errno.ECONNRESET, True
    return OriginError.of(source, cause, errno=number, retry=retry)
