"""The user half with a registry: what a trace names is in the cache before anybody reads it."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from tests.daemon.fakes import FakeDevice, File
from tests.images.documents import LAYER, Built, describe, dumps
from tests.images.rig import NOBODY
from tests.images.servers import FakeRegistry, running
from tests.traces.rig import KIB, MIB, IndexedLayer, noise

from pagein.daemon.images import Images
from pagein.daemon.loop import Daemon
from pagein.daemon.objects import Blob
from pagein.daemon.records import Records
from pagein.daemon.secrets import Secrets
from pagein.images.connections import Connections
from pagein.images.layerblob import LayerBlob, load_record
from pagein.images.manifest import OCI_CONFIG, OCI_MANIFEST, digest_of
from pagein.images.platforms import parse_platform
from pagein.images.pull import Pull
from pagein.images.store import Store
from pagein.images.traces.document import Touch, Trace, pack
from pagein.images.traces.files import Files
from pagein.images.traces.wanted import plan_layer
from pagein.origins.base import Origin

PATIENCE = 20.0
TOUCHED = [("f05", 0, 100 * KIB), ("f06", 0, 50 * KIB), ("f20", 1000, KIB), ("f01", 0, 10)]
UNTOUCHED = "f39"


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> list[IndexedLayer]:
    """Two layers that packing does not make smaller, of files of different names."""
    directory = tmp_path_factory.mktemp("layers")
    files = [
        {f"f{n:02}": noise(f"{k}{n}", 300 * KIB) for n in range(20 * k, 20 * k + 20)}
        for k in (0, 1)
    ]
    return [IndexedLayer(each, directory / f"{n}", interval=MIB) for n, each in enumerate(files)]


def image_of(layers: list[IndexedLayer]) -> Built:
    diffs = [layer.diff_id for layer in layers]
    config = dumps(
        {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diffs}}
    )
    manifest = dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": describe(config, OCI_CONFIG),
            "layers": [describe(layer.packed, LAYER) for layer in layers],
        }
    )
    blobs = {digest_of(data): data for data in (config, *(layer.packed for layer in layers))}
    return Built(blobs, manifest, [layer.packed for layer in layers])


def trace_of(layers: list[IndexedLayer], touched: list[tuple[str, int, int]]) -> Trace:
    """Each file is in the layer that has it."""
    found = []
    for ms, (name, offset, length) in enumerate(touched):
        number = next((n for n, layer in enumerate(layers) if name in layer.files), 0)
        found.append(Touch(number, f"/{name}", offset, length, ms))
    return Trace("docker://x/y:1", tuple(layer.diff_id for layer in layers), tuple(found))


@dataclass
class Registry(FakeRegistry):
    """One whose blobs may be held back; notes ranges of layers."""

    gate: Callable[[str, int], asyncio.Event | None] = lambda _digest, _start: None
    ranges: list[tuple[str, int, int]] = field(default_factory=list)
    spoil: bool = False
    """Whether the next range has a wrong byte."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        wanted = request.http_range if "Range" in request.headers else None
        digest = request.path.rpartition("/")[2]
        if wanted is None or digest not in self.blobs:
            return await super().handle(request)
        start, stop = wanted.start or 0, wanted.stop or len(self.blobs[digest])
        self.ranges.append((digest, start, stop))
        if (event := self.gate(digest, start)) is not None:
            await event.wait()
        answer = await super().handle(request)
        if self.spoil and isinstance(answer, web.Response) and isinstance(answer.body, bytes):
            self.spoil = False
            answer.body = bytes([answer.body[0] ^ 255]) + answer.body[1:]
        return answer


async def until(over: Callable[[], object]) -> None:
    """Until that is so."""
    async with asyncio.timeout(PATIENCE):
        while not over():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@dataclass
