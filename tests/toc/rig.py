"""Layers with a TOC: made into an index, read through it, and compared with what a tar says."""

import asyncio
import io
import random
import tarfile
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.erofs import images, trees
from tests.layers.rig import Bytes, layer_of
from tests.toc.writers import Made

from pagein.images.layers.errors import LayerError
from pagein.images.layers.index import Index
from pagein.images.layers.read import LayerOrigin, MetaOrigin
from pagein.images.toc.fetch import toc_of

Run = Callable[[Coroutine[Any, Any, Any]], Any]


class Opened:
    """A layer whose index was made of its TOC. Raises LayerError if that is refused.

    `run` runs coroutines: for many layers a loop that is there already.
    """

    def __init__(
        self, made: Made, path: Path, data: bytes | None = None, run: Run = asyncio.run
    ) -> None:
        self.data = made.data if data is None else data
        self.path = path
        self.run = run
        self.source = Bytes(self.data)
        toc = toc_of(made.annotations)
        assert toc is not None

        async def make() -> None:
            with path.open("w+b") as out:
                self.built = await toc.make(self.source, layer_of(made.data), out)

        run(make())

    def read(self) -> tuple[bytes, bytes]:
        """The metadata and the data blob, through the origins."""

        async def main() -> tuple[bytes, bytes]:
            with Index(self.path) as index:
                index.verify()
                meta, data = MetaOrigin(index), LayerOrigin(index, self.source)
                try:
                    return (
                        await meta.read(0, await meta.size()),
                        await data.read(0, await data.size()),
                    )
                finally:
                    await data.close()

        found: tuple[bytes, bytes] = self.run(main())
        return found

    def seen(self) -> trees.Tree:
        """The tree, read by us."""
        meta, data = self.read()
        return trees.as_read(images.of_bytes(meta, *[data] * bool(data)))


def whole_seconds(tree: trees.Tree) -> trees.Tree:
    """`tree` with times rounded as eStargz has them."""
    second = 10**9
    return {
        path: replace(seen, mtime_ns=(seen.mtime_ns + second // 2) // second * second)
        for path, seen in tree.items()
    }


def archive() -> bytes:
    """All kinds of members, and files of all sizes."""
    draw = random.Random(7)
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:

        def add(name: str, data: bytes = b"", **fields: object) -> None:
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.mode = len(data), 1_600_000_000, 0o644
            for key, value in fields.items():
                setattr(member, key, value)
            tar.addfile(member, io.BytesIO(data))

        add("./", type=tarfile.DIRTYPE, mode=0o755, mtime=1_600_000_001.25)
        add("usr", type=tarfile.DIRTYPE, mode=0o755)
        add("usr/big", draw.randbytes(300_000), uid=1000, gid=70_000, mode=0o4755)
        add("usr/hard", type=tarfile.LNKTYPE, linkname="usr/big")
        add("usr/link", type=tarfile.SYMTYPE, linkname="big", mode=0o777)
        add("usr/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)
        add("usr/fifo", type=tarfile.FIFOTYPE)
        add("usr/attributes", b"x", pax_headers={"SCHILY.xattr.user.a": "b" * 10})
        add("usr/empty")
        add("deep/without/parents", b"deep\n")
        add("usr/.wh.gone")
        add("opaque", type=tarfile.DIRTYPE, mode=0o700)
        add("opaque/.wh..wh..opq")
        for number in range(40):
            add(f"small/{number}", draw.randbytes(draw.choice([1, 100, 4096, 9000])))
        add("sparse", b"begin" + bytes(200_000) + b"middle" + bytes(5000) + b"end")
        add("zeros", bytes(70_000))
        add("f\u00fcr/\u20ac", b"a name beyond ASCII", mtime=1_600_000_000.5)
        add("usr/again", b"old")
        add("usr/again", b"new, and longer", mode=0o600)
    return raw.getvalue()


def refusal(made: Made, path: Path, data: bytes | None = None) -> str:
    """Why a layer is refused, when its index is made or when it is read; "" if it is not."""
    try:
        Opened(made, path, data).read()
    except (LayerError, OSError) as error:
        assert "\n" not in str(error)
        return str(error) or "?"
    return ""
