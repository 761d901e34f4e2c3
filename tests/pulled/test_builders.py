"""Layers as the builders of images write them, mounted, against what umoci unpacks as root."""

import gzip
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.harness import Pagein
from tests.images.processes import need
from tests.layers import rig
from tests.pulled.rig import good
from tests.pulled.trees import tree, unpacked

pytestmark = pytest.mark.root

Step = Callable[[Path], None]


def first(top: Path) -> None:
    """All kinds of files, with what they can have."""
    for name in ("usr/bin", "etc/below", "srv/opaque", "srv/hard", "var"):
        (top / name).mkdir(parents=True)
    program = top / "usr/bin/program"
    program.write_bytes(os.urandom(300_000))
    program.chmod(0o4755)
    (top / "usr/bin/other").hardlink_to(program)
    (top / "usr/bin/link").symlink_to("program")
    os.setxattr(program, "user.colour", b"blue")
    os.setxattr(top / "var", "user.colour", b"green")
    (top / "etc/text").write_text("first\n")
    os.chown(top / "etc/text", 1000, 70_000)
    os.mkfifo(top / "etc/fifo")
    os.mknod(top / "etc/null", 0o20666, os.makedev(1, 3))
    for name in ("etc/below/a", "srv/opaque/old", "srv/hard/1", "srv/tree", "srv/file"):
        (top / name).write_text(f"{name}\n")
    (top / "srv/hard/2").hardlink_to(top / "srv/hard/1")
    (top / "\udcff not UTF-8").write_bytes(b"")


def second(top: Path) -> None:
    """What layers can do to those below them."""
    (top / "usr/bin/link").unlink()
    (top / "etc/text").write_text("second\n")
    shutil.rmtree(top / "etc/below")
    shutil.rmtree(top / "srv/opaque")
    (top / "srv/opaque").mkdir()
    (top / "srv/opaque/new").write_text("new\n")
    (top / "srv/hard/1").unlink()
    (top / "srv/tree").unlink()
    (top / "srv/tree").mkdir()
    (top / "srv/tree/file").write_text("was a file itself\n")
    (top / "srv/file").unlink()
    (top / "srv/file").symlink_to("tree/file")


def third(top: Path) -> None:
    """Deep below directories that nothing else of this layer is in; attributes only."""
    (top / "srv/hard/3").write_text("3\n")
    (top / "etc/text").chmod(0o600)
    os.setxattr(top / "usr/bin", "user.size", b"large")


STEPS: list[Step] = [first, second, third]


def buildah(directory: Path) -> Path:
    """The image, by buildah; each step a layer."""
    places = ["--root", str(directory / "root"), "--runroot", str(directory / "runroot")]

    def run(*words: object) -> str:
        argv = [need("buildah"), *places, "--storage-driver", "vfs", *map(str, words)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    layout = directory / "layout"
    base = "scratch"
    for number, step in enumerate(STEPS):
        container = run("from", base)
        step(Path(run("mount", container)))
        run("umount", container)
        base = f"oci:{layout}:{number}"
        run("commit", "--format", "oci", container, base)
        run("rm", container)
    return layout


def umoci(directory: Path) -> Path:
    """The image, by umoci, whose layers name nothing but what changed."""
    layout, bundle = directory / "layout", directory / "made"

    def run(*words: object) -> None:
        argv = [need("umoci"), *map(str, words)]
        subprocess.run(argv, check=True, capture_output=True, timeout=200)

    run("init", "--layout", layout)
    run("new", "--image", f"{layout}:0")
    run("unpack", "--image", f"{layout}:0", bundle)
    for number, step in enumerate(STEPS):
        step(bundle / "rootfs")
        run("repack", "--refresh-bundle", "--image", f"{layout}:{number}", bundle)
        if number + 1 < len(STEPS):
            run("tag", "--image", f"{layout}:{number}", number + 1)
    return layout


def lowest_layer(layout: Path) -> bytes:
    """The first layer of the image, as tar."""

    def blob(digest: str) -> bytes:
        return (layout / "blobs/sha256" / digest.partition(":")[2]).read_bytes()

    entries = json.loads((layout / "index.json").read_text())["manifests"]
    manifest = json.loads(blob(entries[0]["digest"]))
    data = blob(manifest["layers"][0]["digest"])
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def seen(top: Path) -> dict[str, dict[str, Any]]:
    """The tree, without what differs by design.

    Of the root no layer says anything. Overlayfs goes on counting the name that was deleted.
    """
    found = tree(top)
    del found["."]["mtime"]
    del found["srv/hard/2"]["nlink"]
    return found


@pytest.mark.parametrize("build", [buildah, umoci])
def test_a_mount_is_what_umoci_unpacks(
    build: Callable[[Path], Path], pagein: Pagein, public_tmp: Path, tmp_path: Path
) -> None:
    layout = build(public_tmp)
    subprocess.run(["chmod", "-R", "a+rX", str(layout)], check=True)
    good(pagein.run("mount", f"oci:{layout}:2", pagein.target))
    wanted = unpacked(layout, tmp_path, "2")
    assert seen(pagein.target) == seen(wanted)
    pagein.umount()


@pytest.mark.parametrize("build", [buildah, umoci])
def test_a_layer_is_what_tar_extracts(build: Callable[[Path], Path], public_tmp: Path) -> None:
    archive = lowest_layer(build(public_tmp))
    wanted = rig.extracted(archive, public_tmp / "extracted")
    indexed = rig.Indexed(rig.gzipped(archive, 1), public_tmp / "index")
    found = indexed.mounted()
    assert len(wanted) > 15
    assert not rig.differences(indexed.without_implied(found), indexed.without_implied(wanted))