class Machine:
    """A user half, and the kernel half's side of it."""

    images: Images
    device: FakeDevice
    host: str
    daemon: Daemon
    objects: dict[str, int] = field(default_factory=dict)

    async def bring(self, **more: object) -> dict[str, Any]:
        """What `pagein mount` asks, until the image is here."""
        question = {"source": f"docker://{self.host}/app:v1", "platform": "linux/amd64", **more}
        async with asyncio.timeout(PATIENCE):
            while True:
                answer = await self.images.image(question)
                if answer["done"]:
                    return answer

    async def open(self, answer: dict[str, Any], **files: File) -> None:
        """OPEN of the data blobs."""
        for layer in answer["layers"]:
            for blob in layer["blobs"]:
                if blob["label"].endswith("data"):
                    number = self.objects[layer["name"]] = len(self.objects) + 1
                    await self.answered(self.device.send_open(number, blob["cookie"].encode()))

    async def answered(self, message: int) -> None:
        async with asyncio.timeout(PATIENCE):
            await self.device.answered(message)

    def prefetched(self) -> int:
        return sum(blob["prefetched"] for blob in self.daemon.stats())

    async def idle(self) -> None:
        """Until no prefetch is left."""
        await until(lambda: not self.images.prefetcher.running)

    def has(self, layer: IndexedLayer, name: str, offset: int, length: int) -> bool:
        """Whether a range of a file is in the cache; what is there is right."""
        with layer.opened() as index:
            (part,) = Files(index).find(f"/{name}".encode())
        object_id = next(
            n for key, n in self.objects.items() if key.split()[0] == digest_of(layer.packed)
        )
        file = self.device.files[object_id]
        for start, end in file.present:
            assert file.data[start:end] == layer.blob[start:end]
        start = part.position + offset
        return file.present.covers(start, start + length)


@contextlib.asynccontextmanager
async def machine(directory: Path, host: str) -> AsyncIterator[Machine]:
    records = Records(str(directory / "origins"), load_record)

    def find(cookie: bytes) -> Blob | None:
        return next((each for each in daemon.objects.blobs() if each.key[1] == cookie), None)

    async def origin(_: bytes, cookie: bytes) -> Origin:
        found = records.find(cookie)
        assert isinstance(found, LayerBlob)
        return await images.open(found)

    images = Images(str(directory / "images"), records, Secrets(-1), timeout=PATIENCE, find=find)
    device = FakeDevice()
    daemon = Daemon(device, origin, cache=None, opened=images.prefetcher.opened)
    task = asyncio.create_task(daemon.run())
    try:
        yield Machine(images, device, host, daemon)
    finally:
        daemon.stop()
        await task
        await images.close()


async def publish(
    registry: Registry, layers: list[IndexedLayer], host: str, trace: bytes | None, directory: Path
) -> None:
    """Push image, indexes and trace."""
    registry.add("v1", image_of(layers))
    connections = Connections(NOBODY, timeout=PATIENCE)
    try:
        name, platform = f"docker://{host}/app:v1", parse_platform("linux/amd64")
        store = Store(str(directory))
        store.prepare()
        pull = Pull(store, connections, name, platform, keep_data=False)
        await pull.push(await pull.run(), trace)
    finally:
        await connections.close()
    registry.ranges.clear()


@contextlib.asynccontextmanager
async def published(
    layers: list[IndexedLayer], directory: Path, trace: bytes | None = None
) -> AsyncIterator[tuple[Registry, Machine]]:
    registry = Registry()
    async with running(registry) as host:
        await publish(registry, layers, host, trace, directory / "indexer")
        async with machine(directory / "machine", host) as made:
            yield registry, made


def plans(layers: list[IndexedLayer], trace: Trace, store: Store) -> list[tuple[str, int, int]]:
    """The requests that `trace` costs, with the indexes that the machine has."""
    found = []
    for layer in layers:
        for name in (Path(store.directory) / "indexes").iterdir():
            from pagein.images.layers.index import Index

            with Index(name) as index:
                if index.header.layer.digest == digest_of(layer.packed):
                    pieces, _ = plan_layer(index, trace)
                    found += [(digest_of(layer.packed), each.low, each.high) for each in pieces]
    return found


def store_of(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "machine/images"))


