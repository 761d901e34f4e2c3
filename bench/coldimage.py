"""An OCI image of Debian packages: a base, Python, numpy with an app; one gzip layer each.

    python bench/coldimage.py          # makes it, if it is not there, and prints its directory

Packages come from the mirrors that this machine's apt knows, by apt and dpkg alone: a root
directory is unpacked, configured under chroot(2), and what each step changed is a layer. The image
is kept in ~/.cache/pagein/images under a name made of all packages' versions and of this recipe.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

TAG = "v1"
KEPT = Path.home() / ".cache/pagein/images"
STEPS = (("?essential", "apt"), ("python3", "ca-certificates"), ("python3-numpy",))
"""Packages of each layer; what they depend on comes with them, recommendations do not."""
APP = """\
import json, http.server, ssl
import numpy
matrix = numpy.arange(10_000.0).reshape(100, 100)
print(json.dumps({"trace": float((matrix @ matrix).trace())}), flush=True)
"""
UNREAD = 64
"""Files of 1 MB of random bytes beside the app, of which it reads none."""
_MERGED = ("bin", "sbin", "lib", "lib64")
_NULL, _ZERO, _RANDOM, _URANDOM = (1, 3), (1, 5), (1, 8), (1, 9)
_DEVICES = {"null": _NULL, "zero": _ZERO, "random": _RANDOM, "urandom": _URANDOM}
_ENV = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "DEBIAN_FRONTEND": "noninteractive",
    "LC_ALL": "C.UTF-8",
}


def image() -> Path:
    """The directory of the OCI layout with the image, made unless it is there. Needs root."""
    with tempfile.TemporaryDirectory(prefix="pagein-coldimage-", dir="/var/tmp") as name:
        work = Path(name)
        apt = _Apt(work)
        versions = [apt.versions(STEPS[: number + 1]) for number in range(len(STEPS))]
        recipe = json.dumps([versions, Path(__file__).read_text()])
        kept = KEPT / hashlib.sha256(recipe.encode()).hexdigest()[:16]
        if kept.exists():
            return kept
        layout = _make(work, apt, versions)
        KEPT.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}")
        shutil.copytree(layout, partial)
        try:
            partial.rename(kept)
        except OSError:
            shutil.rmtree(partial)  # somebody else was faster
    return kept


# ---- packages ------------------------------------------------------------------------------------


class _Apt:
    """apt as of a machine on which nothing is installed."""

    def __init__(self, work: Path) -> None:
        self.archives = work / "archives"
        (self.archives / "partial").mkdir(parents=True)
        status = work / "status"
        status.touch()
        options = {
            "Dir::State::status": status,
            "Dir::State::extended_states": work / "extended",
            "Dir::Cache::archives": self.archives,
            "Dir::Cache::pkgcache": "",
            "Dir::Cache::srcpkgcache": "",
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root",
            "Debug::NoLocking": "true",
        }
        self._command = ["apt-get", "-q", "-y"]
        for name, value in options.items():
            self._command += ["-o", f"{name}={value}"]

    def versions(self, steps: Sequence[Sequence[str]]) -> dict[str, str]:
        """Name to version of everything that the packages of `steps` need."""
        said = self._run("--simulate", "install", *(name for step in steps for name in step))
        words = [line.split() for line in said.splitlines() if line.startswith("Inst ")]
        return {each[1]: each[2].strip("(") for each in words}

    def download(self) -> None:
        """Bring the packages of all steps into `archives`."""
        self._run("--download-only", "install", *(name for step in STEPS for name in step))

    def file(self, name: str) -> Path:
        """The downloaded file of a package."""
        (found,) = self.archives.glob(f"{name}_*.deb")
        return found

    def _run(self, *arguments: str) -> str:
        done = subprocess.run([*self._command, *arguments], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"apt-get {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout


def _make(work: Path, apt: _Apt, versions: Sequence[dict[str, str]]) -> Path:
    root, layout = work / "root", work / "layout"
    apt.download()
    _prepare(root)
    layers: list[_Layer] = []
    before: dict[str, _Entry] = {}
    have: set[str] = set()
    for number, wanted in enumerate(versions):
        _install(root, [apt.file(name) for name in wanted if name not in have], first=not have)
        have |= set(wanted)
        if number + 1 == len(versions):
            _add_app(root)
        after = dict(_entries(root))
        layers.append(_write_layer(root, before, after, layout / "blobs/sha256"))
        before = after
    _write_layout(layout, layers)
    return layout


def _prepare(root: Path) -> None:
    """What has to be there before the first package: /usr merged, devices, dpkg's files."""
    for name in _MERGED:
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    (root / "var/lib/dpkg").mkdir(parents=True)
    (root / "var/lib/dpkg/status").touch()
    (root / "dev").mkdir()
    for name, numbers in _DEVICES.items():
        os.mknod(root / "dev" / name, stat.S_IFCHR | 0o666, os.makedev(*numbers))
        (root / "dev" / name).chmod(0o666)


