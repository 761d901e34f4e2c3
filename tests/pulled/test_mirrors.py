"""Mirrors of a registry, as containerd's hosts.toml has them: asked first, and never believed."""

import errno
import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.e2e.harness import Pagein, read_errno, wait_for
from tests.images.processes import PASSWORD, USER, docker_registry, htpasswd
from tests.images.processes import Keys as Certificates
from tests.pulled.front import LIES, Asked, Front, Lie, Reply, of_layers, once, status
from tests.pulled.misbehaving import (
    MIDDLE,
    Pushed,
    content,
    file_in,
    indexed,
    piece,
    plain,
    right,
)
from tests.pulled.rig import good, refused, user

pytestmark = pytest.mark.root


@dataclass
class Mirrored:
    """A registry, and a mirror of it that `hosts` names."""

    front: Front
    mirror: Front
    hosts: Path
    docker: Path

    def say(self, text: str) -> Path:
        """Write the registry's hosts.toml."""
        place = self.hosts / self.front.host.replace(":", "_").join(("", "_"))
        place.mkdir(exist_ok=True)
        (place / "hosts.toml").write_text(text)
        return place / "hosts.toml"

    def log_in(self, *hosts: str) -> None:
        entry = {"username": USER, "password": PASSWORD}
        (self.docker / "config.json").write_text(json.dumps({"auths": dict.fromkeys(hosts, entry)}))

    def mount(self, pagein: Pagein, *options: object, name: str | None = None) -> None:
        words = ["--hosts-dir", self.hosts, *options, name or indexed(self.front), pagein.target]
        good(pagein.run("mount", *words))

    def asked(self) -> tuple[int, int]:
        """Requests of mirror and registry since the last look."""
        found = len(self.mirror.asked), len(self.front.asked)
        self.mirror.asked.clear()
        self.front.asked.clear()
        return found


@pytest.fixture
def mirrored(front: Front, pushed: Pushed, tmp_path: Path) -> Iterator[Mirrored]:
    with Front(pushed.host).running() as mirror:
        found = Mirrored(front, mirror, tmp_path / "certs.d", tmp_path / "docker")
        found.hosts.mkdir()
        found.say(f'[host."http://{mirror.host}"]\n')
        found.log_in(front.host, mirror.host)
        yield found


# ---- who is asked -------------------------------------------------------------------------------


def test_a_mirror_serves_all_and_is_told_for_whom(
    mirrored: Mirrored, pagein: Pagein, pushed: Pushed
) -> None:
    mirrored.mount(pagein)
    assert piece(file_in(pagein, 0)) == right(0)
    assert {each.value("ns") for each in mirrored.mirror.asked} == {mirrored.front.host}
    assert mirrored.asked()[1] == 0
    # Whoever takes its place knows of it too.
    (pid,) = (pid for pid, line in pagein.processes().items() if "pagein.daemon" in line)
    os.kill(pid, signal.SIGKILL)
    assert wait_for(lambda: piece(file_in(pagein, 5))) == right(5)
    assert mirrored.asked()[1] == 0
    assert pushed.check(pagein)


def test_who_may_only_pull_does_not_say_what_a_tag_stands_for(
    mirrored: Mirrored, pagein: Pagein
) -> None:
    mirrored.say(f'[host."http://{mirrored.mirror.host}"]\ncapabilities = ["pull"]\n')
    mirrored.mount(pagein)
    assert piece(file_in(pagein, 0)) == right(0)
    assert not mirrored.front.layers()
    assert not [each for each in mirrored.mirror.asked if "/manifests/v1" in each.path]
    assert [each for each in mirrored.mirror.asked if "/manifests/sha256:" in each.path]


def test_a_mirror_without_the_indexes(mirrored: Mirrored, pagein: Pagein) -> None:
    """They are the registry's then, and no layer is taken whole; data is still the mirror's."""
    mirrored.mirror.lie = lambda asked, reply: (
        Reply(404) if "referrers" in asked.path or "/manifests/sha256-" in asked.path else None
    )
    mirrored.mount(pagein)
    assert not list((pagein.cache / "images/layers").iterdir())
    mirrored.asked()
    mirrored.front.lie = lambda asked, reply: Reply(502)
    assert piece(file_in(pagein, 0)) == right(0)
    assert mirrored.asked()[1] == 0


@pytest.mark.long
def test_a_registry_that_is_dead_has_a_mirror(mirrored: Mirrored, pagein: Pagein) -> None:
    mirrored.front.lie = lambda asked, reply: Reply(502)
    mirrored.mount(pagein)
    assert piece(file_in(pagein, 0)) == right(0)


# ---- mirrors that do not do ---------------------------------------------------------------------


def test_a_mirror_that_lies_stands_aside(
    mirrored: Mirrored, pagein: Pagein, pushed: Pushed
) -> None:
    mirrored.mount(pagein)
    mirrored.asked()
    mirrored.mirror.lie = of_layers(LIES["other bytes"])
    assert file_in(pagein, 0).read_bytes() == content(0)
    assert mirrored.mirror.layers()
    mirrored.asked()
    for number in (5, 9):
        assert file_in(pagein, number).read_bytes() == content(number)
    assert not mirrored.mirror.layers()
    line = next(each for each in pagein.log().splitlines() if "wrong bytes of blob sha256:" in each)
    assert mirrored.mirror.host in line
    (mirror,) = (
        each
        for each in pagein.status()["servers"]
        if each["server"] == f"http://{mirrored.mirror.host}"
    )
    assert mirror["aside_for"] > 0
    assert "wrong bytes of blob sha256:" in pagein.ok("status")
    assert pushed.check(pagein)


