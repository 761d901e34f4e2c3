"""A registry's source against what docker-registry does not do: redirects, the API, few rounds."""

import asyncio
import errno
import json

import pytest
from aiohttp import web
from tests.images.documents import build, describe, dumps, index_of
from tests.images.rig import ANN, INDEX_TYPE, PATIENT, Keys, failure, opened, pulling
from tests.images.servers import FakeRegistry, Storage, TokenServer, basic_header, running

from pagein.images.artifacts import ArtifactBlob
from pagein.images.auth import Credentials
from pagein.images.connections import Connections
from pagein.images.manifest import OCI_INDEX, OCI_MANIFEST
from pagein.images.parallel import each
from pagein.images.paths import referrers_tag
from pagein.images.platforms import parse_platform
from pagein.images.registry import RegistrySource
from pagein.images.source import load_image, open_source

AMD64 = parse_platform("linux/amd64")
IMAGE = build(b"fake", layers=12, size=20_000)


def registry_of(**members: object) -> FakeRegistry:
    registry = FakeRegistry(**members)  # type: ignore[arg-type]
    registry.add("v1", IMAGE)
    registry.put("multi", OCI_INDEX, index_of({"linux/arm64": build(b"x"), "linux/amd64": IMAGE}))
    return registry


# ---- redirects ----------------------------------------------------------------------------------


@pytest.mark.parametrize("refusal", [400, 401, 403, 404, 410])
def test_a_link_is_used_until_it_expires_and_the_registry_is_asked_again(refusal: int) -> None:
    async def main() -> None:
        storage = Storage(IMAGE.blobs, uses=4, refusal=refusal)
        registry = registry_of(storage=storage, basic=True)
        async with pulling(registry, Keys(ANN)) as source:
            data = IMAGE.layers[0]
            origin = source.open_blob(IMAGE.layer_descriptor(0))
            for offset in range(0, 10_000, 1000):
                assert await origin.read(offset, 1000) == data[offset : offset + 1000]
            # 10 reads by links of 4 uses: three links, and one read of no answer for each refusal.
            asked = [request.headers.get("Authorization") for request in registry.requests]
            assert asked == [None] + [basic_header()] * 3
            assert len(storage.links) == 3
            assert len(storage.requests) == 12
            for request in storage.requests:
                assert "Authorization" not in request.headers
                assert "Cookie" not in request.headers
            assert await source.blob(IMAGE.layer_descriptor(1), 1 << 20) == IMAGE.layers[1]

    asyncio.run(main())


def test_storage_that_refuses_its_fresh_link_is_an_error() -> None:
    async def main() -> None:
        storage = Storage(IMAGE.blobs, uses=0)
        async with pulling(registry_of(storage=storage)) as source:
            origin = source.open_blob(IMAGE.layer_descriptor(0))
            error = await failure(origin.read(0, 10), source)
            assert (error.errno, error.retry) == (errno.EACCES, False)
            assert "403 by 127.0.0.1, where the registry has its content" in str(error)
            assert "Signature" not in str(error)

    asyncio.run(main())


def test_many_reads_at_once_through_links_that_expire() -> None:
    async def main() -> None:
        storage = Storage(IMAGE.blobs, uses=7)
        async with pulling(registry_of(storage=storage)) as source:
            data = IMAGE.layers[0]
            origin = source.open_blob(IMAGE.layer_descriptor(0))
            got: list[bytes] = []
            for start in range(0, 20_000, 5000):
                got += await each(origin.read(start + n * 500, 500) for n in range(10))
            assert b"".join(got) == data[:20_000]

    asyncio.run(main())


# ---- tokens -------------------------------------------------------------------------------------


