"""A container image as a tree, in this process and without root: `ls`, `cat`, `extract` and so on.

What is kept is below the user's own cache directory; see `images.pull` for what that is.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from pagein.cli.pulling import Shown
from pagein.cli.settings import DEFAULT_HOSTS_DIR
from pagein.images.connections import Connections
from pagein.images.dockerconfig import DockerConfig
from pagein.images.hosts import Host, hosts_of
from pagein.images.layers.errors import LayerError
from pagein.images.layers.heap import heap
from pagein.images.platforms import host_platform, parse_platform
from pagein.images.pull import Pull, Pulled, watched
from pagein.images.reference import RegistryReference, parse_reference
from pagein.images.store import Store
from pagein.library.files import default_cache
from pagein.origins.base import Origin, OriginError
from pagein.origins.retry import Backoff

if TYPE_CHECKING:
    from pagein.erofs.merged import MergedImage
    from pagein.erofs.reader import Image
    from pagein.erofs.superblock import Read
    from pagein.images.layerblob import LayerBlob

_TIMEOUT = 30.0
_SHOW = 0.5


class Here:
    """A store of this user, and a loop for what fetches; a context manager for one thread."""

    def __init__(self, cache: str | None, hosts_dir: str = DEFAULT_HOSTS_DIR) -> None:
        """`cache` instead of ~/.cache/pagein; `hosts_dir` has what containerd has of mirrors."""
        self._hosts_dir = hosts_dir
        self._hosts: dict[str, tuple[Host, ...]] = {}
        self.store = Store(os.path.join(cache or default_cache(), "images"))
        self._runner = asyncio.Runner()
        self._stack = ExitStack()

    def __enter__(self) -> Here:
        with ExitStack() as stack:
            stack.enter_context(self._runner)
            self.store.prepare()
            self.connections = self._runner.run(self._connect())
            stack.callback(lambda: self._runner.run(self.connections.close()))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    async def _connect(self) -> Connections:
        return Connections(
            DockerConfig(), timeout=_TIMEOUT, hosts=lambda name: self._hosts.get(name, ())
        )

    def pull(self, source: str, platform: str, *, keep_data: bool = True) -> tuple[Pull, Pulled]:
        """Bring an image's indexes here, and the layers that have none. Raises OSError."""
        heap.give_back()
        reference = parse_reference(source)
        if isinstance(reference, RegistryReference):
            self._hosts[reference.host] = hosts_of(self._hosts_dir, reference.host)
        wanted = parse_platform(platform) if platform else host_platform()
        pull = Pull(self.store, self.connections, source, wanted, keep_data=keep_data)
        kept = "data and indexes are kept" if keep_data else "indexes are kept"
        with Shown(kept) as shown:
            pulled = self._runner.run(
                watched(pull, lambda found: shown.update([asdict(p) for p in found]), _SHOW)
            )
            shown.update([asdict(each) for each in pull.progress])
        if pulled.note:
            print(f"pagein: {pulled.note}", file=sys.stderr)
        return pull, pulled

    def push(self, pull: Pull, pulled: Pulled, trace: bytes | None = None) -> str:
        """Push the indexes, and a trace if there is one; the digest of the artifact."""
        return self._runner.run(pull.push(pulled, trace))

    def layer(self, blobs: tuple[LayerBlob, ...]) -> tuple[Image, frozenset[bytes]]:
        """A layer's tree, and the directories in it that it does not describe itself."""
        from pagein.erofs.reader import Image
        from pagein.images.layers.index import Index

        index = Index(self.store.path("indexes", blobs[0].index), root=blobs[0].root)
        self._stack.callback(index.close)
        reads = [self._read(blob) for blob in blobs[1:]]
        return Image(index.metadata, reads), frozenset(index.implied())

    def _read(self, blob: LayerBlob) -> Read:
        origin = self._runner.run(blob.open(self.store, self.connections))
        self._stack.callback(lambda: self._runner.run(origin.close()))
        return lambda offset, length: self._runner.run(_read_patiently(origin, offset, length))


async def _read_patiently(origin: Origin, offset: int, length: int) -> bytes:
    """`origin.read`, as often as it may still work and begins within the timeout."""
    give_up = asyncio.get_running_loop().time() + _TIMEOUT
    backoff = Backoff()
    while True:
        try:
            return await origin.read(offset, length)
        except OriginError as problem:
            pause = backoff.pause(problem.after)
            if not problem.retry or asyncio.get_running_loop().time() + pause > give_up:
                raise
        await asyncio.sleep(pause)


@contextmanager
def open_image(
    source: str, *, cache: str | None, hosts_dir: str, platform: str = ""
) -> Iterator[MergedImage]:
    """The merged tree of an image's layers. Raises OSError in one line."""
    from pagein.erofs.merged import MergedImage

    with Here(cache, hosts_dir) as here:
        _, pulled = here.pull(source, platform)
        try:
            opened = [here.layer(blobs) for blobs in pulled.layers]
            yield MergedImage([image for image, _ in opened], [paths for _, paths in opened])
        except LayerError as problem:
            raise OSError(errno.EIO, str(problem)) from None
