"""EROFS images that the kernel reads through our daemon: every byte, cold, warm and from memory."""

from pathlib import Path

import pytest
from tests.e2e.harness import Image, serve, sums
from tests.realkernel.rig import LINUX_6_1, Daemon, checksums, drop_caches, reader

from pagein.testing.webserver import WebServer

pytestmark = pytest.mark.realkernel


def sources_of(kind: str, image: Image, packed: Path) -> list[Path]:
    return {"plain": [image.single], "lz4": [packed], "devices": [image.meta, image.blob]}[kind]


@pytest.mark.parametrize(
    ("kind", "over"),
    [("plain", "file"), ("plain", "http"), ("lz4", "http"), ("devices", "http")],
)
def test_an_image_is_read_right_and_fetched_once(
    kind: str, over: str, image: Image, packed: Path, served: Daemon, server: WebServer
) -> None:
    if kind == "lz4" and LINUX_6_1:
        pytest.skip("EROFS of Linux 6.1 reads no compressed file through fscache (facts 13)")
    files = sources_of(kind, image, packed)
    urls = serve(server, **{f"{number}": path for number, path in enumerate(files)})
    sources = urls if over == "http" else [str(path) for path in files]
    right = sums(image.tree)

    served.mount(*sources)
    assert sums(served.target) == right
    drop_caches()
    assert sums(served.target) == right
    assert 0 < served.fetched() <= sum(path.stat().st_size for path in files) + 4096
    served.umount()

    served.mount(*sources)
    assert sums(served.target) == right
    assert served.fetched() == 0
    served.umount()
    served.stop()
    assert served.assert_cached_right(*files) > 0


def test_three_mounts_of_a_domain_share_a_blob_under_six_readers(
    image: Image, other_meta: Path, served: Daemon, server: WebServer
) -> None:
    names = {"meta": image.meta, "blob": image.blob, "single": image.single, "other": other_meta}
    meta, blob, single, other = serve(server, **names)
    targets = [served.dir(name) for name in ("a", "b", "c")]
    served.mount(meta, blob, target=targets[0])
    served.mount(single, target=targets[1])
    served.mount(other, blob, target=targets[2])
    right = sums(image.tree)

    for _ in range(2):
        readers = [reader(target) for target in targets * 2]
        drop_caches()
        assert [checksums(each) for each in readers] == [right] * 6
        drop_caches()
    blobs = served.ask({"op": "status"})["blobs"]
    assert len(blobs) == 4  # one of them twice in use
    for target in targets:
        served.umount(target)
    served.stop()
