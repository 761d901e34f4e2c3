"""The user half as a process: the daemon, its records of sources, its control socket.

It parses what comes from the network, so it gives its privileges away before it reads the first
byte of that: what it needs open it has open by then.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures.thread  # noqa: F401  what is imported lazily, see below
import contextlib
import encodings.idna  # noqa: F401
import errno
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Sequence
from typing import Any

from msgspec.structs import replace

# All imports are done before the privileges go: afterwards the interpreter's files may be out of
# reach (a Python below a home directory), also for those that libraries import when first used.
import pagein.images.layout
import pagein.images.registry
import pagein.origins.file
import pagein.origins.http  # noqa: F401
from pagein.control import Answer, listen, message_of
from pagein.controlserver import ControlServer
from pagein.daemon import stats
from pagein.daemon.answers import count_answers
from pagein.daemon.background import Background
from pagein.daemon.buffers import Budget
from pagein.daemon.device import DEVICE_LOST, Device, DeviceDead
from pagein.daemon.filedevice import FileDevice
from pagein.daemon.handover import device_from
from pagein.daemon.images import Images
from pagein.daemon.loop import Daemon, raise_fd_limit
from pagein.daemon.objects import Blob
from pagein.daemon.policy import OFF
from pagein.daemon.privileges import give_up_privileges
from pagein.daemon.records import Records
from pagein.daemon.secrets import Secrets
from pagein.daemon.shown import Shown
from pagein.daemon.statefile import StateFile
from pagein.daemon.tally import Now, Tally
from pagein.daemon.wishes import Wishes
from pagein.images.layerblob import LayerBlob, load_record
from pagein.images.layers.heap import heap
from pagein.images.layers.inflate import library
from pagein.origins import Identity, Origin, OriginError, open_origin, redact, resolve
from pagein.origins.session import Session

with contextlib.suppress(ImportError):
    import zstandard  # noqa: F401  of the extra `oci`

log = logging.getLogger("pagein.daemon")

RECORDS = "origins"
IMAGES = "images"
SECRETS = "secrets"
WISHES = "background"


class Process:
    """A `Daemon` whose origins are the sources that were resolved here or by a predecessor.

    It answers before it has a device: an image can be looked up while the kernel half starts.
    """

    def __init__(
        self,
        *,
        cache: str,
        timeout: float,
        fail_after: float,
        secrets_fd: int,
        shown: Shown,
        background: str = OFF,
    ) -> None:
        """`secrets_fd` is the directory that holds credentials, -1 for none.

        `fail_after`: see `origins.session`. `background` is for the blobs that nobody wished
        anything for.
        """
        self.shown = shown
        self.cache = cache
        self.timeout = timeout
        self.stopping = False
        self.records = Records(os.path.join(cache, RECORDS), load_record)
        secrets = Secrets(secrets_fd)
        self.session = Session(fail_after=fail_after)
        self.images = Images(
            os.path.join(cache, IMAGES),
            self.records,
            secrets,
            timeout=timeout,
            session=self.session,
            find=self._find,
        )
        self.budget = Budget()
        self.background = Background(self.budget)
        wishes = StateFile(secrets_fd, WISHES)
        self.wishes = Wishes(self.background, wishes, self._find, default=background)
        self.tally = Tally()
        count_answers(self.session.client, self.tally)
        self.daemon: Daemon | None = None
        self._waiting: asyncio.Future[Device] | None = None

    def stop(self) -> None:
        """Told to end: from now on the device may go at any moment."""
        self.stopping = True
        if self.daemon is not None:
            self.daemon.stop()
        elif self._waiting is not None:
            self._waiting.cancel()

    async def serve(self, device: Awaitable[Device]) -> None:
        """Serve the device, when it is there, until `stop`.

        Raises DeviceDead, OSError as `Daemon.run`, or what `device` raises.
        """
        self._waiting = asyncio.ensure_future(device)
        try:
            given = await self._waiting
        except asyncio.CancelledError:
            if not self.stopping:
                raise
            return
        self.daemon = Daemon(
            given,
            self._origin,
            cache=self.cache,
            timeout=self.timeout,
            opened=self._opened,
            closed=self.wishes.closed,
            budget=self.budget,
            tally=self.tally,
        )
        try:
            await self.daemon.run()
        except OSError:
            if not self.stopping:
                raise

    async def _origin(self, volume: bytes, cookie: bytes) -> Origin:
        loop = asyncio.get_running_loop()
        identity = await loop.run_in_executor(None, self.records.find, cookie)
        if isinstance(identity, LayerBlob):
            return await self.images.open(identity)
        return open_origin(identity, timeout=self.timeout, session=self.session)

    def _opened(self, blob: Blob) -> None:
        self.images.opened(blob)
        self.wishes.opened(blob)

    def _find(self, cookie: bytes) -> Blob | None:
        """The blob of a cookie key, if it is open."""
        blobs = self.daemon.objects.blobs() if self.daemon is not None else ()
        return next((blob for blob in blobs if blob.key[1] == cookie), None)

    async def resolve(self, question: dict[str, Any]) -> Answer:
        """Look at a source; its key for the kernel half."""
        mirrors = tuple(question.get("mirrors") or ())
        identity = await self._resolve(question["source"], mirrors)
        if mirrors and identity.etag is None and identity.last_modified is None:
            cause = "tells neither ETag nor Last-Modified: nothing shows that a mirror has the same"
            raise OriginError.of(identity.source, cause, errno=errno.EINVAL)
        identity = replace(identity, mirrors=mirrors)
        loop = asyncio.get_running_loop()
        key = await loop.run_in_executor(None, self.records.keep, identity)
        if question.get("background"):
            self.wishes.wish(key.decode(), question["background"])
        return {"cookie": key.decode(), "size": identity.size, "source": redact(identity.source)}

    async def image(self, question: dict[str, Any]) -> Answer:
        """As `Images.image`; with `background`, what is wished for its blobs."""
        answer = await self.images.image(question)
        if answer["done"] and question.get("background"):
            for layer in answer["layers"]:
                for blob in layer["blobs"]:
                    self.wishes.wish(blob["cookie"], question["background"])
        return answer

    async def _resolve(self, source: str, mirrors: tuple[str, ...]) -> Any:
        """Its identity now; when it cannot be reached, the last one that was seen.

        Or that of the first mirror that answers.
        """
        try:
            return await resolve(source, timeout=self.timeout, session=self.session)
        except OriginError as problem:
            if not problem.temporary:
                raise
            loop = asyncio.get_running_loop()
            known = await loop.run_in_executor(None, self.records.latest, source)
            if known is None:
                known = await self._from_mirrors(source, mirrors)
            if known is None:
                raise
            log.warning("%s; going on with what is known of it", problem.strerror)
            return known

    async def _from_mirrors(self, source: str, mirrors: tuple[str, ...]) -> Identity | None:
        for mirror in mirrors:
            try:
                found = await resolve(mirror, timeout=self.timeout, session=self.session)
            except OriginError as problem:
                log.warning("%s", problem.strerror)
            else:
                return replace(found, source=source)
        return None

    async def translate(self, question: dict[str, Any]) -> Answer:
        """Touches of blobs as touches of files: see `record.translate`."""
        given = question["touches"]
        found, unknown = await asyncio.to_thread(self.images.translate, given)
        return {"touches": found, "unknown": unknown}

    async def status(self, question: dict[str, Any]) -> Answer:
        """What was fetched, for `pagein status`."""
        blobs = stats.of_blobs(self._blobs())
        for blob in blobs:
            with contextlib.suppress(OSError):
                found = self.records.find(blob["cookie"].encode())
                blob["source"] = (
                    found.label if isinstance(found, LayerBlob) else redact(found.source)
                )
        return {
            "pid": os.getpid(),
            "blobs": blobs,
            "servers": self.session.servers(),
            "tasks": len(asyncio.all_tasks()),
            "traffic": self.tally.values(),
            "waiting": stats.waiting(self._blobs(), asyncio.get_running_loop().time()),
            "metrics": self.shown.addresses,
        }

    def _blobs(self) -> list[Blob]:
        return self.daemon.blobs() if self.daemon is not None else []

    def now(self) -> Now:
        """What holds now, for the metrics."""
        return stats.now(self._blobs(), asyncio.get_running_loop().time())


async def _run(process: Process, control: socket.socket, device: Awaitable[Device]) -> None:
    """Answer on `control`, and serve the device when it is there, until told to end."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, process.stop)
    handlers = {
        "resolve": process.resolve,
        "image": process.image,
        "status": process.status,
        "translate": process.translate,
    }
    server = ControlServer(control, handlers)
    await server.start()
    try:
        await process.shown.start(process.tally, process.now)
        await process.serve(device)
    finally:
        await process.shown.close()
        await server.close()
        await process.background.close()
        await process.images.close()
        await process.session.close()