@pytest.mark.parametrize("denial", [401, 403])
def test_a_token_that_ends_under_many_reads_is_renewed_once(denial: int) -> None:
    async def main() -> None:
        tokens = TokenServer()
        registry = registry_of(tokens=tokens, denial=denial)
        async with pulling(registry) as source:
            origin = source.open_blob(IMAGE.layer_descriptor(0))
            assert await origin.read(0, 10) == IMAGE.layers[0][:10]
            assert len(tokens.asked) == 1
            for times in (2, 3):
                tokens.valid.clear()
                got = await each(origin.read(n * 100, 100) for n in range(60))
                assert b"".join(got) == IMAGE.layers[0][:6000]
                assert len(tokens.asked) == times
            assert set(tokens.asked) == {"repository:app:pull"}

    asyncio.run(main())


def test_a_token_whose_time_has_come_is_renewed_before_it_is_refused() -> None:
    async def main() -> None:
        tokens = TokenServer()
        registry = registry_of(tokens=tokens)
        async with pulling(registry) as source:
            await source.resolve()
            now = asyncio.get_running_loop().time()
            source._clients[0]._tokens._clock = lambda: now + 3600
            registry.requests.clear()
            await each(source.resolve() for _ in range(20))
            assert len(tokens.asked) == 2
            assert len(registry.requests) == 20

    asyncio.run(main())


def test_images_of_one_repository_share_its_token() -> None:
    async def main() -> None:
        tokens = TokenServer()
        registry = registry_of(tokens=tokens)
        keys = Keys()
        async with running(registry) as host:
            connections = Connections(keys, timeout=PATIENT)
            try:
                sources = [
                    open_source(f"docker://{host}/app:{tag}", connections)
                    for tag in ("v1", "multi") * 5
                ]
                for times in (1, 2):
                    await each(source.resolve() for source in sources)
                    assert len(tokens.asked) == times
                    tokens.valid.clear()
            finally:
                await connections.close()
        assert len(keys.asked) == 2

    asyncio.run(main())


def test_an_identity_token_is_traded() -> None:
    async def main() -> None:
        tokens = TokenServer(anonymous=False, identity_token="refresh")
        keys = Keys(Credentials(identity_token="refresh"))
        async with pulling(registry_of(tokens=tokens), keys) as source:
            await source.resolve()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("status", "retry"), [(403, False), (302, False), (429, True), (503, True)]
)
def test_a_token_server_that_does_not_answer_so(status: int, retry: bool) -> None:
    async def main() -> None:
        tokens = TokenServer(status=status)
        async with pulling(registry_of(tokens=tokens)) as source:
            error = await failure(source.resolve(), source)
            assert error.retry is retry
            assert str(status) in str(error)

    asyncio.run(main())


# ---- few requests in sequence -------------------------------------------------------------------


@pytest.mark.parametrize("api", [False, True])
@pytest.mark.parametrize("authorized", [False, True])
def test_an_image_and_its_index_in_few_rounds(api: bool, authorized: bool) -> None:
    async def main() -> None:
        registry = registry_of(api=api, tokens=TokenServer() if authorized else None)
        async with running(registry) as host:
            name = f"docker://{host}/app:multi"
            async with opened(name) as source:
                for number in range(len(IMAGE.layers)):
                    blobs = [ArtifactBlob("a/b", b"index %d" % number)]
                    await source.push_artifact(IMAGE.descriptor, INDEX_TYPE, blobs)
            registry.rounds.deepest = 0
            registry.rounds.pause = 0.2  # all that runs at once meets in it
            async with opened(name) as source:
                image = await load_image(source, AMD64, INDEX_TYPE)
                layers = [artifact.layers[0] for _, artifact in image.artifacts]
                got = await each(source.blob(layer, 100) for layer in layers)
                assert got == [b"index %d" % n for n in range(len(IMAGE.layers))]
        assert registry.rounds.deepest == (7 if authorized else 5)

    asyncio.run(main())


