"""A registry with an image in it, and a pagein that mounts from there."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.harness import Pagein, pagein_in
from tests.images.processes import docker_registry, htpasswd, skopeo_copy
from tests.pulled.front import Front
from tests.pulled.misbehaving import PAGE, Mounted, Pushed, indexed, mount, pushing
from tests.pulled.rig import Layers, log_in
from tests.pulled.rootfs import rootfs_layers, write_image

CONFIG: dict[str, Any] = {
    "Cmd": ["/bin/sh", "-c", "echo hello; exit 3"],
    "Env": ["PATH=/bin"],
    "User": "app",
}


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Layers:
    layers = rootfs_layers()
    directory = tmp_path_factory.mktemp("image")
    return Layers(write_image(directory / "layout", layers, **CONFIG), layers)


@pytest.fixture(scope="session")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pushed]:
    with pushing(tmp_path_factory.mktemp("pushed")) as found:
        yield found


@pytest.fixture
def front(pushed: Pushed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Front]:
    """What misbehaves before the registry; docker is logged in there."""
    with Front(pushed.host).running() as running:
        log_in(tmp_path / "docker", running.host, monkeypatch)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
        yield running


@pytest.fixture(scope="session")
def _mounted(pushed: Pushed) -> Iterator[Mounted]:
    top = Path(f"/var/tmp/pagein-test-{os.environ['PAGEIN_TEST_RUN']}-mounted")
    top.mkdir()
    try:
        top.chmod(0o755)
        with (
            pytest.MonkeyPatch.context() as environment,
            Front(pushed.host).running() as front,
            pagein_in(top) as pagein,
        ):
            log_in(top / "docker", front.host, environment)
            mount(pagein, indexed(front), timeout=4)
            yield Mounted(front, pagein)
            pagein.umount()
            assert pushed.check(pagein) > PAGE
    finally:
        shutil.rmtree(top)


@pytest.fixture
def mounted(_mounted: Mounted) -> Iterator[Mounted]:
    """A mount of an indexed image through a front that is honest before and after."""
    yield _mounted
    _mounted.front.lie = None
    _mounted.front.revoked.clear()


@dataclass
class Rig:
    """A registry of one test's own, which wants credentials, and docker's configuration of them."""

    directory: Path
    host: str
    stack: contextlib.ExitStack

    @property
    def name(self) -> str:
        return f"docker://{self.host}/app:v1"

    def stop(self) -> None:
        """End the registry; its port answers no more."""
        self.stack.close()

    def blob(self, digest: str) -> Path:
        """The file that the registry has of a blob."""
        kind, _, digits = digest.partition(":")
        blobs = self.directory / "data/docker/registry/v2/blobs"
        return blobs / kind / digits[:2] / digits / "data"


@pytest.fixture
def rig(image: Layers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    with contextlib.ExitStack() as stack:
        host = stack.enter_context(docker_registry(tmp_path, htpasswd(tmp_path)))
        skopeo_copy(image.name, f"docker://{host}/app:v1")
        log_in(tmp_path / "docker", host, monkeypatch)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
        yield Rig(tmp_path, host, stack)


@pytest.fixture
def pagein(public_tmp: Path) -> Iterator[Pagein]:
    with pagein_in(public_tmp) as running:
        yield running
