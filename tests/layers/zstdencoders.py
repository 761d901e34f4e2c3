"""What zstd layers are made by, and of."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sysconfig
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import zstandard
from tests.layers.rig import DEADLINE, sha256

Encode = Callable[[bytes], bytes]


def by_library(
    level: int, *, sized: bool = True, frames: int = 1, checked: bool = False, **options: int
) -> Encode:
    """python-zstandard; options as those of ZstdCompressionParameters."""

    def encode(data: bytes) -> bytes:
        given = zstandard.ZstdCompressionParameters.from_level(
            level, write_content_size=sized, write_checksum=checked, **options
        )
        step = -(-len(data) // frames) or 1
        parts = [data[at : at + step] for at in range(0, len(data), step)] or [b""]
        made = zstandard.ZstdCompressor(compression_params=given)
        return b"".join(map(made.compress, parts))

    return encode


def by_command(*command: str) -> Encode:
    """A filter."""

    def encode(data: bytes) -> bytes:
        done = subprocess.run(
            [*command], input=data, capture_output=True, check=True, timeout=DEADLINE
        )
        return bytes(done.stdout)

    return encode


def flushed(given: zstandard.ZstdCompressionParameters | int, sizes: list[int]) -> Encode:
    """In blocks of these sizes, again and again; by parameters, or a level."""
    if isinstance(given, int):
        given = zstandard.ZstdCompressionParameters.from_level(given)

    def encode(data: bytes) -> bytes:
        made = zstandard.ZstdCompressor(compression_params=given).compressobj()
        parts: list[bytes] = []
        at = number = 0
        while at < len(data):
            size = sizes[number % len(sizes)]
            parts += (
                made.compress(data[at : at + size]),
                made.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK),
            )
            at, number = at + size, number + 1
        return b"".join([*parts, made.flush()])

    return encode


def image_of(data: bytes, plain: Path) -> None:
    """An image of one layer, a tar, as a directory that skopeo knows as dir:."""
    plain.mkdir(parents=True)
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [sha256(data)]},
    }
    named = {}
    for kind, content in (
        ("image.config.v1+json", json.dumps(config).encode()),
        ("image.layer.v1.tar", data),
    ):
        digest = sha256(content)
        (plain / digest.partition(":")[2]).write_bytes(content)
        media_type = f"application/vnd.oci.{kind}"
        named[kind] = {"mediaType": media_type, "digest": digest, "size": len(content)}
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": named["image.config.v1+json"],
        "layers": [named["image.layer.v1.tar"]],
    }
    (plain / "manifest.json").write_text(json.dumps(manifest))
    (plain / "version").write_text("Directory Transport Version: 1.1\n")


def by_skopeo(directory: Path) -> Encode:
    """skopeo, which has Go's klauspost/compress: a layer pushed to a directory as zstd."""

    def encode(data: bytes) -> bytes:
        plain, packed = directory / "plain", directory / "packed"
        image_of(data, plain)
        command = ["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-compress"]
        command += ["--dest-compress-format", "zstd", f"dir:{plain}", f"dir:{packed}"]
        subprocess.run(command, check=True, timeout=DEADLINE, capture_output=True)
        (layer,) = json.loads((packed / "manifest.json").read_text())["layers"]
        assert layer["mediaType"].endswith("tar+zstd")
        name: str = layer["digest"].partition(":")[2]
        return (packed / name).read_bytes()

    return encode


ENCODERS: dict[str, Encode] = {
    "zstd -3": by_command("zstd", "-c", "-3"),
    "zstd -10": by_command("zstd", "-c", "-10"),
    "zstd -19": by_command("zstd", "-c", "-19"),
    "zstd --long=27": by_command("zstd", "-c", "--long=27"),
    "zstd -T2": by_command("zstd", "-c", "-T2", "-5"),
    "pzstd": by_command("pzstd", "-c", "-q", "-p", "2"),
    "library, sized": by_library(6, checked=True),
    "library, not sized": by_library(6, sized=False),
}
"""Those that layers are made with, but for skopeo."""

VARIANTS: dict[str, Encode] = {
    **{f"level {level}": by_library(level) for level in (-5, -1, *range(1, 23))},
    **{f"window {log}": by_library(4, window_log=log) for log in range(10, 28)},
    **{f"window {log}, level 18": by_library(18, window_log=log) for log in (10, 14, 17, 19)},
    "long distances": by_library(5, window_log=22, enable_ldm=1),
    "jobs": by_library(7, threads=2, job_size=1 << 20),
    "frames": by_library(3, frames=7),
    "tiny blocks": flushed(3, [1, 3, 50, 700]),
    "blocks of all sizes": flushed(12, [1, 100_000, 10, 300_000, 5000]),
    "short matches": by_library(16, min_match=3, strategy=7),
}


def tar_of_text(draw: random.Random, size: int) -> bytes:
    """Files of Python itself, again and again, with changes: what a layer looks like."""
    out = io.BytesIO()
    library = Path(sysconfig.get_path("stdlib"))
    found = (path.relative_to(library) for path in library.rglob("*.py"))
    sources = sorted(library / path for path in found if "site-packages" not in path.parts)
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        while out.tell() < size:
            content = bytearray(draw.choice(sources).read_bytes())
            for _ in range(draw.randrange(20)):
                at = draw.randrange(len(content) + 1)
                content[at:at] = draw.randbytes(draw.randrange(10))
            info = tarfile.TarInfo(f"file{out.tell()}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def contents(size: int) -> Iterator[tuple[str, bytes]]:
    """Of every kind, by name."""
    draw = random.Random(size)
    text = tar_of_text(draw, size)
    noise = draw.randbytes(size // 4)
    yield "files", text
    yield "zeros", bytes(size)
    yield "noise", noise * 2
    yield "periodic", (b"ab" * 5000 + draw.randbytes(333)) * (size // 10_333)
    words = [draw.randbytes(draw.randrange(1, 9)) for _ in range(400)]
    yield "words", b"".join(draw.choices(words, k=size // 5))
    mixed = [text[: size // 4], bytes(size // 4), noise[: size // 8], text[: size // 3]]
    yield "all of it", b"".join(mixed)
