"""A registry that lies, stops or dies: a clear error, and never other bytes than were asked for."""

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.images.documents import build, dumps
from tests.images.rig import ANN, Keys, failure, of, opened, pulling
from tests.images.servers import FakeRegistry, Storage, serve

from pagein.images.blob import BlobOrigin
from pagein.images.manifest import (
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    digest_of,
)
from pagein.images.registry import RegistrySource
from pagein.images.source import ImageSource
from pagein.origins.base import Origin, OriginError
from pagein.testing.webserver import Fault, FaultKind, WebServer

IMAGE = build(b"lies", layers=2, size=30_000)
BLOB = IMAGE.layer_descriptor(0)
DATA = IMAGE.layers[0]
HASTY = 0.1  # only where the server hangs, so that nothing depends on how fast this machine is


def honest(**changes: object) -> FakeRegistry:
    registry = FakeRegistry(**changes)  # type: ignore[arg-type]
    registry.add("v1", IMAGE)
    return registry


# ---- wrong content under right headers ----------------------------------------------------------


def test_wrong_bytes() -> None:
    async def main() -> None:
        registry = honest()
        registry.blobs[BLOB.digest] = DATA[:-1] + bytes([DATA[-1] ^ 1])
        wrong = IMAGE.manifest.replace(b"{", b"{ ", 1)
        registry.manifests[IMAGE.descriptor.digest] = (OCI_MANIFEST, wrong)
        async with pulling(registry) as source:
            assert "is wrong: its digest is" in str(
                await failure(source.blob(BLOB, 1 << 20), source)
            )
            error = await failure(source.manifest(IMAGE.descriptor), source)
            assert f"more than {len(IMAGE.manifest)} bytes" in str(error)
            assert not error.retry
        async with pulling(registry, wanted=f"@{IMAGE.descriptor.digest}") as source:
            assert "is wrong: its digest is" in str(await failure(source.resolve(), source))

    asyncio.run(main())


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"size": BLOB.size + 1}, f"has {BLOB.size} bytes, its descriptor says {BLOB.size + 1}"),
        ({"size": BLOB.size - 1}, f"more than {BLOB.size - 1} bytes"),
        ({"size": 1 << 40}, "bytes, more than 1048576"),
        ({"digest": digest_of(b"other")}, "404: the registry does not have it"),
    ],
)
def test_descriptors_that_are_not_true(change: dict[str, object], cause: str) -> None:
    async def main() -> None:
        async with pulling(honest()) as source:
            error = await failure(source.blob(of(BLOB, **change), 1 << 20), source)
            assert cause in str(error)
            assert not error.retry

    asyncio.run(main())


def test_a_range_of_a_blob_of_another_size() -> None:
    async def main() -> None:
        async with pulling(honest()) as source:
            origin = source.open_blob(of(BLOB, size=BLOB.size + 1))
            error = await failure(origin.read(0, 10), BLOB.digest)
            assert "is not the blob that the manifest names" in str(error)
            with pytest.raises(OriginError, match="is empty"):
                source.open_blob(of(BLOB, size=0))

    asyncio.run(main())


@pytest.mark.parametrize(
    ("media_type", "body", "digest", "cause"),
    [
        (OCI_INDEX, IMAGE.manifest, None, "calls itself"),
        (DOCKER_MANIFEST, IMAGE.manifest, None, "calls itself"),
        ("text/html", b"<html>log in</html>", None, "not a valid manifest"),
        ("text/html", b"{}", None, "not a valid manifest"),
        ("", dumps({"schemaVersion": 2}), None, "not a manifest of a known type"),
        ("", dumps({"schemaVersion": 1}), None, "schema 1"),
        (OCI_MANIFEST, b" " * ((4 << 20) + 1), None, "more than 4194304 bytes"),
        (OCI_MANIFEST, IMAGE.manifest, digest_of(b"x"), "is wrong"),
    ],
)
def test_what_a_tag_must_not_be(
    media_type: str, body: bytes, digest: str | None, cause: str
) -> None:
    def lie(request: web.Request) -> web.Response:
        told = {"Docker-Content-Digest": digest} if digest else {}
        return web.Response(body=body, headers={"Content-Type": media_type or "x/y", **told})

    async def main() -> None:
        async with pulling(honest(fault=lie)) as source:
            error = await failure(source.resolve(), source)
            assert cause in str(error)
            assert not error.retry

    asyncio.run(main())


