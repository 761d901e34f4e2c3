"""Images in OCI layouts: skopeo's, and damaged ones."""

import asyncio
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.images.documents import build, describe, dumps, write_layout
from tests.images.processes import skopeo_copy
from tests.images.rig import INDEX_TYPE, failure, of, opened

from pagein.images.artifacts import ArtifactBlob
from pagein.images.manifest import OCI_INDEX, OCI_MANIFEST, digest_of
from pagein.images.paths import referrers_tag
from pagein.images.platforms import parse_platform
from pagein.images.source import load_image
from pagein.origins.base import OriginError

AMD64 = parse_platform("linux/amd64")
IMAGE, OTHER = build(b"layout"), build(b"other")


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return write_layout(tmp_path / "layout", {"v1": IMAGE, "v2": OTHER})


def change_index(layout: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads((layout / "index.json").read_text())
    change(document)
    (layout / "index.json").write_bytes(dumps(document))


@pytest.mark.parametrize("name", [":v1", "@" + IMAGE.descriptor.digest])
def test_an_image_by_tag_and_by_digest(layout: Path, name: str) -> None:
    async def main() -> None:
        async with opened(f"oci:{layout}{name}") as source:
            image = await load_image(source, AMD64, INDEX_TYPE)
            assert image.descriptor.digest == IMAGE.descriptor.digest
            assert image.artifacts == ()
            origin = source.open_blob(image.manifest.layers[0])
            assert await origin.size() == len(IMAGE.layers[0])
            assert await origin.read(100, 1000) == IMAGE.layers[0][100:1100]
            await origin.close()

    asyncio.run(main())


def test_the_only_image_needs_no_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_layout(tmp_path / "one", {"v1": IMAGE})
    monkeypatch.chdir(tmp_path)

    async def main() -> None:
        async with opened("oci:one") as source:
            subject, data = await source.resolve()
            assert data == IMAGE.manifest
            await source.push_artifact(subject, INDEX_TYPE, [ArtifactBlob("a/b", b"x")])
            # An artifact is no image that could be meant.
            assert (await source.resolve())[1] == IMAGE.manifest

    asyncio.run(main())


def test_what_skopeo_writes(tmp_path: Path) -> None:
    write_layout(tmp_path / "mine", {"v1": IMAGE})
    skopeo_copy(f"oci:{tmp_path}/mine:v1", f"oci:{tmp_path}/theirs:some/name")

    async def main() -> None:
        async with opened(f"oci:{tmp_path}/theirs:some/name") as source:
            image = await load_image(source, AMD64)
            for descriptor, data in zip(image.manifest.layers, IMAGE.layers, strict=True):
                assert await source.blob(descriptor, 1 << 20) == data

    asyncio.run(main())


def test_artifacts_are_kept_beside_the_image_and_skopeo_still_reads_it(layout: Path) -> None:
    def foreign(document: dict[str, Any]) -> None:
        document["manifests"][0]["unknown"] = [1]

    change_index(layout, foreign)
    blob = ArtifactBlob("a/b", os.urandom(1000))

    async def main() -> None:
        async with opened(f"oci:{layout}:v1") as source:
            pushed = await asyncio.gather(
                *(
                    source.push_artifact(IMAGE.descriptor, INDEX_TYPE, [blob], {"n": str(n)})
                    for n in range(8)
                )
            )
            await source.push_artifact(OTHER.descriptor, INDEX_TYPE, [blob])
            await source.push_artifact(IMAGE.descriptor, INDEX_TYPE, [blob], {"n": "0"})
            found = await source.referrers(IMAGE.descriptor.digest, INDEX_TYPE)
            assert {entry.digest for entry in found} == {entry.digest for entry in pushed}
            assert len(found) == 8
            assert await source.referrers(IMAGE.descriptor.digest, "x/y") == []
            image = await load_image(source, AMD64, INDEX_TYPE)
            (first, *_) = image.artifacts
            assert await source.blob(first[1].layers[0], 1000) == blob.data

    asyncio.run(main())
    document = json.loads((layout / "index.json").read_text())
    assert document["manifests"][0]["unknown"] == [1]
    skopeo_copy(f"oci:{layout}:v1", f"oci:{layout}-copy:v1")
    names = [path.name for path in layout.rglob("*") if path.is_file()]
    assert all(len(name) == 64 or name in {"index.json", "oci-layout"} for name in names)


def test_referrers_of_other_tools(layout: Path) -> None:
    """Listed without their type, or in an index under the referrers tag."""
    config = describe(b"{}", INDEX_TYPE)
    subject = describe(IMAGE.manifest, OCI_MANIFEST)
    artifacts = [
        dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [],
               "subject": subject, "artifactType": INDEX_TYPE, "annotations": {"n": str(n)}})
        for n in range(2)
    ]  # fmt: skip
    tagged = dumps({"schemaVersion": 2, "manifests": [
        describe(artifacts[1], OCI_MANIFEST, artifactType=INDEX_TYPE)]})  # fmt: skip
    tag = {"org.opencontainers.image.ref.name": referrers_tag(IMAGE.descriptor.digest)}
    for data in (*artifacts, tagged):
        (layout / "blobs" / "sha256" / digest_of(data)[7:]).write_bytes(data)

    def add(document: dict[str, Any]) -> None:
        document["manifests"] += [
            describe(artifacts[0], OCI_MANIFEST),
            describe(tagged, OCI_INDEX, annotations=tag),
        ]

    change_index(layout, add)

    async def main() -> None:
        async with opened(f"oci:{layout}:v1") as source:
            image = await load_image(source, AMD64, INDEX_TYPE)
            digests = [entry.digest for entry, _ in image.artifacts]
            assert digests == [digest_of(data) for data in artifacts]

    asyncio.run(main())


