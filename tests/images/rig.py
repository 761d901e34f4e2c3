"""What the tests of sources share."""

import contextlib
from collections.abc import AsyncIterator, Awaitable

import pytest
from tests.images.processes import PASSWORD, USER
from tests.images.servers import FakeRegistry, running

from pagein.images.auth import Credentials
from pagein.images.connections import Connections
from pagein.images.manifest import Descriptor
from pagein.images.registry import RegistrySource
from pagein.images.source import ImageSource, open_source
from pagein.origins.base import OriginError

PATIENT = 60.0
INDEX_TYPE = "application/vnd.pagein.test.v1"


class Keys:
    """A keychain of one pair, or of nothing; counts."""

    def __init__(self, credentials: Credentials | None = None) -> None:
        self.credentials = credentials
        self.asked: list[str] = []

    async def look_up(self, host: str) -> Credentials | None:
        self.asked.append(host)
        return self.credentials


NOBODY = Keys()
ANN = Credentials(USER, PASSWORD)


@contextlib.asynccontextmanager
async def opened(
    name: str, keys: Keys = NOBODY, *, timeout: float = PATIENT, plain_http: bool | None = None
) -> AsyncIterator[ImageSource]:
    connections = Connections(keys, timeout=timeout)
    source = open_source(name, connections, plain_http=plain_http)
    try:
        yield source
    finally:
        await source.close()
        await connections.close()


@contextlib.asynccontextmanager
async def pulling(
    registry: FakeRegistry, keys: Keys = NOBODY, *, wanted: str = ":v1", timeout: float = PATIENT
) -> AsyncIterator[RegistrySource]:
    """A source of `app` in a running fake registry."""
    async with (
        running(registry) as host,
        opened(f"docker://{host}/app{wanted}", keys, timeout=timeout) as source,
    ):
        assert isinstance(source, RegistrySource)
        yield source


async def failure(call: Awaitable[object], source: object = "") -> OriginError:
    """The OriginError of `call`: one printable line that names the source."""
    with pytest.raises(OriginError) as caught:
        await call
    text = str(caught.value)
    assert text.isprintable(), text
    assert str(source) in text
    return caught.value


def of(descriptor: Descriptor, **changes: object) -> Descriptor:
    return Descriptor(
        **{
            "media_type": descriptor.media_type,
            "digest": descriptor.digest,
            "size": descriptor.size,
            **changes,  # type: ignore[arg-type]
        }
    )
