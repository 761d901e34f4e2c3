"""A user half in this process, a device in memory, and a registry that may be held back."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from tests.daemon.fakes import FakeDevice, File
from tests.images.documents import LAYER, Built, describe, dumps
from tests.images.rig import NOBODY
from tests.images.servers import FakeRegistry, running
from tests.traces.rig import IndexedLayer

from pagein.daemon.images import Images
from pagein.daemon.loop import Daemon
from pagein.daemon.objects import Blob
from pagein.daemon.records import Records
from pagein.daemon.secrets import Secrets
from pagein.images.connections import Connections
from pagein.images.layerblob import LayerBlob, load_record
from pagein.images.layers.index import Index
from pagein.images.manifest import OCI_CONFIG, OCI_MANIFEST, digest_of
from pagein.images.platforms import parse_platform
from pagein.images.pull import Pull
from pagein.images.store import Store
from pagein.images.traces.document import Touch, Trace
from pagein.images.traces.files import Files
from pagein.images.traces.wanted import plan_layer
from pagein.origins.base import Origin

PATIENCE = 60.0


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
    daemon = Daemon(device, origin, cache=None, opened=images.opened)
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
            with Index(name) as index:
                if index.header.layer.digest == digest_of(layer.packed):
                    pieces, _ = plan_layer(index, trace)
                    found += [(digest_of(layer.packed), each.low, each.high) for each in pieces]
    return found


def store_of(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "machine/images"))
