"""Requests of http(s) servers: connections that are shared, and what is known of each server.

All that talks HTTP goes through `send`. So errors are told in one way, no wait is without an end,
and a server that is dead, or asks for a pause, is not asked (`health`).
"""

from __future__ import annotations

import asyncio
import base64
import errno
import io
import ipaddress
import logging
import os
import ssl
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, Self

import aiohttp
from yarl import URL

from pagein.origins.base import HostDown, OriginError
from pagein.origins.health import FAIL_AFTER, Attempt, Health, Refusal
from pagein.origins.retry import retry_after
from pagein.origins.spares import Count, Dialler

log = logging.getLogger("pagein.origins")

READ_BUFFER: Final = 1 << 20
"""Bytes of a body that may wait in memory, per connection, before the server is slowed down."""

BROKE_OFF: Final = "the connection was lost before the end of the body"
PASSING: Final = frozenset({408, 425, 429})
"""Statuses below 500 that may pass (RFC 9110 15.5.9, RFC 8470, RFC 6585)."""

_MAX_CONNECTIONS = 64
# Seconds that an idle connection is kept; nginx keeps it for 75. One that its server gave up
# meanwhile costs nothing but another try (RFC 9112 9.3.1), which aiohttp makes.
_IDLE_KEPT = 60.0
_MAX_SERVERS = 1024  # of which something is remembered
# What is the matter with this process or machine, not with a server.
_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EBADF, errno.ENOBUFS})


class Session:
    """What all http origins of the running event loop share; its owner closes it.

    `fail_after`: seconds of nothing but failures after which a server counts as dead.
    """

    def __init__(self, *, fail_after: float = FAIL_AFTER) -> None:
        self._fail_after = fail_after
        self._servers: dict[str, Health] = {}
        self._counts: dict[str, Count] = {}
        connector = aiohttp.TCPConnector(limit=_MAX_CONNECTIONS, keepalive_timeout=_IDLE_KEPT)
        self._dialler = Dialler(connector)
        self.client = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept-Encoding": "identity", "User-Agent": "pagein"},
            read_bufsize=READ_BUFFER,
            auto_decompress=False,
            # Signed links must be followed as they are written.
            requote_redirect_url=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self.client.closed

    async def close(self) -> None:
        """Close all connections; twice is fine."""
        await self._dialler.close()
        await self.client.close()

    def health(self, url: URL) -> Health:
        """What is known of the server of `url`."""
        name = str(url.origin())
        found = self._servers.get(name)
        if found is None:
            if len(self._servers) >= _MAX_SERVERS:
                del self._servers[next(iter(self._servers))]
            found = self._servers[name] = Health(self._fail_after, name=name)
        return found

    def count(self, url: URL) -> Count:
        """The connections to the server of `url`."""
        name = str(url.origin())
        if name not in self._counts and len(self._counts) >= _MAX_SERVERS:
            del self._counts[next(iter(self._counts))]
        return self._counts.setdefault(name, Count(_IDLE_KEPT))

    def prepare(self, target: Target) -> None:
        """Have connections ready for what will be asked of a server, if it does well."""
        now = asyncio.get_running_loop().time()
        if self.closed or self.health(target.url).rank(now) > (0, 0.0):
            return
        count = self.count(target.url)
        if many := count.lacking(now):
            how = {"proxy": target.proxy, "ssl": target.tls or True}
            self._dialler.dial(count, many, target.url, **how)

    def servers(self) -> list[dict[str, Any]]:
        """Every server that was asked, and how it does, for `pagein status`."""
        now = asyncio.get_running_loop().time()
        return [{"server": name, **each.status(now)} for name, each in self._servers.items()]


class Target:
    """A URL taken apart once: without credentials, their headers, its proxy."""

    def __init__(
        self, url_: str, source: str | None = None, *, tls: ssl.SSLContext | None = None
    ) -> None:
        """`tls`: how TLS is made sure of, if not by the system's certificates."""
        self.source = url_ if source is None else source
        """What errors call it."""
        self.tls = tls
        try:
            # What is plain ASCII is sent as it is written, so that a signed link stays valid.
            url = URL(url_, encoded=url_.isascii() and url_.isprintable())
            if not url.host:
                raise ValueError("no host")
            user, password = url.user or "", url.password or ""
            self.url = url.with_user(None)
            self.server = str(self.url.origin())
            """Scheme, host and port."""
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


