"""The image of bench/coldimage.py, Debian with Python and numpy: what a real one costs, and is."""

import hashlib
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.harness import Pagein
from tests.images.processes import docker_registry, need, skopeo_copy
from tests.pulled.rig import good, link_to, user

pytestmark = [pytest.mark.root, pytest.mark.long]

MOST_IN_SEQUENCE = 6
MOST_FOR_A_FILE = 2 << 20
"""Bytes of a gzip layer that a file of 10 KB may cost."""
MAKING = 600.0
"""Seconds, at most, that apt, dpkg and pigz may take."""
_MAKER = Path(__file__).parents[2] / "bench/coldimage.py"


@pytest.fixture(scope="module")
def layout() -> Path:
    """The OCI layout; made, or of an earlier run."""
    need("apt-get")
    need("pigz")
    argv = [sys.executable, str(_MAKER)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=MAKING, check=False)
    return Path(good(done).strip())


@pytest.fixture
def host(layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """HOST:PORT of a registry that has it, with its index."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    with docker_registry(tmp_path) as found:
        skopeo_copy(f"oci:{layout}:v1", f"docker://{found}/debian:v1")
        good(user("index", "--push", f"docker://{found}/debian:v1"))
        yield found


def entry(path: str) -> dict[str, Any]:
    """All that a container could see of a file; the size of a directory is its file system's."""
    said = os.lstat(path)
    seen: dict[str, Any] = {
        "mode": said.st_mode,
        "owner": (said.st_uid, said.st_gid),
        "mtime": said.st_mtime_ns,
        "xattrs": {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
        },
    }
    if not stat.S_ISDIR(said.st_mode):
        seen |= {"size": said.st_size, "nlink": said.st_nlink, "device": said.st_rdev}
    if stat.S_ISLNK(said.st_mode):
        seen["target"] = os.readlink(path)
    if stat.S_ISREG(said.st_mode):
        with open(path, "rb") as file:
            seen["content"] = hashlib.file_digest(file, "sha256").hexdigest()
    return seen


def names(top: Path) -> set[str]:
    """Everything below `top`; of `top` itself the image says nothing."""
    found: set[str] = set()
    for directory, below, files in os.walk(top):
        found |= {os.path.relpath(os.path.join(directory, name), top) for name in (*below, *files)}
    return found


@pytest.mark.timeout(1200)
def test_mounted_it_is_what_umoci_unpacks(
    layout: Path, host: str, pagein: Pagein, public_tmp: Path
) -> None:
    bundle = public_tmp / "bundle"
    argv = [need("umoci"), "unpack", "--image", f"{layout}:v1", str(bundle)]
    subprocess.run(argv, check=True, capture_output=True, timeout=MAKING)
    wanted = bundle / "rootfs"
    mounted = pagein.target
    pagein.mount(f"docker://{host}/debian:v1")
    assert names(mounted) == names(wanted)
    assert len(names(wanted)) > 5000
    for name in sorted(names(wanted)):
        assert (name, entry(f"{mounted}/{name}")) == (name, entry(f"{wanted}/{name}"))
    pagein.umount()


@pytest.mark.timeout(1200)
def test_what_comes_over_the_link(host: str, pagein: Pagein) -> None:
    with link_to(host) as link:
        mounted = pagein.target
        pagein.mount(f"docker://127.0.0.1:{link.port}/debian:v1")
        before = link.ask("counters")
        assert before["sequence"] <= MOST_IN_SEQUENCE
        subprocess.run(["ls", "-lR", str(mounted)], check=True, stdout=subprocess.DEVNULL)
        listed = link.ask("counters")
        assert listed == before
        path = next(
            path
            for path in sorted((mounted / "usr/share").rglob("*"))
            if path.is_file() and not path.is_symlink() and 9_000 < path.stat().st_size < 11_000
        )
        assert len(path.read_bytes()) == path.stat().st_size
        read = link.ask("counters")
        assert 0 < read["bytes_down"] - listed["bytes_down"] <= MOST_FOR_A_FILE
        pagein.umount()