def flip(asked: Asked, reply: Reply) -> Reply:
    """A bit here and there of data that is stored as it is: it can be decompressed all the same."""
    body = bytearray(reply.body)
    for at in range(4000, len(body), 8192):
        body[at] ^= 1
    return Reply(reply.status, reply.headers, bytes(body))


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        pytest.param(LIES["other bytes"], "layer sha256:", marks=pytest.mark.long),
        (flip, ", not sha256:"),
    ],
    ids=["all wrong", "some bits"],
)
def test_when_all_lie_no_byte_gets_through(
    lie: Lie, said: str, mirrored: Mirrored, pagein: Pagein, pushed: Pushed
) -> None:
    """The log names the layer's digest, and that of the chunk if it comes to that."""
    mirrored.mount(pagein)
    mirrored.mirror.lie = mirrored.front.lie = of_layers(lie)
    path = file_in(pagein, 0)
    assert read_errno(path, MIDDLE) == errno.EIO
    failed = [each for each in pagein.log().splitlines() if "failed: layer sha256:" in each]
    assert any(said in each for each in failed), pagein.log()
    pushed.check(pagein)
    mirrored.front.lie = None
    assert wait_for(lambda: piece(path)) == right(0)


@pytest.mark.long
@pytest.mark.parametrize("lie", ["breaks off", "404", "500", "another total"])
def test_a_mirror_in_trouble_costs_readers_nothing_but_time(
    lie: str, mirrored: Mirrored, pagein: Pagein, pushed: Pushed
) -> None:
    mirrored.mount(pagein)
    mirrored.mirror.lie = of_layers(LIES[lie])
    for number in range(3):
        assert file_in(pagein, number).read_bytes() == content(number)
    assert pushed.check(pagein)


def test_a_layer_that_is_pulled_wrong_is_pulled_again_from_another(
    mirrored: Mirrored, pagein: Pagein, pushed: Pushed
) -> None:
    mirrored.mirror.lie = once(of_layers(LIES["other bytes"]))
    mirrored.mount(pagein, name=plain(mirrored.front))
    assert piece(file_in(pagein, 0)) == right(0)
    pushed.check(pagein)


# ---- TLS, errors --------------------------------------------------------------------------------


def test_a_mirror_with_a_certificate_of_its_own(
    mirrored: Mirrored, pushed: Pushed, tmp_path: Path
) -> None:
    """Commands that mount nothing look there as well."""
    shutil.copytree(pushed.directory / "data", tmp_path / "data")
    keys = Certificates(tmp_path)
    words = ("--hosts-dir", mirrored.hosts, "cat", indexed(mirrored.front), "/data/1")
    with docker_registry(tmp_path, htpasswd(tmp_path), tls=keys) as host:
        mirrored.log_in(mirrored.front.host, host)
        path = mirrored.say(f'[host."https://{host}"]\nca = "ca.crt"')
        shutil.copy(keys.certificate, path.parent / "ca.crt")
        assert user(*words, text=False).stdout == content(1)
        assert mirrored.front.asked == []


def test_a_file_that_cannot_be_understood_is_named(mirrored: Mirrored, pagein: Pagein) -> None:
    path = mirrored.say(f'[host."http://{mirrored.mirror.host}"]\nskip_verify = 1\n')
    words = ["--hosts-dir", mirrored.hosts, indexed(mirrored.front)]
    for line in (
        refused(pagein.run("mount", *words, pagein.target)),
        refused(user("--hosts-dir", mirrored.hosts, "ls", indexed(mirrored.front))),
    ):
        assert f'{path}: host."http://{mirrored.mirror.host}".skip_verify: expected true' in line
    done = pagein.run("run", *words, "true")
    assert done.returncode == 125
    assert str(path) in done.stderr
    assert not pagein.leftovers()


# ---- a registry that is dead --------------------------------------------------------------------


@pytest.mark.long
def test_reads_of_a_dead_registry_fail_at_once_and_it_comes_back_by_itself(
    front: Front, pagein: Pagein, pushed: Pushed
) -> None:
    good(pagein.run("mount", "--fail-after", "0.5", indexed(front), pagein.target))
    front.lie = status(502)

    def state() -> str:
        name = f"http://{front.host}"
        found = [each for each in pagein.status()["servers"] if each["server"] == name]
        return str(found[0]["state"])

    # A reader with a deadline of 30 seconds does not wait for that.
    assert read_errno(file_in(pagein, 0), MIDDLE) == errno.EIO
    assert "counts as dead: the server answered 502; what needs it fails at once" in pagein.log()
    assert state() in ("open", "half-open")
    assert f"http://{front.host}: dead for" in pagein.ok("status")
    front.lie = None
    assert wait_for(lambda: piece(file_in(pagein, 0)), patience=60) == right(0)
    assert state() == "closed"
    assert f"http://{front.host} answers again" in pagein.log()
    assert pushed.check(pagein)
