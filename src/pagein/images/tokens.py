"""Authorization headers of one registry: kept as long as they hold, renewed once for all who ask.

A token that ends in the middle of many reads is refused to each of them; the first refusal starts
the renewal, the others wait for the same one. (Each fetching its own is how refresh storms begin.)
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from pagein.images.auth import (
    Challenge,
    Credentials,
    Grant,
    TokenRequest,
    basic,
    parse_token,
    ready_token,
    token_request,
)
from pagein.origins.base import OriginError


class Keychain(Protocol):
    """Where credentials come from; `dockerconfig.DockerConfig` is one."""

    async def look_up(self, host: str) -> Credentials | None:
        """The credentials for the registry `host` (with its port), or None; else OriginError."""


Ask = Callable[[TokenRequest], Awaitable[bytes]]
"""The body of a token server's answer, or OriginError."""


class Tokens:
    """The headers of the registry `host`, one a scope; errors do not name an image.

    `secure`: the registry is spoken to over TLS. A renewal takes at most `timeout` seconds.
    `clock` counts seconds and never goes back.
    """

    def __init__(
        self,
        host: str,
        keychain: Keychain,
        ask: Ask,
        *,
        secure: bool,
        timeout: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._keychain = keychain
        self._ask = ask
        self._secure = secure
        self._timeout = timeout
        self._clock = clock
        self._grants: dict[str, Grant] = {}
        self._challenges: dict[str, Challenge] = {}
        self._renewals: dict[str, asyncio.Task[Grant]] = {}

    def held(self, scope: str) -> tuple[str | None, bool]:
        """The header for `scope`, None before the first challenge; and whether it still holds."""
        grant = self._grants.get(scope)
        if grant is None:
            return None, True
        return grant.header, self._clock() < grant.renew_at

    async def renew(
        self, scope: str, refused: str | None, challenge: Challenge | None
    ) -> tuple[str, bool]:
        """A header other than `refused`, and whether it was made for this call; OriginError.

        `challenge` is what the registry asks for; None for the same as the last time.
        """
        header, holds = self.held(scope)
        if header is not None and header != refused and holds:
            return header, False
        renewal = self._renewals.get(scope)
        if renewal is None:
            if challenge is not None:
                self._challenges[scope] = challenge
            renewal = asyncio.get_running_loop().create_task(self._renew(scope))
            renewal.add_done_callback(_seen)
            self._renewals[scope] = renewal
        # One who gives up does not take it from the others.
        return (await asyncio.shield(renewal)).header, True

    async def close(self) -> None:
        """End renewals that still run."""
        running = list(self._renewals.values())
        for renewal in running:
            renewal.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _renew(self, scope: str) -> Grant:
        try:
            async with asyncio.timeout(self._timeout):
                grant = await self._new_grant(scope)
        except TimeoutError:
            cause = f"no credentials or token within {self._timeout:g} s"
            raise OriginError.of(self._host, cause, errno=errno.ETIMEDOUT, retry=True) from None
        finally:
            del self._renewals[scope]
        self._grants[scope] = grant
        return grant

    async def _new_grant(self, scope: str) -> Grant:
        challenge = self._challenges.get(scope)
        if challenge is None:
            cause = "the registry refuses, and does not say which credentials it wants"
            raise OriginError.of(self._host, cause, errno=errno.EACCES)
        credentials = await self._keychain.look_up(self._host)
        if challenge.scheme == "basic":
            if credentials is None or not credentials.username:
                cause = f"wants a user and a password: docker login {self._host}"
                raise OriginError.of(self._host, cause, errno=errno.EACCES)
            return Grant(basic(credentials))
        if credentials is not None and credentials.registry_token:
            return ready_token(self._host, credentials.registry_token)
        request = token_request(self._host, challenge, scope, credentials, secure=self._secure)
        return parse_token(self._host, await self._ask(request), self._clock())


def _seen(renewal: asyncio.Task[Grant]) -> None:
    """Whoever still waits gets the error; if nobody does it is no error of the loop's."""
    if not renewal.cancelled():
        renewal.exception()
