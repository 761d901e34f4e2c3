"""What all sources of one event loop share: connections, and the tokens of each registry."""

from __future__ import annotations

import errno
import functools
import ssl
from collections.abc import Callable
from urllib.parse import urlsplit

import aiohttp

from pagein.images.auth import MAX_TOKEN_ANSWER, TokenRequest
from pagein.images.hosts import Host
from pagein.images.tokens import Keychain, Tokens
from pagein.origins.base import OriginError
from pagein.origins.session import Session, Target, send

HostsOf = Callable[[str], tuple[Host, ...]]
"""The hosts that stand for a registry, in their order; none for itself alone."""


class Connections:
    """Made on the event loop that uses it; its owner closes it after the sources.

    `keychain` is asked for credentials when a registry wants some. No wait exceeds `timeout`
    seconds. `session` stays its owner's; without one there is an own one.
    """

    def __init__(
        self,
        keychain: Keychain,
        *,
        timeout: float,
        session: Session | None = None,
        hosts: HostsOf = lambda _: (),
    ) -> None:
        self.session = Session() if session is None else session
        self.timeout = timeout
        self.hosts = hosts
        self._own = session is None
        self._keychain = keychain
        self._tokens: dict[tuple[str, bool, Host | None], Tokens] = {}
        self._contexts: dict[Host, ssl.SSLContext | None] = {}

    async def close(self) -> None:
        """Close all connections; twice is fine."""
        for tokens in self._tokens.values():
            await tokens.close()
        if self._own:
            await self.session.close()

    def tokens(self, host: str, *, secure: bool, of: Host | None = None) -> Tokens:
        """The tokens of the registry `host`, which is spoken to over TLS if `secure`."""
        key = (host, secure, of)
        if key not in self._tokens:
            ask = functools.partial(self._ask_token, tls=self.tls(of))
            self._tokens[key] = Tokens(
                host, self._keychain, ask, secure=secure, timeout=self.timeout
            )
        return self._tokens[key]

    def tls(self, host: Host | None) -> ssl.SSLContext | None:
        """How TLS to `host` is made sure of, None as always. Raises OriginError."""
        if host is None:
            return None
        if host not in self._contexts:
            try:
                self._contexts[host] = host.tls()
            except (ssl.SSLError, OSError) as problem:
                cause = f"its certificates cannot be used: {problem}"
                name = host.url or "the registry"
                raise OriginError.of(name, cause, errno=errno.EINVAL) from None
        return self._contexts[host]

    async def _ask_token(self, request: TokenRequest, *, tls: ssl.SSLContext | None) -> bytes:
        what = f"token from {urlsplit(request.url).netloc}"
        async with send(
            self.session,
            "GET" if request.body is None else "POST",
            Target(request.url, what, tls=tls),
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