@pytest.mark.parametrize("shipped", [True, False])
def test_all_of_a_trace_comes_unasked_in_the_requests_that_were_planned(
    layers: list[IndexedLayer], tmp_path: Path, shipped: bool
) -> None:
    trace = trace_of(layers, TOUCHED)

    async def main() -> None:
        document = trace.dump() if shipped else None
        async with published(layers, tmp_path, document) as (registry, half):
            answer = await half.bring(**({} if shipped else {"trace": pack(trace.dump())}))
            await half.open(answer)
            await half.idle()
            wanted = plans(layers, trace, store_of(tmp_path))
            assert sorted(registry.ranges) == sorted(wanted)
            assert 2 <= len(wanted) <= 4
            assert half.has(layers[0], "f05", 0, 100 * KIB)
            assert half.has(layers[0], "f06", 0, 50 * KIB)
            assert half.has(layers[0], "f01", 0, 10)
            assert half.has(layers[1], "f20", 1000, KIB)
            assert half.prefetched() >= 150 * KIB
            assert not half.has(layers[1], UNTOUCHED, 0, KIB)

    asyncio.run(main())


def test_downloads_begin_before_the_mount(layers: list[IndexedLayer], tmp_path: Path) -> None:
    async def main() -> None:
        trace = trace_of(layers, TOUCHED)
        async with published(layers, tmp_path, trace.dump()) as (registry, half):
            answer = await half.bring()
            wanted = plans(layers, trace, store_of(tmp_path))
            await until(lambda: len(registry.ranges) >= len(wanted))
            await half.open(answer)
            await half.idle()
            assert half.has(layers[0], "f05", 0, 100 * KIB)
            assert sorted(registry.ranges) == sorted(wanted)

    asyncio.run(main())


def test_whoever_reads_in_the_middle_of_it_is_served_first(
    layers: list[IndexedLayer], tmp_path: Path
) -> None:
    async def main() -> None:
        trace = trace_of(layers, TOUCHED)
        async with published(layers, tmp_path, trace.dump()) as (registry, half):
            held = asyncio.Event()
            layer = digest_of(layers[1].packed)
            demanded = asyncio.Event()

            def gate(digest: str, start: int) -> asyncio.Event | None:
                wanted = plans(layers, trace, store_of(tmp_path))
                if any(start == low and digest == each for each, low, _ in wanted):
                    return held
                demanded.set()
                return None

            registry.gate = gate
            answer = await half.bring()
            await half.open(answer)
            with layers[1].opened() as index:
                (part,) = Files(index).find(f"/{UNTOUCHED}".encode())
            object_id = next(n for key, n in half.objects.items() if key.startswith(layer))
            await half.answered(half.device.send_read(object_id, part.position, 64 * KIB))
            assert demanded.is_set()
            assert half.has(layers[1], UNTOUCHED, 0, 64 * KIB)
            assert half.prefetched() == 0
            held.set()
            await half.idle()
            assert half.has(layers[0], "f05", 0, 100 * KIB)

    asyncio.run(main())


def test_a_read_of_what_is_on_its_way_asks_for_nothing_more(
    layers: list[IndexedLayer], tmp_path: Path
) -> None:
    async def main() -> None:
        trace = trace_of(layers, TOUCHED)
        async with published(layers, tmp_path, trace.dump()) as (registry, half):
            held = asyncio.Event()
            registry.gate = lambda _digest, _start: held
            answer = await half.bring()
            await half.open(answer)
            with layers[0].opened() as index:
                (part,) = Files(index).find(b"/f05")
            number = next(
                n for key, n in half.objects.items() if key.startswith(digest_of(layers[0].packed))
            )
            message = half.device.send_read(number, part.position, 64 * KIB)
            wanted = plans(layers, trace, store_of(tmp_path))
            await until(lambda: len(registry.ranges) >= len(wanted))
            held.set()
            await half.answered(message)
            await half.idle()
            assert sorted(registry.ranges) == sorted(wanted)
            assert half.has(layers[0], "f05", 0, 64 * KIB)

    asyncio.run(main())


