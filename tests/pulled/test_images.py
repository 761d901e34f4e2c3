"""Images as a user meets them: pushed by skopeo, mounted, listed, run."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.harness import Pagein, wait_for
from tests.images.processes import docker_registry, htpasswd
from tests.pulled.conftest import Rig
from tests.pulled.rig import Layers, good, link_to, log_in, refused, user
from tests.pulled.rootfs import BIG, BUSYBOX
from tests.pulled.trees import tree, unpacked

pytestmark = pytest.mark.root

MOST_IN_SEQUENCE = 6


UNDESCRIBED = (".", "deep", "deep/without")
"""Directories that no layer describes, and the root, in which the last layer deletes something:
umoci leaves them the time at which it unpacks."""


def merged(top: Path) -> dict[str, dict[str, Any]]:
    """`tree` without what nothing says."""
    found = tree(top)
    for name in UNDESCRIBED:
        del found[name]["mtime"]
    return found


def index(name: str) -> None:
    """`pagein index --push`."""
    assert "pushed as sha256:" in good(user("index", "--push", name))


@pytest.mark.parametrize("indexed", [False, True])
def test_a_mount_is_what_umoci_unpacks(
    image: Layers, rig: Rig, pagein: Pagein, tmp_path: Path, indexed: bool
) -> None:
    if indexed:
        index(rig.name)
    done = pagein.run("mount", rig.name, pagein.target)
    good(done)
    assert ("3 of 3 layers have no index: pulling" in done.stderr) is not indexed
    assert merged(pagein.target) == merged(unpacked(image.layout, tmp_path))
    pagein.umount()


def test_extracted_is_what_umoci_unpacks(image: Layers, rig: Rig, tmp_path: Path) -> None:
    index(rig.name)
    good(user("extract", rig.name, "--to", tmp_path / "out"))
    found, wanted = merged(tmp_path / "out"), merged(unpacked(image.layout, tmp_path))
    del found["."], wanted["."]  # extract leaves the directory that it is given as it is
    assert found == wanted


def test_a_cold_mount_takes_few_requests_and_a_listing_none(
    rig: Rig, pagein: Pagein, monkeypatch: pytest.MonkeyPatch
) -> None:
    index(rig.name)
    with link_to(rig.host) as link:
        host = f"127.0.0.1:{link.port}"
        log_in(rig.directory / "docker", host, monkeypatch)
        good(pagein.run("mount", f"docker://{host}/app:v1", pagein.target))
        counters = link.ask("counters")
        assert 0 < counters["sequence"] <= MOST_IN_SEQUENCE, counters
        link.ask("reset")
        subprocess.run(["ls", "-lR", pagein.target], check=True, capture_output=True, timeout=200)
        assert link.ask("counters")["requests"] == 0
        assert (pagein.target / "srv/big").read_bytes() == BIG
        assert link.ask("counters")["requests"] > 0
        pagein.umount()


def test_a_known_image_takes_one_request_and_by_its_digest_none(
    image: Layers, rig: Rig, pagein: Pagein, monkeypatch: pytest.MonkeyPatch
) -> None:
    index(rig.name)
    (entry,) = json.loads((image.layout / "index.json").read_text())["manifests"]
    second = pagein.dir("second")
    with link_to(rig.host) as link:
        host = f"127.0.0.1:{link.port}"
        log_in(rig.directory / "docker", host, monkeypatch)
        for name, wanted in ((f"{host}/app:v1", 1), (f"{host}/app@{entry['digest']}", 0)):
            good(pagein.run("mount", f"docker://{name}", pagein.target))
            link.ask("reset")
            good(pagein.run("mount", f"docker://{name}", second))
            assert link.ask("counters")["requests"] == wanted
            pagein.umount(second)
            pagein.umount()


def test_what_is_complete_needs_neither_registry_nor_credentials(
    rig: Rig, pagein: Pagein, monkeypatch: pytest.MonkeyPatch
) -> None:
    good(pagein.run("mount", rig.name, pagein.target))
    pagein.umount()
    rig.stop()
    monkeypatch.setenv("DOCKER_CONFIG", str(rig.directory / "none"))
    done = pagein.run("mount", rig.name, pagein.target)
    good(done)
    assert "going on with what is known of it" in done.stderr
    assert (pagein.target / "srv/big").read_bytes() == BIG
    pagein.umount()
    assert rig.name in pagein.ok("images")


def test_a_user_half_that_was_killed_goes_on_with_the_credentials(rig: Rig, pagein: Pagein) -> None:
    index(rig.name)
    good(pagein.run("mount", rig.name, pagein.target))
    before = pagein.status()["daemon_pid"]
    os.kill(before, signal.SIGKILL)
    assert (pagein.target / "srv/big").read_bytes() == BIG
    wait_for(lambda: pagein.replaced("daemon_pid", before))
    assert (pagein.target / "bin/busybox").read_bytes() == Path(BUSYBOX).read_bytes()
    pagein.umount()
    assert not (pagein.state / "secrets").exists()


def test_a_directory_for_what_is_written(rig: Rig, pagein: Pagein) -> None:
    written = pagein.dir("written")
    good(pagein.run("mount", "--rw", written, rig.name, pagein.target))
    (pagein.target / "srv/text").write_text("changed")
    pagein.umount()
    assert (written / "upper/srv/text").read_text() == "changed"


def test_run(rig: Rig, pagein: Pagein) -> None:
    done = pagein.run("run", rig.name)
    assert (done.returncode, done.stdout) == (3, "hello\n"), done
    done = pagein.run("run", rig.name, "--", "sh", "-c", "id -u; cat /srv/text")
    assert (done.returncode, done.stdout) == (0, "1000\ntext of the top\n"), done
    assert pagein.run("run", rig.name, "--", "no-such-program").returncode == 127


def test_looked_into_without_a_mount(rig: Rig) -> None:
    assert good(user("cat", rig.name, "/srv/text")) == "text of the top\n"
    assert good(user("ls", rig.name, "/")).split() == ["bin", "deep", "etc", "opaque", "srv", "tmp"]
    assert good(user("ls", rig.name, "/opaque")) == "new\n"


def test_an_index_written_to_a_directory(image: Layers, rig: Rig, tmp_path: Path) -> None:
    good(user("index", "--output", tmp_path / "out", rig.name))
    assert len(list((tmp_path / "out").iterdir())) == len(image.layers)


# ---- what goes wrong ----------------------------------------------------------------------------


def layer_digest(image: Layers, number: int) -> str:
    """The digest of a layer."""
    from pagein.images.manifest import digest_of

    return digest_of(image.layers[number][0])


def spoil(path: Path) -> None:
    """Another byte in the middle of a file, which keeps its size."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def test_wrong_bytes_are_not_pulled(image: Layers, rig: Rig, pagein: Pagein) -> None:
    spoil(rig.blob(layer_digest(image, 0)))
    line = refused(pagein.run("mount", rig.name, pagein.target))
    assert layer_digest(image, 0) in line
    assert not list((pagein.cache / "images/layers").glob(f"{layer_digest(image, 0)}*"))
    assert not pagein.processes()


