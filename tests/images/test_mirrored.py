"""A registry with hosts before it: who is asked for what, and what each of them is told."""

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator

from aiohttp import web
from tests.images.documents import build
from tests.images.rig import INDEX_TYPE, NOBODY, PATIENT, failure
from tests.images.servers import FakeRegistry, Storage, running, serve

from pagein.images.artifacts import ArtifactBlob
from pagein.images.connections import Connections
from pagein.images.hosts import Host
from pagein.images.paths import Repository
from pagein.images.registry import RegistrySource
from pagein.images.source import ImageSource, open_source

IMAGE = build(b"mirrored", layers=2, size=20_000)


def registry_of(**members: object) -> FakeRegistry:
    registry = FakeRegistry(**members)  # type: ignore[arg-type]
    registry.add("v1", IMAGE)
    return registry


@contextlib.asynccontextmanager
async def pulling(registry: str, *hosts: Host) -> AsyncIterator[ImageSource]:
    connections = Connections(NOBODY, timeout=PATIENT, hosts=lambda name: hosts)
    source = open_source(f"docker://{registry}/app:v1", connections)
    try:
        yield source
    finally:
        await connections.close()


def test_headers_are_for_the_host_and_not_for_where_it_redirects_to() -> None:
    async def main() -> None:
        storage = Storage(IMAGE.blobs)
        mirror, registry = registry_of(storage=storage), registry_of()
        async with running(mirror) as one, running(registry) as two:
            host = Host(url=f"http://{one}", header=(("X-Key", "secret"),))
            async with pulling(two, host, Host()) as source:
                origin = source.open_blob(IMAGE.layer_descriptor(0))
                for _ in range(2):
                    assert await origin.read(5, 100) == IMAGE.layers[0][5:105]
                await source.resolve()
        assert {request.headers["X-Key"] for request in mirror.requests} == {"secret"}
        assert len(storage.requests) == 2
        assert not any("X-Key" in request.headers for request in storage.requests)
        assert registry.requests == []

    asyncio.run(main())


def test_a_mirror_is_told_which_registry_is_meant() -> None:
    it = Repository("https://m.example", "library/app", "/proxy/v2", "docker.io:443")
    assert it.url("blobs/x") == "https://m.example/proxy/v2/library/app/blobs/x?ns=docker.io:443"
    assert it.url("referrers/x?a=b").endswith("/referrers/x?a=b&ns=docker.io:443")
    assert Repository("https://r", "app").url("blobs/x") == "https://r/v2/app/blobs/x"


def test_what_is_pushed_goes_to_the_first_that_may() -> None:
    async def main() -> None:
        mirror, registry = registry_of(), registry_of()
        async with running(mirror) as one, running(registry) as two:
            host = Host(url=f"http://{one}", capabilities=("pull", "resolve"))
            async with pulling(two, host, Host()) as source:
                subject, _ = await source.resolve()
                blobs = [ArtifactBlob(INDEX_TYPE, b"index")]
                await source.push_artifact(subject, "application/x", blobs)
                assert {request.method for request in mirror.requests} == {"GET"}
                # The mirror has the image and no index of it: somebody else has one.
                assert len(await source.referrers(subject.digest, "application/x")) == 1

    asyncio.run(main())


def test_when_nobody_may_that_is_said() -> None:
    async def main() -> None:
        registry = registry_of()
        async with (
            running(registry) as host,
            pulling(host, Host(capabilities=("pull",))) as source,
        ):
            error = await failure(source.resolve(), source)
            assert error.errno == errno.EACCES
            assert "no host that hosts.toml has for it may resolve" in str(error)
            assert registry.requests == []

    asyncio.run(main())


def test_a_manifest_that_is_wrong_is_had_from_the_next() -> None:
    async def main() -> None:
        mirror, registry = registry_of(), registry_of()
        mirror.fault = lambda request: web.Response(
            body=b"{}", headers={"Content-Type": IMAGE.descriptor.media_type}
        )
        async with (
            running(mirror) as one,
            running(registry) as two,
            pulling(two, Host(url=f"http://{one}"), Host()) as source,
        ):
            assert await source.manifest(IMAGE.descriptor) == IMAGE.manifest
            mirror.requests.clear()
            assert await source.manifest(IMAGE.descriptor) == IMAGE.manifest
            assert mirror.requests == []  # it stands aside

    asyncio.run(main())


def test_all_dead_is_one_error_that_may_pass() -> None:
    async def main() -> None:
        hosts = Host(url="http://127.0.0.1:1"), Host()
        async with pulling("127.0.0.1:2", *hosts) as source:
            assert isinstance(source, RegistrySource)
            assert (await failure(source.resolve(), source)).retry
            assert (await failure(source.referrers(IMAGE.descriptor.digest, "x"), source)).retry
            origin = source.open_blob(IMAGE.layer_descriptor(0))
            assert (await failure(origin.read(0, 10), source)).retry

    asyncio.run(main())


def test_a_proxy_of_a_host_is_used_whatever_the_environment_says() -> None:
    async def main() -> None:
        registry = registry_of()
        asked: list[str] = []

        async def proxy(request: web.Request) -> web.StreamResponse:
            asked.append(request.raw_path)
            return await registry.handle(request)

        async with serve(proxy) as between:
            host = Host(url="http://mirror.example", proxy=f"http://{between}")
            async with pulling("r.example", host) as source:
                await source.resolve()
        assert asked == ["http://mirror.example/v2/app/manifests/v1?ns=r.example"]

    asyncio.run(main())
