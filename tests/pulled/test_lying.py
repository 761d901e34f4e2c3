"""A registry that lies: a reader gets what is right or an error, and so does the cache."""

import errno
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.harness import Pagein, read_errno, wait_for
from tests.pulled.front import LIES, Front, Lie, of_layers, once
from tests.pulled.misbehaving import (
    MIDDLE,
    Mounted,
    Pushed,
    check_store,
    content,
    indexed,
    piece,
    plain,
    right,
)
from tests.pulled.rig import good, refused, user

pytestmark = pytest.mark.root


def some(*always: str) -> list[Any]:
    """All lies, of which only some are of every run: the others would cost too much."""
    return [name if name in always else pytest.param(name, marks=pytest.mark.long) for name in LIES]


PASSING = {"breaks off", "500", "length too small"}
"""Lies that may have been an accident: the same is asked for again."""


# ---- under a mount ------------------------------------------------------------------------------


@pytest.mark.parametrize("lie", some("length too large", "length too small", "other bytes"))
def test_a_lie_is_an_error_until_it_ends(lie: str, mounted: Mounted, pushed: Pushed) -> None:
    path, number = mounted.next_file()
    mounted.front.lie = of_layers(LIES[lie])
    assert read_errno(path, MIDDLE) == errno.EIO
    assert f"{indexed(mounted.front)}: blob sha256:" in mounted.log()
    pushed.check(mounted.pagein)
    mounted.front.lie = None
    assert wait_for(lambda: piece(path)) == right(number)


# ---- in the middle of a command -----------------------------------------------------------------


@pytest.mark.parametrize("lie", some("length too large", "other bytes"))
def test_a_layer_that_is_pulled(lie: str, front: Front, pagein: Pagein, pushed: Pushed) -> None:
    """By `mount`, which keeps it."""
    front.lie = of_layers(LIES[lie])
    line = refused(pagein.run("mount", plain(front), pagein.target))
    assert plain(front) in line
    assert "sha256:" in line
    assert not pagein.leftovers()
    pushed.check(pagein)
    assert not list((pagein.cache / "images/layers").iterdir())


@pytest.mark.parametrize("lie", some("length too large"))
def test_a_container_whose_layers_are_pulled(lie: str, front: Front, pagein: Pagein) -> None:
    front.lie = of_layers(LIES[lie])
    done = pagein.run("run", plain(front), "--", "/bin/busybox", "true")
    assert done.returncode == 125, done
    assert plain(front) in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not list((pagein.cache / "containers").iterdir())
    assert not pagein.leftovers()


@pytest.mark.long
@pytest.mark.parametrize("lie", LIES)
def test_an_index_that_is_built(lie: str, front: Front, tmp_path: Path) -> None:
    front.lie = of_layers(LIES[lie])
    assert plain(front) in refused(user("index", "--output", tmp_path / "out", plain(front)))
    assert not list((tmp_path / "out").glob("*"))
    check_store(tmp_path / "user-cache/pagein/images")
    front.lie = None
    good(user("index", "--output", tmp_path / "out", plain(front)))
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_file_of_an_indexed_image(front: Front) -> None:
    """What may be an accident is asked for once more; nothing wrong is ever printed."""
    front.lie = once(of_layers(LIES["500"]))
    assert user("cat", indexed(front), "/data/1", text=False).stdout == content(1)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("lie", LIES)
def test_a_file_of_an_indexed_image_for_longer(lie: str, front: Front) -> None:
    front.lie = of_layers(LIES[lie])
    done = user("cat", indexed(front), "/data/1")
    assert indexed(front) in refused(done)
    assert done.stdout == ""
    front.lie = once(of_layers(LIES[lie]))
    again = user("cat", indexed(front), "/data/1", text=False)
    if lie in PASSING | {"other bytes"}:
        assert (again.returncode, again.stdout) == (0, content(1)), again.stderr
    else:
        assert (again.returncode, again.stdout) == (1, b""), again.stderr


@pytest.mark.long
@pytest.mark.parametrize("lie", ["length too large", "length too small"])
@pytest.mark.parametrize("what", ["/manifests/v1", "/manifests/sha256", "/blobs/"])
def test_a_lie_about_all_of_a_document(what: str, lie: str, front: Front, tmp_path: Path) -> None:
    """Manifest, artifact, config and index: each is taken whole."""
    change: Lie = LIES[lie]
    front.lie = lambda asked, reply: (
        change(asked, reply) if what in asked.path and reply.body else None
    )
    line = refused(user("ls", indexed(front)))
    assert indexed(front) in line
    check_store(tmp_path / "user-cache/pagein/images")
