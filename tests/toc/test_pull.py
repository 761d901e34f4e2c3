"""Images whose layers have a TOC: which index is taken, and what becomes of one that is refused."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.images.documents import LAYER, describe, dumps
from tests.toc.rig import archive
from tests.toc.writers import TOC_DIGEST, Made, estargz, sha256, skippable, zstd_chunked

from pagein.cli.imagetree import Here
from pagein.erofs.merged import MergedImage
from pagein.images.layers.format import Compression
from pagein.images.layers.index import Index
from pagein.images.manifest import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST
from pagein.images.pull import Pulled
from pagein.origins.base import OriginError

PLATFORM = "linux/amd64"


def image(directory: Path, layers: Sequence[Made]) -> str:
    """A layout of one image."""
    blobs = directory / "blobs/sha256"
    blobs.mkdir(parents=True)
    rootfs = {"type": "layers", "diff_ids": [sha256(of.tar) for of in layers]}
    config = dumps({"architecture": "amd64", "os": "linux", "rootfs": rootfs})
    described = [describe(of.data, of.media_type, annotations=of.annotations) for of in layers]
    manifest = dumps(
        {"schemaVersion": 2, "config": describe(config, OCI_CONFIG), "layers": described}
        | {"mediaType": OCI_MANIFEST}
    )
    for data in (config, manifest, *(of.data for of in layers)):
        (blobs / sha256(data)[7:]).write_bytes(data)
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX}
    index["manifests"] = [describe(manifest, OCI_MANIFEST)]
    (directory / "index.json").write_text(json.dumps(index))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return f"oci:{directory}"


@pytest.fixture
def lying() -> Made:
    """An eStargz with a wrong digest of its TOC."""
    return estargz(archive())._replace(annotations={TOC_DIGEST: sha256(b"")})


def kinds(here: Here, pulled: Pulled) -> list[Compression]:
    """How each layer is read."""
    found = []
    for meta, *_ in pulled.layers:
        with Index(here.store.path("indexes", meta.index), root=meta.root) as index:
            found.append(index.header.compression)
    return found


def read(here: Here, pulled: Pulled, path: bytes) -> bytes:
    """A file of the image."""
    opened = [here.layer(blobs) for blobs in pulled.layers]
    tree = MergedImage([of for of, _ in opened], [paths for _, paths in opened])
    found = tree.lookup(path)
    return tree.read(found, 0, found.size)


def test_the_layer_itself_is_left_where_it_is(tmp_path: Path) -> None:
    name = image(tmp_path / "layout", [estargz(archive()), zstd_chunked(archive())])
    with Here(str(tmp_path / "cache")) as here:
        pull, pulled = here.pull(name, PLATFORM)
        assert pulled.note == ""
        assert kinds(here, pulled) == [Compression.GZIP_CHUNKS, Compression.ZSTD_CHUNKS]
        assert not any(each.pulled for each in pull.progress)
        assert read(here, pulled, b"usr/again") == b"new, and longer"
        assert not here.store.has("layers", pulled.layers[0][0].layer)
        _, again = here.pull(name, PLATFORM)
        assert again.layers == pulled.layers
        assert not again.new
        with pytest.raises(OriginError, match="nothing to push: its layers bring their own"):
            here.push(pull, pulled)


def test_a_refused_toc_is_named_and_the_layer_pulled(
    lying: Made,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = image(tmp_path / "layout", [lying])
    said = f"the table of contents of layer {sha256(lying.data)} is refused: its TOC is sha256:"
    with Here(str(tmp_path / "cache")) as here:
        with caplog.at_level(logging.WARNING, "pagein.images"):
            pull, pulled = here.pull(name, PLATFORM)
        assert said in caplog.text
        assert f"pagein: {said}" in capsys.readouterr().err
        assert pulled.note.startswith(said)
        assert pulled.note.endswith("; going on without it")
        assert [each.pulled for each in pull.progress] == [True]
        assert kinds(here, pulled) == [Compression.GZIP]
        assert read(here, pulled, b"usr/again") == b"new, and longer"
        _, again = here.pull(name, PLATFORM)  # now there is an index, and nothing to refuse
        assert (again.layers, again.note) == (pulled.layers, "")


def test_a_refused_toc_and_an_index_in_the_artifact(lying: Made, tmp_path: Path) -> None:
    name = image(tmp_path / "layout", [lying])
    with Here(str(tmp_path / "indexer")) as here:
        here.push(*here.pull(name, PLATFORM))
    with Here(str(tmp_path / "cache")) as here:
        pull, pulled = here.pull(name, PLATFORM)
        assert "is refused" in pulled.note
        assert not any(each.pulled for each in pull.progress)
        assert kinds(here, pulled) == [Compression.GZIP]


def test_another_image_cannot_bring_a_toc_for_a_layer(tmp_path: Path) -> None:
    """Whoever has a layout may put what he likes behind a digest: ranges are not verified by it."""
    made = zstd_chunked(archive())
    good = made._replace(data=made.data + skippable(bytes(100)))
    bad = zstd_chunked(archive().replace(b"new, and longer", b"evil, and worse"))
    evil = tmp_path / "evil"
    name = image(evil, [good._replace(annotations=bad.annotations)])
    padded = bad.data.ljust(len(good.data), b"\0")
    (evil / "blobs/sha256" / sha256(good.data)[7:]).write_bytes(padded)
    with Here(str(tmp_path / "cache")) as here:
        _, pulled = here.pull(name, PLATFORM)
        assert read(here, pulled, b"usr/again") == b"evil, and worse"
    for layer in (good, good._replace(annotations={})):
        name = image(tmp_path / f"good{len(layer.annotations)}", [layer])
        with Here(str(tmp_path / "cache")) as here:
            _, pulled = here.pull(name, PLATFORM)
            assert read(here, pulled, b"usr/again") == b"new, and longer"


def test_without_the_annotation_it_is_an_ordinary_layer(tmp_path: Path) -> None:
    assert estargz(archive()).media_type == LAYER
    name = image(tmp_path / "layout", [estargz(archive())._replace(annotations={})])
    with Here(str(tmp_path / "cache")) as here:
        _, pulled = here.pull(name, PLATFORM)
        assert (kinds(here, pulled), pulled.note) == ([Compression.GZIP], "")
