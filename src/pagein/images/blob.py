"""A blob in a registry as an origin of byte ranges.

Registries often redirect to a storage server, by a link that is signed and soon expires. Where a
read was redirected to is kept, so that the next reads go there at once; when the link is refused
the registry is asked again. Where there are mirrors, each redirects as it likes.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import ClassVar

import aiohttp
from yarl import URL

from pagein.images.client import RegistryClient
from pagein.images.connections import read_body
from pagein.images.manifest import Descriptor
from pagein.images.protocol import MAX_REFUSAL
from pagein.origins.base import OriginError
from pagein.origins.health import Health
from pagein.origins.http import HttpOrigin, Served
from pagein.origins.identity import Identity
from pagein.origins.mirrors import CHANGED, Waits, first_answer, in_order

log = logging.getLogger("pagein.origins")

# How storage says that a link no longer holds: Azure and S3 403, GCS 400, others 401, 404, 410.
_EXPIRED = frozenset({400, 401, 403, 404, 410})


class _Place:
    """A server that may have the blob, and where it redirects to."""

    def __init__(self, client: RegistryClient) -> None:
        self.client = client
        self.link: str | None = None
        self.aside_until = 0.0

    @property
    def server(self) -> str:
        """Scheme, host and port."""
        return self.client.server

    @property
    def health(self) -> Health:
        """Of the server."""
        return self.client.health


class BlobOrigin(HttpOrigin):
    """The blob that `descriptor` names, of the size it says; the first of `clients` that has it.

    The clients, one at least, stay their owner's. A read asks each once; whether to try again is
    for the caller, who has the deadline. What a range holds is not verified here: a digest is of
    the whole. Who does it says `forget` when bytes were wrong.
    """

    changed: ClassVar[str] = "is not the blob that the manifest names"

    def __init__(self, clients: Sequence[RegistryClient], descriptor: Descriptor) -> None:
        main = clients[-1]
        if descriptor.size == 0:
            cause = f"blob {descriptor.digest} is empty: nothing to serve"
            raise OriginError.of(main.source, cause, errno=errno.EINVAL)
        url = main.repository.url(f"blobs/{descriptor.digest}")
        name = f"{main.source}: blob {descriptor.digest}"
        identity = Identity(source=url, size=descriptor.size)
        super().__init__(identity, main.session, main.timeout, name=name)
        self._digest = descriptor.digest
        self._servers = [_Place(client) for client in clients]
        self._gave: set[_Place] = set()

    def forget(self) -> bool:
        """Wrong bytes came: who gave some stands aside; whether there is somebody else to ask."""
        now = asyncio.get_running_loop().time()
        gave, self._gave = self._gave, set()
        if len(self._servers) == 1:
            return False
        for place in gave:
            log.warning(
                "%s: wrong bytes of blob %s; it stands aside", place.client.source, self._digest
            )
            place.aside_until = now + CHANGED
            place.health.lied(now, f"wrong bytes of blob {self._digest}")
        return any(place.aside_until <= now for place in self._servers)

    def prepare(self) -> None:
        """Connections are made ahead, to the server that gives the bytes."""
        if not self._closed and not self._servers[-1].client.session.closed:
            place = in_order(self._servers)[0]
            place.client.prepare(place.link)

    @asynccontextmanager
    async def _ask(self, offset: int, length: int) -> AsyncIterator[Served]:
        self._usable_session()

        def get(place: _Place, waits: Waits) -> AbstractAsyncContextManager[Served]:
            return self._get_blob(place, waits, offset, length)

        async with first_answer(self._servers, get, self._timeout) as (place, served):
            self._gave.add(place)
            yield served

    @asynccontextmanager
    async def _get_blob(
        self, place: _Place, waits: Waits, offset: int, length: int
    ) -> AsyncIterator[Served]:
        client = place.client.hasty(waits)
        wanted = client.repository.blob_range(self._digest, offset, length)
        if (link := place.link) is not None:
            # No Authorization: it is the registry's, and the link carries its own.
            good = False
            try:
                what = f"{self._name(place)} (redirected)"
                async with client.ask("GET", link, what, wanted) as response:
                    good = response.status in wanted.expect
                    if response.status not in _EXPIRED:
                        self._check(self._name(place), response, offset, length)
                        yield self._served(place, link, response)
                        return
                    await read_body(response, MAX_REFUSAL)
            finally:
                # Another try, whoever makes it, gets another link: perhaps to another server.
                if not good and place.link == link:
                    place.link = None
        async with client.open(wanted) as delivered:
            place.link = delivered.url if delivered.away else None
            self._check(self._name(place), delivered.response, offset, length)
            yield self._served(place, delivered.url, delivered.response)

    def _served(self, place: _Place, url: str, response: aiohttp.ClientResponse) -> Served:
        # Of the server that gives the bytes: perhaps not the one that was asked first.
        return Served(self._name(place), place.client.session.health(URL(url)), response)

    def _name(self, place: _Place) -> str:
        return f"{place.client.source}: blob {self._digest}"
