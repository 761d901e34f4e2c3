"""What all sources of one event loop share: connections, and the tokens of each registry."""

from __future__ import annotations

import errno
from urllib.parse import urlsplit

import aiohttp

from pagein.images.auth import MAX_TOKEN_ANSWER, TokenRequest
from pagein.images.tokens import Keychain, Tokens
from pagein.origins.base import OriginError
from pagein.origins.http import Target, new_session, send


class Connections:
    """Made on the event loop that uses it; its owner closes it after the sources.

    `keychain` is asked for credentials when a registry wants some. No wait exceeds `timeout`
    seconds.
    """

    def __init__(self, keychain: Keychain, *, timeout: float) -> None:
        self.session = new_session()
        self.timeout = timeout
        self._keychain = keychain
        self._tokens: dict[tuple[str, bool], Tokens] = {}

    async def close(self) -> None:
        """Close all connections; twice is fine."""
        for tokens in self._tokens.values():
            await tokens.close()
        await self.session.close()

    def tokens(self, host: str, *, secure: bool) -> Tokens:
        """The tokens of the registry `host`, which is spoken to over TLS if `secure`."""
        key = (host, secure)
        if key not in self._tokens:
            self._tokens[key] = Tokens(
                host, self._keychain, self._ask_token, secure=secure, timeout=self.timeout
            )
        return self._tokens[key]

    async def _ask_token(self, request: TokenRequest) -> bytes:
        what = f"token from {urlsplit(request.url).netloc}"
        async with send(
            self.session,
            "GET" if request.body is None else "POST",
            Target(request.url, what),
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
