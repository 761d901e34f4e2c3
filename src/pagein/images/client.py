"""The registry's protocol on sockets: carries out what `protocol.Exchange` says is next."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp

from pagein.images.connections import Connections, read_body
from pagein.images.paths import Repository
from pagein.images.protocol import (
    ATTEMPTS,
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
from pagein.origins.http import Target, send

SLOWEST = 64 << 10
"""Bytes per second that a body of known length has to come with, on average."""

_JITTER = 0.5  # of a pause, so that those who were refused together do not come back together


@dataclass(frozen=True, slots=True)
class Delivered:
    """The answer that counts, open until the block is left."""

    answer: Answer
    response: aiohttp.ClientResponse
    url: str
    away: bool


class RegistryClient:
    """Speaks to the registry of `reference` over `connections`, which stay their owner's.

    `plain_http`: True without TLS, False with; None for what docker does, TLS except to registries
    on this machine.
    """

    def __init__(
        self,
        reference: RegistryReference,
        connections: Connections,
        *,
        plain_http: bool | None = None,
    ) -> None:
        plain = reference.is_local if plain_http is None else plain_http
        scheme = "http" if plain else "https"
        self.source = str(reference)
        self.repository = Repository(f"{scheme}://{reference.server}", reference.repository)
        self.session = connections.session
        self.timeout = connections.timeout
        self._tokens = connections.tokens(reference.host, secure=not plain)

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
        attempts: int = ATTEMPTS,
    ) -> AsyncIterator[Delivered]:
        """The answer that `wanted` expects, or OriginError. With a `limit` its body was read."""
        scope = self.repository.scope(*actions)
        header, holds = self._tokens.held(scope)
        exchange = Exchange(self.source, wanted, header, attempts=attempts)
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
                    await asyncio.sleep(action.seconds * (1 + _JITTER * random.random()))
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
        if self.session.closed:
            raise OriginError.of(self.source, "the connections are closed", errno=errno.EBADF)
        target = Target(request.url, f"{self.source}: {request.what} ({_host(request.url)})")
        async with send(
            self.session,
            request.method,
            target,
            self.timeout,
            headers=request.headers,
            body=request.body,
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


def _host(url: str) -> str:
    return urlsplit(url).netloc
