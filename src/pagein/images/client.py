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

from pagein.images.auth import MAX_TOKEN_ANSWER, TokenRequest
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
from pagein.images.tokens import Keychain, Tokens
from pagein.origins.base import OriginError
from pagein.origins.http import Target, new_session, send

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
    """Speaks to the registry of `reference`; made and used on one event loop, and closed there.

    `plain_http`: True without TLS, False with; None for what docker does, TLS except to registries
    on this machine. No wait exceeds `timeout` seconds.
    """

    def __init__(
        self,
        reference: RegistryReference,
        *,
        keychain: Keychain,
        timeout: float,
        plain_http: bool | None = None,
    ) -> None:
        plain = reference.is_local if plain_http is None else plain_http
        scheme = "http" if plain else "https"
        self.source = str(reference)
        self.repository = Repository(f"{scheme}://{reference.server}", reference.repository)
        self.session = new_session()
        self.timeout = timeout
        self._tokens = Tokens(
            self.source,
            reference.host,
            keychain,
            self._ask_token,
            secure=not plain,
            timeout=timeout,
        )

    async def close(self) -> None:
        """Close all connections; twice is fine."""
        await self._tokens.close()
        await self.session.close()

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
                    header, fresh = await self._tokens.renew(
                        scope, action.refused, action.challenge
                    )
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

    @asynccontextmanager
    async def _send(self, request: Request) -> AsyncIterator[aiohttp.ClientResponse]:
        if self.session.closed:
            raise OriginError.of(self.source, "the source is closed", errno=errno.EBADF)
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

    async def _ask_token(self, request: TokenRequest) -> bytes:
        what = f"{self.source}: token from {_host(request.url)}"
        target = Target(request.url, what)
        method = "GET" if request.body is None else "POST"
        async with send(
            self.session,
            method,
            target,
            self.timeout,
            headers=request.headers,
            body=request.body,
        ) as response:
            body, _ = await read_body(response, MAX_TOKEN_ANSWER)
            if response.status == 200:
                return body
            status = response.status
        if 400 <= status < 500 and status != 429:
            cause = f"{status}: user, password or token were refused: docker login again"
            raise OriginError.of(what, cause, errno=errno.EACCES)
        raise OriginError.of(what, f"the server answered {status}", retry=status >= 429)


def lower_headers(response: aiohttp.ClientResponse) -> dict[str, str]:
    """The headers as `Answer` wants them; a repeated one is one list (RFC 9110 5.3)."""
    names = {name.lower() for name in response.headers}
    return {name: ", ".join(response.headers.getall(name)) for name in names}


async def read_body(response: aiohttp.ClientResponse, limit: int) -> tuple[bytes, bool]:
    """The body's first `limit` bytes, and whether there are more."""
    pieces = []
    left = limit
    async for piece in response.content.iter_any():
        pieces.append(piece[:left])
        if len(piece) > left:
            return b"".join(pieces), True
        left -= len(piece)
    return b"".join(pieces), False


def _host(url: str) -> str:
    return urlsplit(url).netloc