def serve(
    path: str,
    *,
    control: str,
    cache: str,
    timeout: float,
    fail_after: float,
    user: str,
    metrics: Sequence[int] = (),
    background: str = OFF,
) -> None:
    """Serve the device at `path` until SIGTERM or SIGINT. Raises OSError for the user.

    Answers on the Unix socket `control`; becomes `user` once the device is open. `metrics` are fds
    of sockets to serve those on, and are taken over. `background` is for all blobs.
    """

    async def run() -> None:
        raise_fd_limit()
        try:
            device = await FileDevice.open(path, timeout=timeout)
        except OSError as problem:
            if problem.errno == errno.EBUSY:
                raise OSError(errno.EBUSY, "another daemon holds this device", path) from None
            if problem.errno == errno.ENOENT:
                text = "no such device: does `pagein device` run?"
                raise OSError(errno.ENOENT, text, path) from None
            raise
        os.makedirs(os.path.dirname(control), 0o700, exist_ok=True)
        with listen(control) as sock:
            shown = Shown(metrics)
            secrets = _become(user, cache, os.path.dirname(control), with_parent=False)
            process = Process(
                cache=cache,
                timeout=timeout,
                fail_after=fail_after,
                secrets_fd=secrets,
                shown=shown,
                background=background,
            )
            await _run(process, sock, _there(device))

    logging.basicConfig(level=logging.INFO, format="%(asctime)s daemon %(message)s")
    asyncio.run(run())


