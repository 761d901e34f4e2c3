"""HTTP for who collects metrics: GET /metrics, on sockets that somebody else listens on."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence

from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

from pagein.daemon.metrics.collector import Halves
from pagein.daemon.tally import Now, Tally
from pagein.protocol.numbers import Numbers

log = logging.getLogger("pagein.daemon")

_CLOSING = 1.0  # seconds that a scrape gets to end when the process ends


class MetricsServer:
    """Serves until closed. The sockets are the caller's."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/", self._index)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=_CLOSING)

    async def start(
        self,
        socks: Sequence[socket.socket],
        tally: Tally,
        now: Callable[[], Now],
        numbers: Numbers | None,
    ) -> None:
        """Begin to answer, with what these say then."""
        self._registry.register(Halves(tally, now, numbers))
        await self._runner.setup()
        for sock in socks:
            await web.SockSite(self._runner, sock.dup()).start()

    async def close(self) -> None:
        """Stop answering."""
        try:
            async with asyncio.timeout(2 * _CLOSING):
                await self._runner.cleanup()
        except TimeoutError:
            log.warning("a connection of the metrics did not end")

    async def _metrics(self, request: web.Request) -> web.Response:
        """In the form that the client accepts: Prometheus's text, or OpenMetrics."""
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        body = encode(self._registry)
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _index(self, _: web.Request) -> web.Response:
        return web.Response(text="pagein: see /metrics\n")
