"""Images for `pagein mount` and `pagein run`: pulled by jobs that commands look after.

A question waits a moment at most; who asks goes on asking until the image is there. So progress is
seen, a command that goes away stops its pull, and one that comes back finds what is done.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from pagein.control import Answer
from pagein.daemon.foresight import Foresights, command_in
from pagein.daemon.objects import Blob
from pagein.daemon.plans import Foreseen, tells, traced
from pagein.daemon.prefetch import Prefetcher
from pagein.daemon.records import Records
from pagein.daemon.secrets import Secrets
from pagein.images.auth import Credentials
from pagein.images.connections import Connections
from pagein.images.foresight.command import Command
from pagein.images.hosts import Host
from pagein.images.layerblob import LayerBlob
from pagein.images.layers.errors import LayerError
from pagein.images.layers.spans import Kept
from pagein.images.platforms import host_platform, parse_platform
from pagein.images.pull import Pull, Pulled
from pagein.images.store import Store
from pagein.images.traces.document import Trace, TraceError, parse_trace, unpack
from pagein.images.traces.record import BlobTouch, FileTouch, translate
from pagein.origins import Identity, Origin
from pagein.origins.session import Session

log = logging.getLogger("pagein.daemon")

_WAIT = 0.5
"""Seconds that a question waits for its answer."""
_ABANDONED = 15.0
"""Seconds after which nobody asks any more."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """An image as it was asked for; `trace` is packed, "" for the one beside its indexes."""

    source: str
    platform: str
    trace: str
    prefetch: bool
    run: str
    """What `pagein run` says of its command, as JSON; "" for a mount."""


@dataclass(eq=False)
class _Job:
    pull: Pull
    task: asyncio.Task[Pulled]
    asked: float


class Images:
    """The image side of the user half; made on its loop, closed on it."""

    def __init__(
        self,
        directory: str,
        records: Records[Identity | LayerBlob],
        secrets: Secrets,
        *,
        timeout: float,
        session: Session | None = None,
        find: Callable[[bytes], Blob | None] = lambda _: None,
    ) -> None:
        """`find` gives the blob of a cookie key, if it is open."""
        self._store = Store(directory)
        self._store.prepare()
        self._records = records
        self._secrets = secrets
        self._connections = Connections(
            secrets, timeout=timeout, session=session, hosts=secrets.hosts
        )
        self._spans = Kept()
        self.prefetcher = Prefetcher(self._store, self._connections, find)
        self.foresights = Foresights(
            self._store, self._connections, self._spans, find, self.prefetcher.claim
        )
        self._jobs: dict[_Wanted, _Job] = {}
        self._watch: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Stop all pulls; connections are closed."""
        tasks: list[asyncio.Task[Any]] = [job.task for job in self._jobs.values()]
        if self._watch is not None:
            tasks.append(self._watch)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.prefetcher.close()
        await self.foresights.close()
        await self._connections.close()

    async def open(self, blob: LayerBlob) -> Origin:
        """The origin of a blob of a layer."""
        if (known := self.foresights.claim(blob)) is not None:
            return known
        layer = self.prefetcher.claim(blob)
        try:
            return await blob.open(self._store, self._connections, self._spans, layer=layer)
        except BaseException:
            if layer is not None:
                await layer.close()
            raise

    def translate(self, touches: list[BlobTouch]) -> tuple[list[FileTouch], int]:
        """Touches of blobs as those of files, and how many are of none; waits for the disk.

        Raises OSError.
        """
        try:
            return translate(self._store, self._records.find, touches)
        except LayerError as problem:
            raise OSError(errno.EIO, str(problem)) from None

    async def image(self, question: dict[str, Any]) -> Answer:
        """Layers and config of `source`, or how far it is. Raises OSError in one line."""
        for registry, given in (question.get("hosts") or {}).items():
            self._secrets.keep_hosts(registry, _hosts(given))
        for host, given in (question.get("auth") or {}).items():
            self._secrets.keep(host, _credentials(given))
        wanted = _wanted(question)
        job = self._job(wanted)
        job.asked = asyncio.get_running_loop().time()
        done, _ = await asyncio.wait([job.task], timeout=_WAIT)
        progress = [asdict(each) for each in job.pull.progress]
        if not done:
            return {"done": False, "progress": progress}
        self._jobs.pop(wanted, None)
        pulled = job.task.result()
        layers = await asyncio.gather(*(self._layer(blobs) for blobs in pulled.layers))
        return {
            "done": True,
            "progress": progress,
            "source": pulled.name,
            "manifest": pulled.descriptor.digest,
            "layers": layers,
            "config": json.loads(pulled.config).get("config") or {},
            "note": pulled.note,
        }

    def _job(self, wanted: _Wanted) -> _Job:
        job = self._jobs.get(wanted)
        if job is None:
            trace = _parsed(wanted.trace) if wanted.trace else None
            platform = parse_platform(wanted.platform) if wanted.platform else host_platform()
            pull = Pull(self._store, self._connections, wanted.source, platform)
            loop = asyncio.get_running_loop()
            task = loop.create_task(self._bring(pull, trace, wanted))
            job = self._jobs[wanted] = _Job(pull, task, loop.time())
            if self._watch is None or self._watch.done():
                self._watch = loop.create_task(self._stop_abandoned())
        return job

    def opened(self, blob: Blob) -> None:
        """A blob was opened: now it can be filled."""
        self.prefetcher.opened(blob)
        self.foresights.opened(blob)

    async def _bring(self, pull: Pull, trace: Trace | None, wanted: _Wanted) -> Pulled:
        """Pull, and begin to prefetch: what is asked for first comes after the mount only."""
        pulled = await pull.run()
        if wanted.prefetch and (trace := trace or pulled.trace) is not None:
            blobs = [blob for layer in pulled.layers for blob in layer]
            self.prefetcher.start(pulled.name, blobs, pulled.new, traced(self._store, trace))
        elif wanted.prefetch and wanted.run:
            command = command_in(pulled.run, json.loads(wanted.run))
            await self._foresee(pulled, command)
        return pulled

    async def _foresee(self, pulled: Pulled, command: Command) -> None:
        """What the command names is fetched, and what is named by what is read beyond that."""
        plan = None
        if await asyncio.to_thread(tells, self._store, pulled.layers):
            blobs = [b for layer in pulled.layers for b in layer if b.layer in pulled.new]
            plan = Foreseen(self._store, pulled.layers, command)
            self.prefetcher.start(pulled.name, blobs, pulled.new, plan)
        await self.foresights.start(pulled.name, pulled.layers, pulled.new, command, plan)

    async def _stop_abandoned(self) -> None:
        while self._jobs:
            await asyncio.sleep(_ABANDONED / 3)
            now = asyncio.get_running_loop().time()
            for key, job in list(self._jobs.items()):
                if job.asked + _ABANDONED < now:
                    log.info("%s: nobody waits for it any more", job.pull.name)
                    self._jobs.pop(key, None)
                    job.task.cancel()
                    await asyncio.wait([job.task])
                    if not job.task.cancelled():
                        job.task.exception()  # looked at, so that nobody complains

    async def _layer(self, blobs: tuple[LayerBlob, ...]) -> dict[str, Any]:
        """Write down what its keys stand for, before anybody uses them."""
        keys = await asyncio.gather(
            *(asyncio.to_thread(self._records.keep, blob) for blob in blobs)
        )
        told: list[dict[str, Any]] = [
            {"cookie": key.decode(), "size": blob.size, "label": blob.label}
            for key, blob in zip(keys, blobs, strict=True)
        ]
        # Not the layer's digest alone: with another index, or over others, it is another mount.
        return {"name": f"{blobs[0].layer} {told[0]['cookie'][:16]}", "blobs": told}


def _wanted(question: dict[str, Any]) -> _Wanted:
    return _Wanted(
        question["source"],
        question.get("platform") or "",
        question.get("trace") or "",
        question.get("prefetch", True),
        json.dumps(question["run"], sort_keys=True) if question.get("run") else "",
    )


def _parsed(packed: str) -> Trace:
    try:
        return parse_trace("the trace", unpack(packed))
    except TraceError as problem:
        raise OSError(errno.EINVAL, str(problem)) from None


def _hosts(given: object) -> tuple[Host, ...]:
    try:
        return msgspec.convert(given, tuple[Host, ...])
    except msgspec.ValidationError:
        raise OSError(errno.EINVAL, "hosts that are none") from None


def _credentials(given: object) -> Credentials:
    try:
        return msgspec.convert(given, Credentials)
    except msgspec.ValidationError:
        raise OSError(errno.EINVAL, "credentials that are none") from None