def _install(root: Path, packages: Sequence[Path], *, first: bool) -> None:
    if first:  # dpkg itself has to be there, and its users
        for package in packages:
            with subprocess.Popen(
                ["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE
            ) as unpacked:
                command = ["tar", "-C", str(root), "--keep-directory-symlink", "-x"]
                subprocess.run(command, stdin=unpacked.stdout, check=True)
        for name in ("passwd", "group"):
            shutil.copy(root / f"usr/share/base-passwd/{name}.master", root / "etc" / name)
    debs = root / "debs"
    debs.mkdir()
    for package in packages:
        shutil.copy(package, debs)
    names = [f"/debs/{package.name}" for package in packages]
    dpkg = ["dpkg", "--force-depends", "--force-unsafe-io", "--force-confnew", "--install"]
    done = subprocess.run(
        ["chroot", root, *dpkg, *names],
        env=_ENV,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"dpkg: {done.stdout[-2000:]}")
    shutil.rmtree(debs)


def _add_app(root: Path) -> None:
    app = root / "srv/app.py"
    app.write_text(APP)
    os.setxattr(app, "user.pagein", b"an attribute")
    data = root / "srv/data"
    data.mkdir()
    for number in range(UNREAD):
        (data / f"{number:02}.bin").write_bytes(os.urandom(1_000_000))


# ---- layers --------------------------------------------------------------------------------------

_Entry = tuple[int, ...]


@dataclass(frozen=True)
class _Layer:
    digest: str
    size: int
    diff_id: str


def _entries(root: Path) -> Iterator[tuple[str, _Entry]]:
    """Everything below `root`, parents first, with what changes when it does."""
    for directory, names, files in os.walk(root):
        names.sort()
        for name in sorted([*names, *files]):
            path = os.path.join(directory, name)
            found = os.lstat(path)
            seen = (found.st_mode, found.st_uid, found.st_gid, found.st_ino, found.st_ctime_ns)
            yield os.path.relpath(path, root), (*seen, found.st_size, found.st_mtime_ns)


def _write_layer(
    root: Path, before: dict[str, _Entry], after: dict[str, _Entry], blobs: Path
) -> _Layer:
    """The changes as tar+gzip, with the parents of all that changed."""
    changed = {name for name, seen in after.items() if before.get(name) != seen}
    gone = [name for name in before if name not in after and str(Path(name).parent) in after]
    gone += [name for name in before if name not in after and "/" not in name]
    for name in [*changed, *gone]:
        changed.update(str(each) for each in Path(name).parents)
    changed.discard(".")
    blobs.mkdir(parents=True, exist_ok=True)
    partial = blobs / "partial"
    pigz = ["pigz", "-n", "-6"]
    with (
        partial.open("wb") as out,
        subprocess.Popen(pigz, stdin=subprocess.PIPE, stdout=out) as packer,
    ):
        assert packer.stdin is not None
        pipe = _Hashing(packer.stdin)
        with (
            pipe,
            tarfile.open(
                fileobj=cast("IO[bytes]", pipe), mode="w|", format=tarfile.PAX_FORMAT
            ) as tar,
        ):
            for name in sorted(changed):
                _add(tar, root, name)
            for name in sorted(gone):
                path = Path(name)
                tar.addfile(tarfile.TarInfo(str(path.with_name(f".wh.{path.name}"))))
    if packer.returncode:
        raise RuntimeError(f"pigz ended with {packer.returncode}")
    with partial.open("rb") as packed:
        digest = hashlib.file_digest(packed, "sha256").hexdigest()
    size = partial.stat().st_size
    partial.rename(blobs / digest)
    return _Layer(f"sha256:{digest}", size, f"sha256:{pipe.digest.hexdigest()}")


class _Hashing:
    """A stream to write to, with a digest of what was written."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.digest = hashlib.sha256()
        self._stream = stream

    def __enter__(self) -> _Hashing:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def write(self, data: bytes) -> int:
        """Hash and pass on."""
        self.digest.update(data)
        self._stream.write(data)
        return len(data)


def _add(tar: tarfile.TarFile, root: Path, name: str) -> None:
    path = root / name
    info = tar.gettarinfo(path, arcname=name)
    info.uname = info.gname = ""
    info.mtime = int(info.mtime)  # as image builders write it
    if not info.issym():
        for key in os.listxattr(path):
            value = os.getxattr(path, key).decode("utf-8", "surrogateescape")
            info.pax_headers = {**info.pax_headers, f"SCHILY.xattr.{key}": value}
    if info.isreg():
        with path.open("rb") as file:
            tar.addfile(info, file)
    else:
        tar.addfile(info)


# ---- the layout ----------------------------------------------------------------------------------


def _write_layout(layout: Path, layers: Sequence[_Layer]) -> None:
    """config, manifest, index.json and oci-layout (image-layout.md of the OCI image format)."""

    def blob(kind: str, document: dict[str, Any]) -> dict[str, Any]:
        data = json.dumps(document).encode()
        digest = hashlib.sha256(data).hexdigest()
        (layout / "blobs/sha256" / digest).write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}

    base = "application/vnd.oci.image"
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        "config": {"Env": [f"PATH={_ENV['PATH']}"], "Cmd": ["python3"]},
        "rootfs": {"type": "layers", "diff_ids": [each.diff_id for each in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{base}.manifest.v1+json",
        "config": blob(f"{base}.config.v1+json", config),
        "layers": [
            {"mediaType": f"{base}.layer.v1.tar+gzip", "digest": each.digest, "size": each.size}
            for each in layers
        ],
    }
    named = blob(f"{base}.manifest.v1+json", manifest)
    named["annotations"] = {"org.opencontainers.image.ref.name": TAG}
    index = {"schemaVersion": 2, "manifests": [named]}
    (layout / "index.json").write_text(json.dumps(index))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


if __name__ == "__main__":
    if os.geteuid():
        sys.exit("error: this makes devices and calls chroot, and needs root")
    print(image())