def test_a_digest_of_a_kind_we_do_not_know_is_no_digest() -> None:
    def lie(request: web.Request) -> web.Response:
        told = {"Docker-Content-Digest": "blake3:00", "Content-Type": f"{OCI_MANIFEST}; charset=x"}
        return web.Response(body=IMAGE.manifest, headers=told)

    async def main() -> None:
        async with pulling(honest(fault=lie)) as source:
            assert await source.resolve() == (IMAGE.descriptor, IMAGE.manifest)

    asyncio.run(main())


# ---- answers that are none ----------------------------------------------------------------------


def test_a_registry_that_recovers_is_asked_again() -> None:
    answers = [503, 429, 500]

    def fault(request: web.Request) -> web.Response | None:
        return web.Response(status=answers.pop()) if answers else None

    async def main() -> None:
        async with pulling(honest(fault=fault)) as source:
            assert (await source.resolve())[1] == IMAGE.manifest

    asyncio.run(main())


def test_redirects_in_a_circle_and_to_plain_nonsense() -> None:
    where = {"Location": "/v2/app/manifests/v1"}

    async def main() -> None:
        registry = honest(fault=lambda request: web.Response(status=307, headers=where))
        async with pulling(registry) as source:
            error = await failure(source.resolve(), source)
            assert (error.errno, error.retry) == (errno.ELOOP, False)
            where["Location"] = "gopher://x/"
            assert "not a usable URL" in str(await failure(source.resolve(), source))
            assert "not a usable URL" in str(await failure(source.open_blob(BLOB).read(0, 1)))

    asyncio.run(main())


def test_basic_auth_that_is_withdrawn_in_the_middle() -> None:
    async def main() -> None:
        registry = honest(basic=True)
        keys = Keys(ANN)
        async with pulling(registry, keys) as source:
            origin = source.open_blob(BLOB)
            assert await origin.read(0, 10) == DATA[:10]
            # A new password is looked up; the old one is not sent for ever.
            keys.credentials = type(ANN)("ann", "new")
            registry.basic, registry.fault = (
                False,
                lambda request: web.Response(status=401, headers={"WWW-Authenticate": "Basic"}),
            )
            registry.requests.clear()
            error = await failure(origin.read(0, 10))
            assert (error.errno, error.retry) == (errno.EACCES, False)
            assert len(registry.requests) == 2
            assert keys.asked == [source._reference.host] * 2

    asyncio.run(main())


def test_a_registry_that_is_gone() -> None:
    async def main() -> None:
        async with serve(honest().handle) as host:
            pass
        async with opened(f"docker://{host}/app:v1") as source:
            error = await failure(source.resolve(), source)
            assert (error.errno, error.retry) == (errno.ECONNREFUSED, True)
            assert f"({host}): cannot connect" in str(error)
            error = await failure(source.open_blob(BLOB).read(0, 10), host)
            assert (error.errno, error.retry) == (errno.ECONNREFUSED, True)

    asyncio.run(main())


def registry_host(source: RegistrySource) -> str:
    return source._reference.host


def test_storage_that_is_gone() -> None:
    async def main() -> None:
        storage = Storage(IMAGE.blobs)

        def broken(request: web.Request) -> web.Response | None:
            return web.Response(status=502) if "broken" in request.path else None

        async with pulling(honest(storage=storage, fault=broken)) as source:
            origin = source.open_blob(BLOB)
            assert isinstance(origin, BlobOrigin)
            assert await origin.read(0, 10) == DATA[:10]
            host, storage.host = storage.host, "127.0.0.1:1"
            storage.links.clear()
            for _ in range(2):
                error = await failure(origin.read(0, 10), source)
                assert error.retry
                assert "Signature=%" not in str(error)
            # A link that leads nowhere, or to a server in trouble, is not asked twice.
            storage.host = host
            assert await origin.read(0, 10) == DATA[:10]
            for link in ("http://127.0.0.1:1/x", f"http://{registry_host(source)}/broken"):
                origin._servers[0].link = link
                assert (await failure(origin.read(0, 10))).retry
                assert await origin.read(0, 10) == DATA[:10]

    asyncio.run(main())


