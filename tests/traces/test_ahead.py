"""A layer with downloads: each byte is asked for once, and who waits comes first."""

import asyncio

import pytest
from tests.daemon.helpers import now, run
from tests.traces.rig import KIB, Slow, noise

from pagein.images.ahead import Ahead, Traffic
from pagein.origins.base import OriginError

DATA = noise("layer", 1024 * KIB)
STEP = 64 * KIB


def test_without_downloads_it_is_the_layer() -> None:
    async def main() -> None:
        origin = Slow(DATA)
        ahead = Ahead(origin, Traffic())
        assert await ahead.read(1000, 5000) == DATA[1000:6000]
        assert await ahead.size() == len(DATA)
        await ahead.close()
        assert origin.closed
        assert origin.streams == [(1000, 6000)]

    run(main())


def test_what_is_on_its_way_is_waited_for_and_the_rest_is_asked_for() -> None:
    async def main() -> None:
        origin = Slow(DATA, delay=1.0)
        ahead = Ahead(origin, Traffic())
        downloads = [
            asyncio.create_task(ahead.download(4 * STEP, 8 * STEP)),
            asyncio.create_task(ahead.download(8 * STEP, 10 * STEP)),
        ]
        await asyncio.sleep(0)
        assert await ahead.read(5 * STEP, STEP) == DATA[5 * STEP : 6 * STEP]
        assert now() == 1002.0, "as soon as it has come, not when the download ends"
        assert await ahead.read(2 * STEP, 9 * STEP) == DATA[2 * STEP : 11 * STEP]
        await asyncio.gather(*downloads)
        wanted = [(2, 4), (4, 8), (8, 10), (10, 11)]
        assert sorted(origin.streams) == [(low * STEP, high * STEP) for low, high in wanted]

    run(main())


def test_a_download_that_failed_is_asked_for_by_whoever_wants_it() -> None:
    async def main() -> None:
        origin = Slow(DATA, delay=1.0)
        ahead = Ahead(origin, Traffic())
        origin.fails_at = 2 * STEP + 5
        download = asyncio.create_task(ahead.download(0, 8 * STEP))
        reading = asyncio.create_task(ahead.read(0, 4 * STEP))
        await asyncio.wait([download])
        origin.fails_at = None
        with pytest.raises(OriginError, match="broke off"):
            download.result()
        assert await reading == DATA[: 4 * STEP]
        assert origin.streams == [(0, 8 * STEP), (2 * STEP, 4 * STEP)]

    run(main())


def test_what_was_wrong_is_fetched_anew() -> None:
    async def main() -> None:
        origin = Slow(DATA)
        origin.wrong_at = 100
        ahead = Ahead(origin, Traffic())
        await ahead.download(0, STEP)
        assert await ahead.read(0, STEP) != DATA[:STEP]
        ahead.forget()
        assert await ahead.read(0, STEP) == DATA[:STEP]

    run(main())


def test_what_was_dropped_is_fetched_anew() -> None:
    async def main() -> None:
        origin = Slow(DATA)
        ahead = Ahead(origin, Traffic())
        await ahead.download(0, STEP)
        assert await ahead.read(0, STEP) == await ahead.read(0, STEP) == DATA[:STEP]
        ahead.drop(0, STEP)
        assert await ahead.read(10, 10) == DATA[10:20]
        assert origin.streams == [(0, STEP), (10, 20)]

    run(main())


def test_who_has_begun_to_read_what_is_dropped_gets_the_rest() -> None:
    async def main() -> None:
        origin = Slow(DATA, delay=1.0)
        ahead = Ahead(origin, Traffic())
        download = asyncio.create_task(ahead.download(0, 8 * STEP))
        reading = asyncio.create_task(ahead.read(0, 10 * STEP))
        await asyncio.sleep(2.5)
        ahead.drop(0, 8 * STEP)
        await download
        assert await reading == DATA[: 10 * STEP]
        assert origin.streams == [(0, 8 * STEP), (8 * STEP, 10 * STEP)]

    run(main())


def test_downloads_pause_while_somebody_waits_for_something_else() -> None:
    async def main() -> None:
        traffic = Traffic()
        here, there = Slow(DATA, delay=0.1), Slow(DATA, delay=0.5)
        ahead, other = Ahead(here, traffic), Ahead(there, traffic)
        download = asyncio.create_task(ahead.download(0, 16 * STEP))
        await asyncio.sleep(0.35)
        assert len(here.given) == 3
        assert await other.read(0, STEP) == DATA[:STEP]
        assert len(here.given) <= 4, "of another layer, but over the same network"
        await download
        assert len(here.given) == 16

    run(main())


def test_nobody_who_takes_his_time_holds_a_download_back() -> None:
    async def main() -> None:
        traffic = Traffic()
        here, there = Slow(DATA, delay=0.1), Slow(DATA, delay=0.1)
        ahead, other = Ahead(here, traffic), Ahead(there, traffic)
        stream = other.stream(0, 4 * STEP)
        await anext(stream)
        await ahead.download(0, 4 * STEP)
        assert now() < 1001.0
        await stream.aclose()

    run(main())


def test_closed_it_leaves_nobody_waiting() -> None:
    async def main() -> None:
        origin = Slow(DATA, delay=1.0)
        ahead = Ahead(origin, Traffic())
        download = asyncio.create_task(ahead.download(0, 8 * STEP))
        reading = asyncio.create_task(ahead.read(6 * STEP, STEP))
        await asyncio.sleep(1.5)
        await ahead.close()
        await asyncio.wait([reading], timeout=5.0)
        assert reading.done()
        download.cancel()
        await asyncio.gather(download, reading, return_exceptions=True)

    run(main())
