"""Each answer of a server counted, by its host: also those that an origin makes nothing of."""

from __future__ import annotations

from types import SimpleNamespace

import aiohttp
from yarl import URL

from pagein.daemon.tally import Tally


def count_answers(session: aiohttp.ClientSession, tally: Tally) -> None:
    """Have all answers to requests of `session` counted, redirects among them."""

    async def redirected(
        _: aiohttp.ClientSession, __: SimpleNamespace, it: aiohttp.TraceRequestRedirectParams
    ) -> None:
        tally.answered(_host(it.response.url), str(it.response.status))

    async def ended(
        _: aiohttp.ClientSession, __: SimpleNamespace, it: aiohttp.TraceRequestEndParams
    ) -> None:
        tally.answered(_host(it.response.url), str(it.response.status))

    async def failed(
        _: aiohttp.ClientSession, __: SimpleNamespace, it: aiohttp.TraceRequestExceptionParams
    ) -> None:
        tally.answered(_host(it.url), "failed")

    watch = aiohttp.TraceConfig()
    watch.on_request_redirect.append(redirected)
    watch.on_request_end.append(ended)
    watch.on_request_exception.append(failed)
    watch.freeze()
    session.trace_configs.append(watch)


def _host(url: URL) -> str:
    """Host, and port where the URL names one."""
    host = url.host or ""
    return host if url.explicit_port is None else f"{host}:{url.explicit_port}"