def test_nothing_waits_for_ever() -> None:
    async def silent(request: web.Request) -> web.Response:
        await asyncio.sleep(3600)
        return web.Response()

    async def main() -> None:
        async with (
            serve(silent) as host,
            opened(f"docker://{host}/app:v1", timeout=HASTY) as source,
        ):
            calls = [
                source.resolve(),
                source.blob(of(BLOB, size=1), 10),
                source.referrers(BLOB.digest, "x/y"),
                source.push_artifact(BLOB, "x/y", []),
                source.open_blob(BLOB).read(0, 10),
            ]
            for call in calls:
                error = await failure(call)
                assert (error.errno, error.retry) == (errno.ETIMEDOUT, True)

    asyncio.run(main())


def test_closed_connections_say_so() -> None:
    async def main() -> None:
        async with pulling(honest()) as source:
            origin = source.open_blob(BLOB)
            await source._clients[0].session.close()
            await failure(origin.read(0, 10))
            await failure(source.resolve(), source)

    asyncio.run(main())


# ---- every fault of the lying web server, in any order ------------------------------------------

KINDS: list[FaultKind] = [
    "status",
    "ignore_range",
    "short_body",
    "short_length",
    "long_body",
    "wrong_content_range",
    "wrong_total",
    "reset",
    "extra_encoding",
]
faults = st.builds(
    Fault,
    st.sampled_from(KINDS),
    st.sampled_from([204, 301, 307, 400, 403, 404, 410, 416, 501]),
    st.none() | st.integers(0, 20_000),
)
steps = st.lists(
    st.tuples(st.sampled_from(["resolve", "manifest", "blob", "read"]), st.none() | faults),
    min_size=1,
    max_size=5,
)


@contextlib.asynccontextmanager
async def lying(server: WebServer) -> AsyncIterator[tuple[ImageSource, Origin]]:
    async with server, opened(f"docker://127.0.0.1:{server.port}/app:v1") as source:
        yield source, source.open_blob(BLOB)


async def step(source: ImageSource, origin: Origin, what: str, fault: Fault | None) -> None:
    """What comes is right, or an error; without a fault it comes."""
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "resolve": source.resolve,
        "manifest": lambda: source.manifest(IMAGE.descriptor),
        "blob": lambda: source.blob(BLOB, 1 << 20),
        "read": lambda: origin.read(1000, 9000),
    }
    right = {
        "resolve": (IMAGE.descriptor, IMAGE.manifest),
        "manifest": IMAGE.manifest,
        "blob": DATA,
        "read": DATA[1000:10_000],
    }
    try:
        assert await calls[what]() == right[what]
    except OriginError as error:
        assert fault is not None, f"an honest answer was refused: {error}"
        assert str(error).isprintable()


@given(steps)
@settings(max_examples=50)
def test_whatever_comes_is_right_or_an_error(sequence: list[tuple[str, Fault | None]]) -> None:
    files: dict[str, bytes | Path] = {
        "/v2/app/manifests/v1": IMAGE.manifest,
        f"/v2/app/manifests/{IMAGE.descriptor.digest}": IMAGE.manifest,
        f"/v2/app/blobs/{BLOB.digest}": DATA,
    }

    async def main() -> None:
        server = WebServer(files)
        async with lying(server) as (source, origin):
            for what, fault in sequence:
                # Once only: what may pass is asked for again, and then comes.
                left = [fault] if fault is not None else []
                server.faults = lambda *_, left=left: left.pop() if left else None
                await step(source, origin, what, fault)

    asyncio.run(main())