class _Judge:
    """Tells the health of a server what became of one request."""

    def __init__(self, session: Session, target: Target) -> None:
        """HostDown, or another OriginError, if the request is not to be made."""
        self._loop = asyncio.get_running_loop()
        self._server = target.server
        self._health = session.health(target.url)
        begun = self._health.begin(self._loop.time())
        if isinstance(begun, Refusal):
            cause = f"{self._server} {begun.cause}"
            if not begun.down:
                raise OriginError.of(target.source, cause, retry=True, after=begun.seconds)
            cause += f" ({self._health.error}); it is asked again in {begun.seconds:.0f} s"
            raise HostDown.of(target.source, cause)
        self._attempt: Attempt = begun

    def answered(self, response: aiohttp.ClientResponse, error: OriginError | None) -> None:
        """There was an answer; `error` is what whoever looked at it thought of it."""
        status, now = response.status, self._loop.time()
        asked = retry_after(response.headers) if status in (429, 503) else None
        if status in PASSING or asked is not None:
            self._health.busy(self._attempt, now, asked)
        elif status >= 500:
            self.failed(f"the server answered {status}")
        elif error is not None and error.retry:
            self.failed(error.cause)
        elif self._health.good(self._attempt, now):
            log.warning("%s answers again", self._server)

    def failed(self, cause: str) -> None:
        """No answer, or none that counts."""
        if self._health.bad(self._attempt, self._loop.time(), cause):
            self._tell()

    def spoiled(self, error: OriginError) -> None:
        """There was no answer because of `error`."""
        if error.errno in _OURS or error.errno in (errno.EINVAL, errno.ELOOP):
            self._health.busy(self._attempt, self._loop.time(), None)  # not its fault
        else:
            self.failed(error.cause)

    def dropped(self, *, answering: bool) -> None:
        """Whoever asked gave up."""
        if self._health.dropped(self._attempt, self._loop.time(), answering=answering):
            self._tell()

    def _tell(self) -> None:
        text = "%s counts as dead: %s; what needs it fails at once until it answers again"
        log.error(text, self._server, self._health.error)


@asynccontextmanager
async def send(
    session: Session,
    method: str,
    target: Target,
    timeout: float,
    *,
    headers: Mapping[str, str],
    body: bytes | None = None,
    redirects: int = 0,
    dial: float | None = None,
) -> AsyncIterator[aiohttp.ClientResponse]:
    """The answer to one request; what goes wrong until the block is left is an OriginError.

    No wait for a connection, the headers or next bytes exceeds `timeout` seconds, none for a
    connection `dial`. With 0 `redirects` a redirect is an answer like others.
    """
    judge = _Judge(session, target)
    response: aiohttp.ClientResponse | None = None
    try:
        async with _request(session, method, target, timeout, headers, body, redirects, dial) as it:
            response = it
            try:
                yield response
            except Exception:
                # What still comes after an answer that was wrong is not the next one's.
                response.close()
                raise
    except OriginError as exc:
        if response is not None:
            judge.answered(response, exc)
        raise
    except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as exc:
        error = _error_of(target.source, exc, timeout, begun=response is not None)
        judge.spoiled(error)
        raise error from None
    except BaseException:
        judge.dropped(answering=response is not None)
        raise
    judge.answered(response, None)


@asynccontextmanager
async def _request(
    session: Session,
    method: str,
    target: Target,
    timeout: float,
    headers: Mapping[str, str],
    body: bytes | None,
    redirects: int,
    dial: float | None,
) -> AsyncIterator[aiohttp.ClientResponse]:
    waits = aiohttp.ClientTimeout(
        total=None,
        # The wait for one of our own connections is not the server's fault.
        connect=2 * timeout,
        sock_connect=timeout if dial is None else min(dial, timeout),
        sock_read=timeout,
    )
    with _counted(session.count(target.url)):
        async with session.client.request(
            method,
            target.url,
            headers={**target.headers, "Accept-Encoding": "identity", **headers},
            # From a file object it is sent in pieces, and may be sent again.
            data=None if body is None else io.BytesIO(body),
            timeout=waits,
            proxy=target.proxy,
            ssl=target.tls or True,
            allow_redirects=redirects > 0,
            max_redirects=max(redirects, 1),
            read_bufsize=READ_BUFFER,
        ) as response:
            yield response


@contextmanager
def _counted(count: Count) -> Iterator[None]:
    """Counts a connection while it is in use; what ends otherwise than well has lost it."""
    count.begin(asyncio.get_running_loop().time())
    lost = True
    try:
        yield
        lost = False
    finally:
        count.end(lost=lost)


def _error_of(source: str, exc: Exception, timeout: float, *, begun: bool) -> OriginError:
    if isinstance(exc, TimeoutError):
        return timed_out(source, timeout, begun=begun)
    return _translate(source, exc)


def timed_out(source: str, timeout: float, *, begun: bool = False) -> OriginError:
    """The error for a wait of `timeout` seconds; `begun`: the answer had begun."""
    cause = f"no data for {timeout:g} s" if begun else f"no answer within {timeout:g} s"
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
            cause, number, retry = BROKE_OFF, errno.EIO, True
        case _:
            cause, number, retry = "the connection was lost", errno.ECONNRESET, True
    return OriginError.of(source, cause, errno=number, retry=retry)