def test_a_truncated_layer_is_not_pulled(image: Layers, rig: Rig, pagein: Pagein) -> None:
    path = rig.blob(layer_digest(image, 0))
    os.truncate(path, path.stat().st_size - 1000)
    line = refused(pagein.run("mount", rig.name, pagein.target))
    assert layer_digest(image, 0) in line


def test_a_registry_that_dies_under_a_mount_is_an_error_until_it_is_back(
    rig: Rig, pagein: Pagein
) -> None:
    index(rig.name)
    good(pagein.run("mount", "--timeout", "5", rig.name, pagein.target))
    rig.stop()
    with pytest.raises(OSError, match="Input/output error"):
        (pagein.target / "srv/big").read_bytes()
    port = int(rig.host.rpartition(":")[2])
    with docker_registry(rig.directory, htpasswd(rig.directory), port=port):
        # The daemon has to forget the failure first.
        wait_for(lambda: reads(pagein.target / "srv/big") == BIG)
    pagein.umount()


def test_a_container_whose_registry_dies(rig: Rig, pagein: Pagein) -> None:
    index(rig.name)
    good(pagein.run("mount", "--timeout", "5", rig.name, pagein.target))
    rig.stop()
    done = pagein.run("run", rig.name)
    assert done.returncode not in (0, 3), done
    pagein.umount()
    assert not list((pagein.cache / "containers").iterdir())


def reads(path: Path) -> bytes:
    """The content of a file, nothing while it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_wrong_bytes_are_not_read(image: Layers, rig: Rig, pagein: Pagein) -> None:
    index(rig.name)
    good(pagein.run("mount", rig.name, pagein.target))
    spoil(rig.blob(layer_digest(image, 0)))
    with pytest.raises(OSError, match="Input/output error"):
        (pagein.target / "bin/busybox").read_bytes()
    assert (pagein.target / "srv/big").read_bytes() == BIG
    pagein.umount()


def test_an_index_of_another_layer(image: Layers, rig: Rig, pagein: Pagein) -> None:
    import asyncio

    from tests.images.rig import ANN, opened
    from tests.images.rig import Keys as Keychain

    from pagein.images.artifacts import ArtifactBlob
    from pagein.images.indexes import ARTIFACT_TYPE, INDEX_TYPE, LAYER

    out = rig.directory / "out"
    good(user("index", "--output", out, rig.name))
    wrong = next(out.glob(f"*{layer_digest(image, 1)[7:]}*")).read_bytes()

    async def push() -> None:
        async with opened(rig.name, Keychain(ANN)) as source:
            subject, _ = await source.resolve()
            blob = ArtifactBlob(INDEX_TYPE, wrong, {LAYER: layer_digest(image, 0)})
            await source.push_artifact(subject, ARTIFACT_TYPE, [blob])

    asyncio.run(push())
    line = refused(pagein.run("mount", rig.name, pagein.target))
    assert f"is of another layer, {layer_digest(image, 1)}" in line


def test_a_registry_that_is_gone(rig: Rig, pagein: Pagein) -> None:
    rig.stop()
    line = refused(pagein.run("mount", rig.name, pagein.target))
    assert rig.host in line
    assert not pagein.processes()


def test_without_credentials(rig: Rig, pagein: Pagein, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(rig.directory / "none"))
    assert f"docker login {rig.host}" in refused(pagein.run("mount", rig.name, pagein.target))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["docker://UPPER/x"], "capital letters"),
        (["oci:/none:v1"], "oci:/none:v1"),
        (["--platform", "linux/s390x", "IMAGE"], "not for linux/s390x"),
        (["--platform", "nonsense", "IMAGE"], "is no platform"),
        (["--rw", "/tmp", "/etc/hostname"], "--rw: for docker:// and oci: images only"),
    ],
)
def test_mistakes(rig: Rig, pagein: Pagein, words: list[str], said: str) -> None:
    given = [rig.name if word == "IMAGE" else word for word in words]
    assert said in refused(pagein.run("mount", *given, pagein.target))