# ---- what is wrong with it ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "number", "cause"),
    [
        ("", errno.EINVAL, "holds several images: name one (tags there: v1, v2)"),
        (":v3", errno.ENOENT, "holds no such image (tags there: v1, v2)"),
        ("@" + digest_of(b"x"), errno.ENOENT, "holds no such image"),
        ("-none:v1", errno.ENOENT, "there is no oci-layout in it"),
        ("/index.json:v1", errno.ENOENT, "there is no oci-layout in it"),
    ],
)
def test_names_that_are_not_there(layout: Path, name: str, number: int, cause: str) -> None:
    async def main() -> None:
        async with opened(f"oci:{layout}{name}") as source:
            error = await failure(source.resolve(), f"oci:{layout}{name}")
            assert (error.errno, cause in str(error)) == (number, True), str(error)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("file", "content", "cause"),
    [
        ("oci-layout", b"{}", "not an OCI layout of version 1.0.0"),
        ("oci-layout", b'{"imageLayoutVersion": "2.0.0"}', "('2.0.0')"),
        ("oci-layout", b"\xff", "not an OCI layout"),
        ("index.json", b"", "index.json: not a valid manifest"),
        ("index.json", b"[]", "index.json: not a valid manifest"),
        ("index.json", b" " * ((4 << 20) + 2), "more than 4194304 bytes"),
        ("index.json", b'{"schemaVersion":2,"manifests":null}', "there are no tags"),
    ],
)
def test_files_that_are_not_what_they_should_be(
    layout: Path, file: str, content: bytes, cause: str
) -> None:
    (layout / file).write_bytes(content)

    async def main() -> None:
        async with opened(f"oci:{layout}:v1") as source:
            assert cause in str(await failure(source.resolve(), source))
            error = await failure(source.push_artifact(IMAGE.descriptor, "x/y", []), source)
            assert "null" in str(content) or cause in str(error)

    if b"null" in content:
        return asyncio.run(nothing_there(layout, cause))
    asyncio.run(main())
    assert len(list((layout / "blobs" / "sha256").iterdir())) == 10


async def nothing_there(layout: Path, cause: str) -> None:
    async with opened(f"oci:{layout}:v1") as source:
        assert cause in str(await failure(source.resolve(), source))


def test_blobs_that_are_not_what_they_should_be(layout: Path) -> None:
    layer = IMAGE.layer_descriptor(0)
    path = layout / "blobs" / "sha256" / layer.digest[7:]

    async def main() -> None:
        async with opened(f"oci:{layout}:v1") as source:
            right = path.read_bytes()
            for content, cause in [
                (right[:-1], "its descriptor says"),
                (right + b"x", "its descriptor says"),
                (right[::-1], "its digest is"),
            ]:
                path.write_bytes(content)
                assert cause in str(await failure(source.blob(layer, 1 << 20), source))
            path.write_bytes(right[:-1])
            origin = source.open_blob(layer)
            await failure(origin.read(0, 10), path)
            await origin.close()
            path.unlink()
            error = await failure(source.blob(layer, 1 << 20), source)
            assert "there is no blobs/sha256/" in str(error)
            await failure(source.open_blob(layer).read(0, 10), path)
            os.mkfifo(path)
            assert "not a regular file" in str(await failure(source.blob(layer, 1 << 20), source))
            error = await failure(source.blob(layer, 10), source)
            assert f"has {layer.size} bytes, more than 10" in str(error)
            with pytest.raises(OriginError, match="is empty"):
                source.open_blob(of(layer, size=0))

    asyncio.run(main())


def test_a_lock_that_is_held_is_not_waited_for_for_ever(layout: Path) -> None:
    import fcntl

    fd = os.open(layout, os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(fd, fcntl.LOCK_EX)

    async def main() -> None:
        async with opened(f"oci:{layout}:v1", timeout=0.2) as source:
            await failure(source.push_artifact(IMAGE.descriptor, "x/y", []), source)

    try:
        asyncio.run(main())
    finally:
        os.close(fd)


SMALL = dumps({"schemaVersion": 2, "manifests": [describe(IMAGE.manifest, OCI_MANIFEST)]})


def test_a_full_disk_leaves_nothing(layout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    before = sorted(layout.rglob("*"))
    monkeypatch.setattr(os, "fsync", full)

    async def main() -> None:
        async with opened(f"oci:{layout}:v1") as source:
            error = await failure(source.push_artifact(IMAGE.descriptor, "x/y", []), source)
            assert error.errno == errno.ENOSPC

    asyncio.run(main())
    assert sorted(layout.rglob("*")) == before


def test_an_odd_directory_is_one_line(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(f"oci:{tmp_path}/a\nb:v1") as source:
            await failure(source.resolve(), "/a\\nb:v1: there is no oci-layout")

    asyncio.run(main())


@given(st.data())
@settings(max_examples=50)
def test_any_index_json_is_right_or_an_error(tmp_path_factory: Any, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(SMALL)))
    end = data.draw(st.integers(start, min(len(SMALL), start + 20)))
    pieces = st.binary(max_size=5) | st.sampled_from([b"null", b"[]", b"{}", b"-1"])
    content = SMALL[:start] + data.draw(pieces) + SMALL[end:]
    directory = tmp_path_factory.mktemp("fuzz") / "layout"
    write_layout(directory, {"v1": IMAGE})
    (directory / "index.json").write_bytes(content)

    async def main() -> None:
        async with opened(f"oci:{directory}") as source:
            try:
                assert (await source.resolve())[1] == IMAGE.manifest
            except OriginError as error:
                assert str(error).isprintable()

    asyncio.run(main())