async def _there(device: Device) -> Device:
    """A device for which nobody has to wait."""
    return device


def _become(user: str, cache: str, state_dir: str, *, with_parent: bool) -> int:
    """Give privileges away, if there are any; the directory for credentials, open until the end.

    The runtime directory is root's alone: what is in it can be reached by an open one only.
    """
    library()  # of decompression: loaded while its file can be read
    directory = os.path.join(state_dir, SECRETS)
    os.makedirs(directory, 0o700, exist_ok=True)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    if os.geteuid() == 0:
        own = [os.path.join(cache, name) for name in (RECORDS, IMAGES)]
        give_up_privileges(user, own, with_parent=with_parent, fds=[fd])
    return fd


def main() -> int:
    """The process that the keeper starts; its exit status."""
    heap.give_back()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's, which only spin here
    logging.basicConfig(level=logging.INFO, format="%(asctime)s user-half %(message)s")
    parser = argparse.ArgumentParser(prog="pagein.daemon")
    parser.add_argument("--device", required=True)
    for name in ("control-fd", "ready-fd"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--metrics-fd", type=int, action="append", default=[])
    parser.add_argument("--numbers-fd", type=int, default=-1)
    parser.add_argument("--state-dir", required=True)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--timeout", type=float, required=True)
    parser.add_argument("--fail-after", type=float, required=True)
    parser.add_argument("--user", required=True)
    parser.add_argument("--background", default=OFF)
    options = parser.parse_args()
    raise_fd_limit()

    async def run() -> None:
        shown = Shown(options.metrics_fd, options.numbers_fd)
        secrets = _become(options.user, options.cache, options.state_dir, with_parent=True)
        process = Process(
            cache=options.cache,
            timeout=options.timeout,
            fail_after=options.fail_after,
            secrets_fd=secrets,
            background=options.background,
            shown=shown,
        )
        with (
            socket.socket(fileno=options.ready_fd) as line,
            socket.socket(fileno=options.control_fd) as control,
        ):
            device = device_from(line, timeout=options.timeout)
            await _run(process, control, device)

    try:
        asyncio.run(run())
    except DeviceDead as problem:
        log.error("%s", message_of(problem))
        return DEVICE_LOST
    except OSError as problem:
        log.error("%s", message_of(problem))
        return 1
    return 0
