"""Images converted by the tools there are: ctr-remote, in a containerd of its own, and skopeo."""

import json
import subprocess
import tarfile
import time
from pathlib import Path

from tests.ending import killed
from tests.images.processes import need, skopeo_copy

KINDS = {"estargz": "--estargz", "zstd": "--zstdchunked"}
_NOT_NEEDED = (
    "grpc.v1.cri",
    *(f"snapshotter.v1.{n}" for n in ("aufs", "btrfs", "devmapper", "zfs")),
)
_PATIENCE = 200.0


def converted(layout: Path, directory: Path) -> dict[str, Path]:
    """A layout of each kind, with the image of `layout` under the same tag v1. Needs root."""
    directory.mkdir()
    archive = directory / "image.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(layout, ".")
    config = directory / "config.toml"
    disabled = ", ".join(f'"io.containerd.{name}"' for name in _NOT_NEEDED)
    config.write_text(
        f'version = 2\nroot = "{directory}/root"\nstate = "{directory}/state"\n'
        f"disabled_plugins = [{disabled}]\n"
        f'[grpc]\naddress = "{directory}/c.sock"\n[ttrpc]\naddress = "{directory}/t.sock"\n'
        f'[plugins."io.containerd.internal.v1.opt"]\npath = "{directory}/opt"\n'
    )
    program = need("containerd")
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([program, "--config", str(config)], stdout=log, stderr=log)
    with killed(process):
        _wait(directory, process)
        _ctr(directory, "images", "import", "--no-unpack", "--base-name", "app", archive)
        made = {kind: _convert(directory, kind) for kind in KINDS}
        process.terminate()
        process.wait(timeout=_PATIENCE)
    return made


def by_skopeo(layout: Path, directory: Path) -> Path:
    """A layout with the image of `layout` as zstd:chunked, as c/storage writes it."""
    plain, target = f"dir:{directory}/plain", directory / "layout"
    directory.mkdir()
    skopeo_copy(f"oci:{layout}:v1", plain, "--dest-decompress")
    skopeo_copy(plain, f"oci:{target}:v1", "--dest-compress-format", "zstd:chunked")
    _readable(target)
    return target


def _convert(directory: Path, kind: str) -> Path:
    name, archive, layout = f"app:{kind}", directory / f"{kind}.tar", directory / kind
    _ctr(directory, "images", "convert", KINDS[kind], "--oci", "app:v1", name)
    _ctr(directory, "images", "export", archive, name)
    with tarfile.open(archive) as tar:
        tar.extractall(layout, filter="data")
    path = layout / "index.json"
    index = json.loads(path.read_text())
    index["manifests"][0]["annotations"] = {"org.opencontainers.image.ref.name": "v1"}
    path.write_text(json.dumps(index))
    _readable(layout)
    return layout


def _readable(layout: Path) -> None:
    for path in (layout, *layout.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _ctr(directory: Path, *words: object) -> str:
    argv = [need("ctr-remote"), "--address", f"{directory}/c.sock", *map(str, words)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


def _wait(directory: Path, process: "subprocess.Popen[bytes]") -> None:
    argv = [need("ctr-remote"), "--address", f"{directory}/c.sock", "version"]
    deadline = time.monotonic() + _PATIENCE
    while subprocess.run(argv, capture_output=True, timeout=_PATIENCE, check=False).returncode:
        assert process.poll() is None, (directory / "log").read_text()
        assert time.monotonic() < deadline, (directory / "log").read_text()
        time.sleep(0.02)
