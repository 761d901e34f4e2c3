"""The user half with a registry: what a trace names is in the cache before anybody reads it."""

import asyncio
import logging
from pathlib import Path

import pytest
from aiohttp import web
from tests.traces.machine import plans, published, store_of, trace_of, until
from tests.traces.rig import KIB, MIB, IndexedLayer, noise

from pagein.images.manifest import digest_of
from pagein.images.traces.document import Touch, Trace, pack
from pagein.images.traces.files import Files

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