# ---- referrers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("api", [False, True])
def test_referrers_of_the_type_only_by_pages_or_by_the_tag(api: bool) -> None:
    async def main() -> None:
        registry = registry_of(api=api, page=2)
        async with pulling(registry) as source:
            subject = IMAGE.descriptor
            assert await source.referrers(subject.digest, INDEX_TYPE) == []
            pushed = [
                await source.push_artifact(subject, kind, [ArtifactBlob("a/b", bytes([n]))])
                for n, kind in enumerate([INDEX_TYPE, "x/y", INDEX_TYPE, INDEX_TYPE, "x/y"])
            ]
            found = await source.referrers(subject.digest, INDEX_TYPE)
            assert found == [pushed[0], pushed[2], pushed[3]]
            tag = f"PUT /v2/app/manifests/{referrers_tag(subject.digest)}"
            assert (tag in registry.paths()) is not api  # the API's registry does that itself
            # Now it is known which way to go.
            registry.requests.clear()
            await source.referrers(subject.digest, INDEX_TYPE)
            kinds = {request.path.split("/")[3] for request in registry.requests}
            assert kinds == ({"referrers"} if api else {"manifests"})

    asyncio.run(main())


def test_pages_without_end_and_pages_elsewhere() -> None:
    async def main() -> None:
        registry = registry_of(api=True, page=0)
        tag = referrers_tag(IMAGE.descriptor.digest)
        entries = [describe(b"x", OCI_MANIFEST)]
        registry.put(tag, OCI_INDEX, dumps({"schemaVersion": 2, "manifests": entries}))
        async with pulling(registry) as source:
            error = await failure(source.referrers(IMAGE.descriptor.digest, INDEX_TYPE), source)
            assert "have no end" in str(error)

        def elsewhere(request: web.Request) -> web.Response:
            link = {"Link": '<http://127.0.0.1:1/>; rel="next"', "Content-Type": OCI_INDEX}
            return web.Response(body=b'{"schemaVersion":2,"manifests":[]}', headers=link)

        registry.fault = elsewhere
        async with pulling(registry) as source:
            error = await failure(source.referrers(IMAGE.descriptor.digest, INDEX_TYPE), source)
            assert "another server" in str(error)

    asyncio.run(main())


def test_a_tag_that_others_always_win() -> None:
    async def main() -> None:
        async with pulling(registry_of(forgetful=True)) as source:
            blobs = [ArtifactBlob("a/b", b"x")]
            error = await failure(source.push_artifact(IMAGE.descriptor, "x/y", blobs), source)
            assert "is written by others" in str(error)
            assert error.retry

    asyncio.run(main())


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 405, 406, 501])
def test_how_registries_say_that_they_have_no_api(status: int) -> None:
    def without(request: web.Request) -> web.Response | None:
        odd = "/referrers/" in request.path
        return web.Response(status=status, text="<html>") if odd else None

    async def main() -> None:
        async with pulling(registry_of(fault=without)) as source:
            pushed = await source.push_artifact(IMAGE.descriptor, "x/y", [ArtifactBlob("a/b", b"")])
            for _ in range(2):
                assert await source.referrers(IMAGE.descriptor.digest, "x/y") == [pushed]

    asyncio.run(main())


def test_an_api_that_fails_is_no_absence() -> None:
    def broken(request: web.Request) -> web.Response | None:
        return web.Response(status=503) if "/referrers/" in request.path else None

    async def main() -> None:
        async with pulling(registry_of(fault=broken)) as source:
            assert (await failure(source.referrers(IMAGE.descriptor.digest, "x/y"), source)).retry

    asyncio.run(main())


