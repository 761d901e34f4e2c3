"""Against Debian's docker-registry, with images that skopeo pushed."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.images.documents import Built, build, write_layout
from tests.images.processes import Keys, docker_registry, htpasswd, skopeo_copy
from tests.images.rig import ANN, INDEX_TYPE, NOBODY, failure, opened
from tests.images.rig import Keys as Keychain
from tests.images.servers import TokenServer, serve

from pagein.images.artifacts import ArtifactBlob
from pagein.images.platforms import Platform
from pagein.images.registry import RegistrySource
from pagein.images.source import load_image

TOP = Path(__file__).parents[2]
AMD64 = Platform(os="linux", architecture="amd64")
IMAGE = build(b"real", layers=3, size=100_000)


class Pushed(NamedTuple):
    """A registry with IMAGE in it as py:v1, in OCI form, and py:docker, in docker's."""

    host: str
    directory: Path


@pytest.fixture(scope="module")
def basic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pushed]:
    directory = tmp_path_factory.mktemp("basic")
    layout = write_layout(directory / "layout", {"v1": IMAGE})
    with docker_registry(directory, htpasswd(directory)) as host:
        skopeo_copy(f"oci:{layout}:v1", f"docker://{host}/py:v1")
        skopeo_copy(f"oci:{layout}:v1", f"docker://{host}/py:docker", "--format", "v2s2")
        yield Pushed(host, directory)


async def check_whole(name: str, keys: Keychain, image: Built, **options: Any) -> None:
    """Everything of an image, each in every way it can be asked for."""
    async with opened(name, keys, **options) as source:
        loaded = await load_image(source, AMD64, INDEX_TYPE)
        assert loaded.config.run.cmd == ("/bin/true",)
        assert loaded.artifacts == ()
        layers = loaded.manifest.layers
        assert [layer.digest for layer in layers] == [
            image.layer_descriptor(number).digest for number in range(len(image.layers))
        ]
        assert await source.blob(layers[0], 1 << 20) == image.layers[0]
        origin = source.open_blob(layers[1])
        assert await origin.size() == len(image.layers[1])
        assert await origin.read(1000, 5000) == image.layers[1][1000:6000]
        pieces = [bytes(piece) async for piece in origin.stream(0, layers[1].size)]
        assert b"".join(pieces) == image.layers[1]
        await origin.close()


@pytest.mark.parametrize("tag", ["v1", "docker"])
def test_an_image_that_skopeo_pushed(basic: Pushed, tag: str) -> None:
    asyncio.run(check_whole(f"docker://{basic.host}/py:{tag}", Keychain(ANN), IMAGE))


def test_by_digest(basic: Pushed) -> None:
    name = f"docker://{basic.host}/py@{IMAGE.descriptor.digest}"
    asyncio.run(check_whole(name, Keychain(ANN), IMAGE))


def test_what_the_registry_refuses_is_said(basic: Pushed) -> None:
    async def main() -> None:
        name = f"docker://{basic.host}/py:none"
        async with opened(name, Keychain(ANN)) as source:
            error = await failure(source.resolve(), name)
            assert "404 (MANIFEST_UNKNOWN: manifest unknown)" in str(error)
            assert not error.retry
        async with opened(name) as source:
            assert f"docker login {basic.host}" in str(await failure(source.resolve(), name))
        async with opened(name, Keychain(type(ANN)("ann", "wrong"))) as source:
            error = await failure(source.resolve(), name)
            assert "401 (UNAUTHORIZED: authentication required): check" in str(error)
            assert not error.retry

    asyncio.run(main())


def test_artifacts_are_pushed_and_found_by_the_tag(basic: Pushed) -> None:
    blob = ArtifactBlob("application/x-test", os.urandom(3 << 20), {"for": "layer 0"})
    other = ArtifactBlob("application/x-test", b"other")

    async def main() -> None:
        name = f"docker://{basic.host}/py:v1"
        async with opened(name, Keychain(ANN)) as source:
            subject, _ = await source.resolve()
            first = await source.push_artifact(subject, INDEX_TYPE, [blob], {"a": "b"})
            # Each lists its own, and none is lost.
            rest = await asyncio.gather(
                source.push_artifact(subject, INDEX_TYPE, [other]),
                source.push_artifact(subject, "application/x-else", [blob]),
            )
            assert await source.push_artifact(subject, INDEX_TYPE, [blob], {"a": "b"}) == first
        async with opened(name, Keychain(ANN)) as source:
            loaded = await load_image(source, AMD64, INDEX_TYPE)
            found = {entry.digest: (entry, manifest) for entry, manifest in loaded.artifacts}
            assert set(found) == {first.digest, rest[0].digest}
            entry, manifest = found[first.digest]
            assert entry.annotations == {"a": "b"}
            assert manifest.layers[0].annotations == {"for": "layer 0"}
            assert await source.blob(manifest.layers[0], 4 << 20) == blob.data
            assert await source.referrers("sha256:" + "0" * 64, INDEX_TYPE) == []

    asyncio.run(main())


