"""A blob in a registry as an origin of byte ranges.

Registries often redirect to a storage server, by a link that is signed and soon expires. Where a
read was redirected to is kept, so that the next reads go there at once; when the link is refused
the registry is asked again.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar

import aiohttp

from pagein.images.client import RegistryClient
from pagein.images.connections import read_body
from pagein.images.manifest import Descriptor
from pagein.images.protocol import MAX_REFUSAL
from pagein.origins.base import OriginError
from pagein.origins.http import HttpOrigin, Target, send
from pagein.origins.identity import Identity

# How storage says that a link no longer holds: Azure and S3 403, GCS 400, others 401, 404, 410.
_EXPIRED = frozenset({400, 401, 403, 404, 410})


class BlobOrigin(HttpOrigin):
    """The blob that `descriptor` names, of the size it says; `client` stays its owner's.

    A read tries once; whether to try again is for the caller, who has the deadline. What a range
    holds is not verified here: a digest is of the whole.
    """

    changed: ClassVar[str] = "is not the blob that the manifest names"

    def __init__(self, client: RegistryClient, descriptor: Descriptor) -> None:
        if descriptor.size == 0:
            cause = f"blob {descriptor.digest} is empty: nothing to serve"
            raise OriginError.of(client.source, cause, errno=errno.EINVAL)
        url = client.repository.url(f"blobs/{descriptor.digest}")
        name = f"{client.source}: blob {descriptor.digest}"
        identity = Identity(source=url, size=descriptor.size)
        super().__init__(identity, client.session, client.timeout, name=name)
        self._client = client
        self._digest = descriptor.digest
        self._link: str | None = None

    @asynccontextmanager
    async def _ask(self, offset: int, length: int) -> AsyncIterator[aiohttp.ClientResponse]:
        self._usable_session()
        wanted = self._client.repository.blob_range(self._digest, offset, length)
        if (link := self._link) is not None:
            # No Authorization: it is the registry's, and the link carries its own.
            target = Target(link, f"{self} (redirected)")
            good = False
            try:
                async with send(
                    self._client.session, "GET", target, self._timeout, headers=wanted.headers
                ) as response:
                    good = response.status in wanted.expect
                    if response.status not in _EXPIRED:
                        yield response
                        return
                    await read_body(response, MAX_REFUSAL)
            finally:
                # Another try, whoever makes it, gets another link: perhaps to another server.
                if not good and self._link == link:
                    self._link = None
        async with self._client.open(wanted, attempts=1) as delivered:
            self._link = delivered.url if delivered.away else None
            yield delivered.response
