"""The registry's protocol on sockets: carries out what `protocol.Exchange` says is next."""

from __future__ import annotations

import asyncio
import copy
import errno
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from pagein.images.connections import Connections, read_body
from pagein.images.hosts import CAPABILITIES, Host
from pagein.images.paths import Repository
from pagein.images.protocol import (
    MAX_REFUSAL,
    Action,
    Answer,
    Authorize,
    Deliver,
    Exchange,
    Request,
    Send,
    Wait,
)
from pagein.images.reference import RegistryReference
from pagein.origins.base import OriginError
from pagein.origins.health import Health
from pagein.origins.mirrors import Waits
from pagein.origins.retry import ATTEMPTS
from pagein.origins.session import Target, send

SLOWEST = 64 << 10
"""Bytes per second that a body of known length has to come with, on average."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """The answer that counts, open until the block is left."""

    answer: Answer
    response: aiohttp.ClientResponse
    url: str
    away: bool


class RegistryClient:
    """Speaks to one server of `reference` over `connections`, which stay their owner's.

    `host`: that one; None for the registry itself as it is without any configuration.
    `plain_http`: True without TLS, False with; None for what docker does, TLS except to registries
    on this machine.
    """

    def __init__(
        self,
        reference: RegistryReference,
        connections: Connections,
        *,
        host: Host | None = None,
        plain_http: bool | None = None,
    ) -> None:
        base = host.url if host is not None else ""
        if not base:
            plain = reference.is_local if plain_http is None else plain_http
            base = f"{'http' if plain else 'https'}://{reference.server}"
        place = urlsplit(base)
        itself = place.netloc == reference.server
        self.source = str(reference) if itself else f"{reference} ({place.netloc})"
        self.repository = Repository(
            base,
            reference.repository,
            host.api if host is not None else "/v2",
            "" if itself else reference.host,
        )
        self.session = connections.session
        self.timeout = connections.timeout
        self.capabilities = CAPABILITIES if host is None else host.capabilities
        self.aside_until = 0.0
        self._host = host
        self._tls = connections.tls(host)
        self._dial = host.dial_timeout if host is not None else None
        self._url = URL(base)
        name = reference.host if itself else place.netloc
        self._tokens = connections.tokens(name, secure=place.scheme == "https", of=host)
        self._attempts = ATTEMPTS
        self._wait = self.timeout

    @property
    def server(self) -> str:
        """Scheme, host and port."""
        return self.repository.base

    @property
    def health(self) -> Health:
        """Of the server."""
        return self.session.health(self._url)

    def hasty(self, waits: Waits) -> RegistryClient:
        """The same, for one try with these waits: somebody else can be asked, or will be."""
        twin = copy.copy(self)
        twin._attempts = 1
        twin._wait = waits.read
        twin._dial = min(waits.dial, self._dial or waits.dial)
        return twin

    def prepare(self, url: str | None) -> None:
        """Have connections ready, to this server or to that of `url`, where it redirects to."""
        self.session.prepare(self._target(url or self.repository.base, self.source))

    def _target(self, url: str, what: str) -> Target:
        target = Target(url, what, tls=self._tls)
        if self._host is not None and self._host.proxy is not None:
            target.proxy = self._host.proxy
        return target

    async def fetch(
        self, wanted: Request, limit: int, *, actions: tuple[str, ...] = ("pull",)
    ) -> Answer:
        """The answer with its whole body; OriginError if that has more than `limit` bytes.

        All of it, pauses and tokens included, takes at most `timeout` seconds and what bodies of
        such a length take at SLOWEST.
        """
        allowed = self.timeout + (limit + len(wanted.body or b"")) / SLOWEST
        try:
            async with asyncio.timeout(allowed):
                async with self.open(wanted, actions=actions, limit=limit) as delivered:
                    return delivered.answer
        except TimeoutError:
            cause = f"{wanted.what}: not answered within {allowed:.0f} s"
            raise OriginError.of(self.source, cause, errno=errno.ETIMEDOUT, retry=True) from None

    @asynccontextmanager
    async def open(
        self,
        wanted: Request,
        *,
        actions: tuple[str, ...] = ("pull",),
        limit: int | None = None,
    ) -> AsyncIterator[Delivered]:
        """The answer that `wanted` expects, or OriginError. With a `limit` its body was read."""
        scope = self.repository.scope(*actions)
        header, holds = self._tokens.held(scope)
        own = dict(self._host.header) if self._host is not None else None
        exchange = Exchange(self.source, wanted, header, attempts=self._attempts, own=own)
        action: Action = exchange.start() if holds else Authorize(None, header)
        while True:
            judged = False
            try:
                if isinstance(action, Authorize):
                    header, fresh = await self._renew(scope, action)
                    judged = True
                    action = exchange.authorized(header, fresh=fresh)
                    continue
                if isinstance(action, Wait):
                    await asyncio.sleep(action.seconds + action.spread * random.random())
                    action = Send(action.request)
                assert isinstance(action, Send)
                async with self._send(action.request) as response:
                    answer = await self._read(response, wanted, limit)
                    judged = True
                    action = exchange.answered(answer)
                    if isinstance(action, Deliver):
                        yield Delivered(answer, response, action.url, action.away)
                        return
            except OriginError as exc:
                if judged:
                    raise
                action = exchange.lost(exc)

    async def _renew(self, scope: str, wanted: Authorize) -> tuple[str, bool]:
        try:
            return await self._tokens.renew(scope, wanted.refused, wanted.challenge)
        except OriginError as exc:
            # It is the same for all who wait for it: each says which image it was for.
            number = exc.errno or errno.EACCES
            raise OriginError.of(self.source, str(exc), errno=number, retry=exc.retry) from None

    @asynccontextmanager
    async def _send(self, request: Request) -> AsyncIterator[aiohttp.ClientResponse]:
        what = f"{self.source}: {request.what} ({urlsplit(request.url).netloc})"
        async with self.ask(request.method, request.url, what, request) as response:
            yield response

    @asynccontextmanager
    async def ask(
        self, method: str, url: str, what: str, request: Request
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request as this server, or where it redirects to, wants it; `what` is its name."""
        if self.session.closed:
            raise OriginError.of(self.source, "the connections are closed", errno=errno.EBADF)
        async with send(
            self.session,
            method,
            self._target(url, what),
            self._wait,
            headers=request.headers,
            body=request.body,
            dial=self._dial,
        ) as response:
            yield response

    async def _read(
        self, response: aiohttp.ClientResponse, wanted: Request, limit: int | None
    ) -> Answer:
        # The body of a refusal is read in any case: a connection with an unread body is lost.
        headers = lower_headers(response)
        if response.status not in wanted.expect:
            body, _ = await read_body(response, MAX_REFUSAL)
        elif limit is None:
            body = b""
        else:
            body, more = await read_body(response, limit)
            if more:
                raise OriginError.of(self.source, f"{wanted.what}: more than {limit} bytes")
        return Answer(response.status, headers, body)


def lower_headers(response: aiohttp.ClientResponse) -> dict[str, str]:
    """The headers as `Answer` wants them; a repeated one is one list (RFC 9110 5.3)."""
    names = {name.lower() for name in response.headers}
    return {name: ", ".join(response.headers.getall(name)) for name in names}
