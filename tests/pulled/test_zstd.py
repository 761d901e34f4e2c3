"""An image whose layer skopeo pushed as zstd: one frame, mounted, read in its middle."""

import io
import random
import tarfile
from pathlib import Path

import pytest
from tests.e2e.harness import Pagein
from tests.images.processes import docker_registry, skopeo_copy
from tests.layers.zstdencoders import image_of, tar_of_text
from tests.pulled.rig import good, link_to, user

pytestmark = pytest.mark.root

SIZE = 36 << 20


def test_a_frame_is_read_in_its_middle(
    pagein: Pagein, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    content = tar_of_text(random.Random(9), SIZE)
    image_of(content, tmp_path / "plain")
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = [(each.name, each.size, each.offset_data) for each in archive]
    with docker_registry(tmp_path) as host, link_to(host) as link:
        options = ["--dest-compress", "--dest-compress-format", "zstd"]
        skopeo_copy(f"dir:{tmp_path / 'plain'}", f"docker://{host}/zstd:v1", *options)
        good(user("index", "--push", f"docker://{host}/zstd:v1"))
        pagein.mount(f"docker://127.0.0.1:{link.port}/zstd:v1")
        before = link.ask("counters")["bytes_down"]
        name, size, offset = next(each for each in members if each[2] > SIZE * 3 // 4)
        assert (pagein.target / name).read_bytes() == content[offset : offset + size]
        first = link.ask("counters")["bytes_down"] - before
        for name, size, offset in members:
            assert (pagein.target / name).read_bytes() == content[offset : offset + size]
        everything = link.ask("counters")["bytes_down"] - before
        assert 0 < first <= everything // 2  # of five spans or so it may lie in two
        pagein.umount()