def test_tokens_of_a_real_registry_and_one_that_ends_in_the_middle(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    server = TokenServer(anonymous=False, make=keys.for_scope)
    layout = write_layout(tmp_path / "layout", {"v1": IMAGE})

    async def main() -> None:
        async with serve(server.handle) as realm:
            with docker_registry(tmp_path, keys.auth(f"http://{realm}/token")) as host:
                await asyncio.to_thread(skopeo_copy, f"oci:{layout}:v1", f"docker://{host}/py:v1")
                server.asked.clear()
                name = f"docker://{host}/py:v1"
                await check_whole(name, Keychain(ANN), IMAGE)
                assert server.asked == ["repository:py:pull"]
                async with opened(name) as source:
                    error = await failure(source.resolve(), name)
                    assert "were refused" in str(error)
                async with opened(name, Keychain(ANN)) as source:
                    await expire_in_the_middle(source)

    async def expire_in_the_middle(source: Any) -> None:
        assert isinstance(source, RegistrySource)
        server.asked.clear()
        # As if two minutes had passed since it was given: the registry's own clock refuses it.
        server.make = lambda scope: keys.for_scope(
            scope, expires=-120.0 if len(server.asked) == 1 else 300.0
        )
        await failure(source.resolve())
        server.asked.clear()
        server.make = keys.for_scope
        origin = source.open_blob(IMAGE.layer_descriptor(0))
        ranges = [(offset, 1000) for offset in range(0, 64_000, 2000)]
        got = await asyncio.gather(*(origin.read(*span) for span in ranges))
        assert got == [IMAGE.layers[0][start : start + length] for start, length in ranges]
        assert len(server.asked) == 1
        subject, _ = await source.resolve()
        await source.push_artifact(subject, INDEX_TYPE, [ArtifactBlob("a/b", b"x")])
        assert server.asked == ["repository:py:pull", "repository:py:pull,push"]

    asyncio.run(main())


def test_a_registry_that_is_killed_in_the_middle_and_comes_back(tmp_path: Path) -> None:
    large = build(b"large", layers=1, size=40_000_000)
    layout = write_layout(tmp_path / "layout", {"v1": large})
    layer, data = large.layer_descriptor(0), large.layers[0]

    async def main() -> None:
        with contextlib.ExitStack() as life:
            host = life.enter_context(docker_registry(tmp_path))
            skopeo_copy(f"oci:{layout}:v1", f"docker://{host}/py:v1")
            async with opened(f"docker://{host}/py:v1") as source:
                await load_image(source, AMD64)
                origin = source.open_blob(layer)
                got = bytearray()

                async def stream() -> None:
                    async for piece in origin.stream(0, layer.size):
                        got.extend(piece)
                        life.close()

                error = await failure(stream(), layer.digest)
                assert error.retry
                assert 0 < len(got) < len(data)
                assert data.startswith(got)
                error = await failure(source.resolve(), source)
                assert error.retry
                assert "is the server running?" in str(error)
                with docker_registry(tmp_path, port=int(host.partition(":")[2])):
                    rest = await origin.read(len(got), len(data) - len(got))
                    assert got + rest == data

    asyncio.run(main())


def test_tls(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    layout = write_layout(tmp_path / "layout", {"v1": IMAGE})
    with docker_registry(tmp_path, tls=keys) as host:
        skopeo_copy(f"oci:{layout}:v1", f"docker://{host}/py:v1")
        name = f"docker://{host}/py:v1"

        async def refused(plain_http: bool | None) -> str:
            async with opened(name, plain_http=plain_http, timeout=200) as source:
                return str(await failure(source.resolve(), name))

        assert "certificate is not valid" in asyncio.run(refused(False))
        assert "400" in asyncio.run(refused(None))  # plain HTTP is what this machine gets
        # Python's TLS reads the variable when aiohttp is imported.
        program = "import sys, tests.images.test_docker_registry as it; it.check_tls(sys.argv[1])"
        command = [sys.executable, "-W", "error", "-c", program, name]
        environment = os.environ | {"SSL_CERT_FILE": str(keys.certificate)}
        done = subprocess.run(
            command, env=environment, cwd=TOP, capture_output=True, text=True, timeout=250
        )
        assert done.returncode == 0, done.stderr


def check_tls(name: str) -> None:
    """The half of it that runs in a process of its own."""
    asyncio.run(check_whole(name, NOBODY, IMAGE, plain_http=False))