def test_what_is_here_is_not_fetched_again(layers: list[IndexedLayer], tmp_path: Path) -> None:
    async def main() -> None:
        trace = trace_of(layers, TOUCHED)
        async with published(layers, tmp_path, trace.dump()) as (registry, half):
            answer = await half.bring()
            await half.open(answer)
            await half.idle()
            files = dict(half.device.files)
            for number in half.objects.values():
                half.device.send_close(number)
            await until(lambda: not half.daemon.objects.ids())
            registry.ranges.clear()
            half.device.opened.clear()
            answer = await half.bring()
            await asyncio.sleep(0.1)
            assert registry.ranges == [], "what is missing is known when it is open, not before"
            half.device.files.update({number + 2: file for number, file in files.items()})
            half.objects = {f"old {key}": number for key, number in half.objects.items()}
            await half.open(answer)
            await half.idle()
            assert registry.ranges == []

    asyncio.run(main())


def test_without_prefetch_nothing_is_fetched(layers: list[IndexedLayer], tmp_path: Path) -> None:
    async def main() -> None:
        trace = trace_of(layers, TOUCHED)
        async with published(layers, tmp_path, trace.dump()) as (registry, half):
            await half.open(await half.bring(prefetch=False))
            assert not half.images.prefetcher.running
            assert registry.ranges == []

    asyncio.run(main())


@pytest.mark.parametrize(
    "document",
    [b"rubbish", b'{"pagein_trace":7}\n', b'{"pagein_trace":1,"layers":[]}\n[0,"/a",0,1,0]'],
)
def test_a_bad_trace_is_refused_by_name_or_done_without(
    layers: list[IndexedLayer],
    tmp_path: Path,
    document: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with published(layers, tmp_path, document) as (registry, half):
            with pytest.raises(OSError, match=r"^\[Errno 22\] the trace[:,] "):
                await half.bring(trace=pack(document))
            await half.open(await half.bring())
            assert registry.ranges == []
        assert "going on without a trace" in caplog.text
        assert f"the trace {digest_of(document)}" in caplog.text

    asyncio.run(main())


def test_a_trace_of_what_is_not_there_brings_the_rest(
    layers: list[IndexedLayer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        trace = trace_of(layers, [("gone", 0, 1), ("f05", 0, KIB), ("f05/x", 0, 1)])
        other = Trace(
            "", (*trace.layers, "sha256:" + "0" * 64), (*trace.touches, Touch(2, "/a", 0, 1, 9))
        )
        with caplog.at_level(logging.INFO, "pagein.daemon"):
            async with published(layers, tmp_path, other.dump()) as (_, half):
                await half.open(await half.bring())
                await half.idle()
                assert half.has(layers[0], "f05", 0, KIB)
        assert "in 1 requests; 3 touches of the trace skipped" in caplog.text

    asyncio.run(main())


def test_when_the_registry_fails_it_ends_and_readers_go_on(
    layers: list[IndexedLayer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        trace = trace_of(layers, TOUCHED)
        with caplog.at_level(logging.INFO, "pagein.daemon"):
            async with published(layers, tmp_path, trace.dump()) as (registry, half):
                registry.fault = lambda request: (
                    web.Response(status=500) if "Range" in request.headers else None
                )
                answer = await half.bring()
                await half.open(answer)
                await half.idle()
                assert "prefetch ended: " in caplog.text
                registry.fault = None
                with layers[0].opened() as index:
                    (part,) = Files(index).find(b"/f05")
                for number in half.objects.values():
                    await half.answered(half.device.send_read(number, part.position, 4 * KIB))
                assert half.has(layers[0], "f05", 0, 4 * KIB)
        assert not [each for each in caplog.records if each.levelno >= logging.ERROR]

    asyncio.run(main())


def test_wrong_bytes_of_a_download_are_fetched_once_more(
    layers: list[IndexedLayer], tmp_path: Path
) -> None:
    async def main() -> None:
        trace = trace_of(layers, TOUCHED[:1])
        async with published(layers, tmp_path, trace.dump()) as (registry, half):
            registry.spoil = True
            await half.open(await half.bring())
            await half.idle()
            assert half.has(layers[0], "f05", 0, 100 * KIB)
            assert len(registry.ranges) > len(plans(layers, trace, store_of(tmp_path)))

    asyncio.run(main())
