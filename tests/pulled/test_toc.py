"""eStargz and zstd:chunked images, as ctr-remote and skopeo write them, from a real registry."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.harness import Pagein, wait_for
from tests.images.processes import docker_registry, skopeo_copy
from tests.pulled.front import Asked, Front, Reply, once
from tests.pulled.rig import Layers, good, user
from tests.pulled.rootfs import BIG
from tests.pulled.test_images import merged
from tests.pulled.test_traces import prefetched
from tests.pulled.trees import unpacked
from tests.toc.remote import KINDS, by_skopeo, converted

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def layouts(image: Layers, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("toc")
    chunked = by_skopeo(image.layout, top / "skopeo")
    return {**converted(image.layout, top / "ctd"), "skopeo": chunked}


@pytest.fixture(scope="module")
def front(layouts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """A registry with the converted images, and what counts before it."""
    with docker_registry(tmp_path_factory.mktemp("registry")) as host:
        for kind, layout in layouts.items():
            skopeo_copy(f"oci:{layout}:v1", f"docker://{host}/{kind}:v1")
        with Front(host).running() as running:
            yield running


def layers_of(layout: Path) -> list[dict[str, Any]]:
    """The layers of a layout's one image, as its manifest has them."""

    def blob(digest: str) -> Any:
        return json.loads((layout / "blobs/sha256" / digest.partition(":")[2]).read_bytes())

    index = json.loads((layout / "index.json").read_text())
    found: list[dict[str, Any]] = blob(index["manifests"][0]["digest"])["layers"]
    return found


def whole_seconds(tree: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """`tree` with the times that eStargz has."""
    second = 10**9
    for entry in tree.values():
        if "mtime" in entry:
            entry["mtime"] = (entry["mtime"] + second // 2) // second * second
    return tree


@pytest.mark.parametrize("kind", [*KINDS, "skopeo"])
def test_mounted_run_and_looked_into_without_an_index(
    kind: str,
    image: Layers,
    layouts: dict[str, Path],
    front: Front,
    pagein: Pagein,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    name, layers = f"docker://{front.host}/{kind}:v1", layers_of(layouts[kind])
    front.asked.clear()
    pagein.ok("mount", name, pagein.target)
    blobs = [each.path.rpartition("/")[2] for each in front.asked if "/blobs/" in each.path]
    # One range of each layer; of other blobs the config only.
    assert sorted(blobs[1:]) == sorted(layer["digest"] for layer in layers)
    assert blobs[0] not in blobs[1:]
    assert len(front.layers()) == len(layers)
    found = merged(pagein.target)
    wanted = merged(unpacked(image.layout, tmp_path))
    assert found == (wanted if kind == "skopeo" else whole_seconds(wanted))
    if kind == "zstd":  # the same as skopeo's from here on
        pagein.umount()
        return
    done = pagein.run("run", name, "--", "sh", "-c", "cat /srv/text")
    assert (done.returncode, done.stdout) == (0, "text of the top\n"), done
    pagein.umount()
    assert good(user("ls", name, "/")).split() == ["bin", "deep", "etc", "opaque", "srv", "tmp"]
    assert user("cat", name, "/srv/big", text=False).stdout == BIG
    assert not list((pagein.cache / "images/layers").iterdir())


def test_a_server_that_stumbles(layouts: dict[str, Path], front: Front, pagein: Pagein) -> None:
    """Its TOC is asked for again; nobody takes all of a layer for that."""
    front.asked.clear()
    front.lie = once(lambda asked, reply: Reply(503) if asked.is_layer else None)
    try:
        pagein.ok("mount", f"docker://{front.host}/zstd:v1", pagein.target)
    finally:
        front.lie = None
    assert len(front.layers()) == len(layers_of(layouts["zstd"])) + 1
    assert (pagein.target / "srv/big").read_bytes() == BIG
    pagein.umount()


def test_a_server_that_gives_no_ranges(front: Front, pagein: Pagein) -> None:
    """Then the layer is taken whole, as ever."""

    def lie(asked: Asked, reply: Reply) -> Reply | None:
        part = asked.is_layer and not asked.headers["range"].startswith("bytes=0-")
        return Reply(400) if part else None

    front.lie = lie
    try:
        done = pagein.run("mount", f"docker://{front.host}/zstd:v1", pagein.target)
    finally:
        front.lie = None
    assert done.returncode == 0, done
    assert done.stderr.count("cannot be read: ") == 3, done
    assert (pagein.target / "srv/big").read_bytes() == BIG
    pagein.umount()


def test_a_trace_needs_no_index_either(
    layouts: dict[str, Path],
    front: Front,
    pagein: Pagein,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    name, recorded = f"docker://{front.host}/traced:v1", tmp_path / "app.trace"
    skopeo_copy(f"oci:{layouts['estargz']}:v1", name)
    reads = ("sh", "-c", "cat /srv/big > /dev/null")
    good(user("trace", "record", "-o", recorded, "--run", name, "--", *reads))
    pushed = good(user("index", "--push", "--trace", recorded, name))
    digest = pushed.split("pushed as ")[1].strip()
    front.asked.clear()
    good(pagein.run("mount", name, pagein.target))
    wait_for(lambda: f"{name}: prefetch done" in pagein.log())
    assert prefetched(pagein) >= len(BIG)
    assert (pagein.target / "srv/big").read_bytes() == BIG
    assert any(each.path.endswith(digest) for each in front.asked)
    pagein.umount()