def test_a_tag_that_is_no_index() -> None:
    async def main() -> None:
        registry = registry_of()
        tag = referrers_tag(IMAGE.descriptor.digest)
        registry.put(tag, OCI_MANIFEST, IMAGE.manifest)
        async with pulling(registry) as source:
            # GitLab answers with the subject itself.
            assert await source.referrers(IMAGE.descriptor.digest, "x/y") == []
            other = build(b"other")
            registry.put(tag, OCI_MANIFEST, other.manifest)
            assert await source.referrers(IMAGE.descriptor.digest, "x/y") == []
            error = await failure(source.push_artifact(IMAGE.descriptor, "x/y", []), source)
            assert "calls itself" in str(error)
        assert registry.manifests[tag][1] == other.manifest

    asyncio.run(main())


def test_what_others_wrote_under_the_tag_stays() -> None:
    async def main() -> None:
        registry = registry_of()
        tag = referrers_tag(IMAGE.descriptor.digest)
        other = {**describe(b"x", OCI_MANIFEST, artifactType="x/y"), "data": "eA=="}
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [other], "more": 1}
        registry.put(tag, OCI_INDEX, dumps(index))
        async with pulling(registry) as source:
            await source.push_artifact(IMAGE.descriptor, INDEX_TYPE, [ArtifactBlob("a/b", b"x")])
        document = json.loads(registry.manifests[tag][1])
        assert document["manifests"][0] == other
        assert len(document["manifests"]) == 2
        assert document["more"] == 1

    asyncio.run(main())


@pytest.mark.parametrize("redirected", [False, True])
def test_what_is_there_is_not_sent_again(redirected: bool) -> None:
    async def main() -> None:
        registry = registry_of(storage=Storage({}, uses=0) if redirected else None)
        blobs = [ArtifactBlob("a/b", b"x" * 100), ArtifactBlob("a/b", b"x" * 100)]
        async with pulling(registry) as source:
            first = await source.push_artifact(IMAGE.descriptor, INDEX_TYPE, blobs, {"b": "2"})
            assert len([path for path in registry.paths() if path.startswith("POST")]) == 2
            registry.requests.clear()
            again = await source.push_artifact(IMAGE.descriptor, INDEX_TYPE, blobs, {"b": "2"})
            assert again == first
            assert not [path for path in registry.paths() if path.startswith("POST")]

    asyncio.run(main())


# ---- what is refused ----------------------------------------------------------------------------


def test_a_foreign_platform() -> None:
    async def main() -> None:
        registry = registry_of()
        async with pulling(registry) as source:
            s390x = parse_platform("linux/s390x")
            error = await failure(load_image(source, s390x), source)
            assert "is an image for linux/amd64, not for linux/s390x" in str(error)
        async with pulling(registry, wanted=":multi") as source:
            error = await failure(load_image(source, s390x), source)
            assert "there is linux/amd64, linux/arm64" in str(error)

    asyncio.run(main())


def test_an_artifact_that_is_listed_and_not_for_this_image() -> None:
    async def main() -> None:
        registry = registry_of()
        tag = referrers_tag(IMAGE.descriptor.digest)
        async with pulling(registry) as source:
            other = build(b"other").descriptor
            await source.push_artifact(other, INDEX_TYPE, [ArtifactBlob("a/b", b"x")])
            registry.manifests[tag] = registry.manifests[referrers_tag(other.digest)]
            error = await failure(load_image(source, AMD64, INDEX_TYPE), source)
            assert "is not for it" in str(error)

    asyncio.run(main())


def test_indexes_within_indexes() -> None:
    async def main() -> None:
        registry = registry_of()
        inner = registry.manifests["multi"][1]
        for depth in range(4):
            entry = describe(inner, OCI_INDEX)
            inner = dumps({"schemaVersion": 2, "manifests": [entry]})
            registry.put(f"deep{depth}", OCI_INDEX, inner)
        async with pulling(registry, wanted=":deep0") as source:
            assert isinstance(source, RegistrySource)
            assert (await load_image(source, AMD64)).descriptor.digest == IMAGE.descriptor.digest
        async with pulling(registry, wanted=":deep3") as source:
            assert "indexes within indexes" in str(await failure(load_image(source, AMD64), source))

    asyncio.run(main())
