"""Layers as one tree: what overlayfs makes of them, who shares them, and when they go."""

import errno
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from tests.e2e.harness import wait_for
from tests.stacks.conftest import Stacker, options_of, tree_of, whiteout

from pagein.control import ControlError
from pagein.testing.webserver import WebServer, serve_in_thread

pytestmark = pytest.mark.root


def base(tree: Path) -> None:
    for name in ("kept", "opaque", "deleted"):
        (tree / name).mkdir()
        (tree / name / "low").write_text("low")
    (tree / "kept" / "gone").write_text("never")


def top(tree: Path) -> None:
    (tree / "kept").mkdir()
    whiteout(tree / "kept" / "gone")
    (tree / "kept" / "high").write_text("high")
    whiteout(tree / "deleted")
    (tree / "opaque").mkdir()
    os.setxattr(tree / "opaque", "trusted.overlay.opaque", b"y")
    (tree / "opaque" / "high").write_text("high")


def test_whiteouts_and_opaque_directories(stacker: Stacker) -> None:
    target = stacker.mount(stacker.layer("0", base), stacker.layer("1", top))
    assert tree_of(target) == ["kept/high:high", "kept/low:low", "opaque/high:high"]
    mount, system = options_of(target)
    assert {"ro", "nosuid", "nodev"} <= mount
    assert {"ro", "redirect_dir=nofollow", "xino=auto"} <= system
    stacker.pagein.umount()
    assert not stacker.pagein.leftovers()
    assert os.listdir(stacker.pagein.state / "layers") == ["empty"]


def test_one_layer(stacker: Stacker) -> None:
    target = stacker.mount(stacker.files("only", a="1"))
    assert tree_of(target) == ["a:1"]
    stacker.pagein.umount()


def test_a_layer_that_is_there_twice(stacker: Stacker) -> None:
    one, other = stacker.files("one", a="1"), stacker.files("other", a="2", b="2")
    target = stacker.mount(one, other, one)
    assert tree_of(target) == ["a:1", "b:2"]
    assert len(stacker.layer_mounts()) == 2
    stacker.pagein.umount()


def test_status_shows_a_stack_and_not_its_layers(stacker: Stacker, public_tmp: Path) -> None:
    layers = [stacker.files(f"{n}", a=f"{n}") for n in range(2)]
    stacker.mount(*layers, rw=public_tmp / "rw")
    (mount,) = stacker.pagein.status()["mounts"]
    assert mount["target"] == str(stacker.pagein.target)
    assert mount["sources"] == ["the stack"]
    assert (mount["layers"], mount["upper"]) == (2, f"{public_tmp}/rw/upper")
    assert len(mount["blobs"]) == 2
    shown = stacker.pagein.ok("status")
    assert f"the stack  (2 layers, on demand, written to {public_tmp}/rw/upper)" in shown
    stacker.pagein.umount()


# ---- writing ------------------------------------------------------------------------------------


def test_what_is_written_is_there_the_next_time(stacker: Stacker, public_tmp: Path) -> None:
    def fill(tree: Path) -> None:
        base(tree)
        os.chown(tree, 12, 34)
        tree.chmod(0o1751)

    layers, rw = [stacker.layer("0", fill), stacker.files("1", x="1")], public_tmp / "rw"
    os.chown(stacker.directory / "1.tree", 12, 34)
    target = stacker.mount(layers[1], layers[0], rw=rw)
    root = target.stat()
    assert (root.st_uid, root.st_gid, stat.S_IMODE(root.st_mode)) == (12, 34, 0o1751)
    (target / "kept" / "low").write_text("written")
    (target / "new").write_text("new")
    (target / "kept" / "gone").unlink()
    shutil.rmtree(target / "deleted")
    stacker.pagein.umount()
    assert (rw / "upper" / "new").read_text() == "new"
    stacker.mount(layers[1], layers[0], rw=rw)
    expected = ["kept/low:written", "new:new", "opaque/low:low", "x:1"]
    assert tree_of(target) == expected
    stacker.pagein.umount()
    stacker.mount(layers[1], layers[0])
    assert "new:new" not in tree_of(target)
    stacker.pagein.umount()


def test_an_upper_directory_has_one_user(stacker: Stacker, public_tmp: Path) -> None:
    layer, rw, other = stacker.files("0", a="1"), public_tmp / "rw", stacker.pagein.dir("other")
    stacker.mount(layer, rw=rw)
    with pytest.raises(ControlError, match=r"is in use: .*mnt is mounted with it") as refused:
        stacker.mount(layer, rw=rw, target=other)
    assert refused.value.errno == errno.EBUSY
    assert len(stacker.pagein.status()["mounts"]) == 1
    stacker.pagein.umount()
    stacker.mount(layer, rw=rw, target=other)
    stacker.pagein.umount(other)


def test_an_upper_directory_that_cannot_be(stacker: Stacker, public_tmp: Path) -> None:
    (public_tmp / "file").write_text("")
    with pytest.raises(ControlError, match=r"file/upper|file: "):
        stacker.mount(stacker.files("0", a="1"), rw=public_tmp / "file")
    assert not stacker.pagein.leftovers()


# ---- set-uid ------------------------------------------------------------------------------------


def test_set_uid_programs_work_below_the_runtime_directory_only(stacker: Stacker) -> None:
    layer = stacker.files("0", a="1")
    with pytest.raises(ControlError, match="set-uid programs of an image may work below") as no:
        stacker.mount(layer, suid=True)
    assert no.value.errno == errno.EPERM
    private = stacker.pagein.state / "private"
    private.mkdir(parents=True)
    stacker.mount(layer, target=private, suid=True)
    options, _ = options_of(private)
    assert "nodev" in options
    assert "nosuid" not in options
    stacker.pagein.umount(private)


# ---- sharing ------------------------------------------------------------------------------------


def test_stacks_share_layers(stacker: Stacker) -> None:
    low, one, two = (stacker.files(name, **{name: name}) for name in ("low", "one", "two"))
    other = stacker.pagein.dir("other")
    stacker.mount(low, one)
    stacker.mount(low, two, target=other)
    assert len(stacker.layer_mounts()) == 3
    stacker.pagein.umount()
    assert len(stacker.layer_mounts()) == 2
    assert tree_of(other) == ["low:low", "two:two"]
    stacker.pagein.umount(other)
    assert not stacker.layer_mounts()


def test_a_layer_cannot_be_unmounted_from_below(stacker: Stacker) -> None:
    stacker.mount(stacker.files("0", a="1"))
    (layer,) = stacker.layer_mounts()
    done = stacker.pagein.run("umount", layer)
    assert "is a layer; unmount what it is part of" in done.stderr
    stacker.pagein.umount()


def test_a_name_means_one_layer(stacker: Stacker) -> None:
    one, two = stacker.files("one", a="1"), stacker.files("two", a="2")
    stacker.mount(one, names=["layer"])
    with pytest.raises(ControlError, match="layer is already mounted, from other blobs"):
        stacker.mount(two, names=["layer"], target=stacker.pagein.dir("other"))
    assert tree_of(stacker.pagein.target) == ["a:1"]
    stacker.pagein.umount()


def test_complete_layers_are_mounted_directly(stacker: Stacker) -> None:
    layers = [stacker.files(f"{n}", **{f"f{n}": "1"}) for n in range(2)]
    stacker.mount(*layers)
    tree_of(stacker.pagein.target)
    stacker.pagein.umount()
    stacker.mount(*layers)
    assert stacker.pagein.status()["mounts"][0]["direct"]
    assert tree_of(stacker.pagein.target) == ["f0:1", "f1:1"]
    stacker.pagein.umount()


# ---- mistakes -----------------------------------------------------------------------------------


def test_a_layer_that_is_none_undoes_the_stack(stacker: Stacker) -> None:
    good, bad = stacker.files("good", a="1"), stacker.directory / "bad"
    bad.write_bytes(bytes(8192))
    with pytest.raises(ControlError, match=f"{bad} is "):
        stacker.mount(good, bad)
    assert not stacker.pagein.leftovers()


def test_a_failure_leaves_other_stacks_alone(stacker: Stacker) -> None:
    good, bad, other = stacker.files("good", a="1"), stacker.directory / "bad", "other"
    bad.write_bytes(bytes(8192))
    stacker.mount(good)
    with pytest.raises(ControlError):
        stacker.mount(good, bad, target=stacker.pagein.dir(other))
    assert tree_of(stacker.pagein.target) == ["a:1"]
    assert len(stacker.layer_mounts()) == 1
    stacker.pagein.umount()


def test_too_many_layers(stacker: Stacker) -> None:
    layer = stacker.files("0", a="1")
    with pytest.raises(ControlError, match="501 layers: overlayfs takes 500 at most") as refused:
        stacker.mount(*[layer] * 501, names=[f"{n}" for n in range(501)])
    assert refused.value.errno == errno.E2BIG
    assert not stacker.pagein.leftovers()


def test_no_layers(stacker: Stacker) -> None:
    with pytest.raises(ControlError, match="at least one layer"):
        stacker.mount()
    assert not stacker.pagein.leftovers()


def test_a_target_is_mounted_once(stacker: Stacker) -> None:
    layer = stacker.files("0", a="1")
    stacker.mount(layer)
    with pytest.raises(ControlError, match="is already mounted by pagein"):
        stacker.mount(layer)
    stacker.pagein.umount()


def test_a_stack_in_use(stacker: Stacker) -> None:
    target = stacker.mount(stacker.files("0", a="1"))
    with (target / "a").open():
        done = stacker.pagein.run("umount", target)
        assert "is in use" in done.stderr
        assert tree_of(target) == ["a:1"]
        stacker.pagein.ok("umount", "--lazy", target)
        assert not stacker.layer_mounts()
    wait_for(lambda: not stacker.pagein.leftovers())


def test_somebody_else_unmounts(stacker: Stacker) -> None:
    target = stacker.mount(stacker.files("0", a="1"))
    subprocess.run(["umount", target], check=True)
    wait_for(lambda: not stacker.layer_mounts())
    wait_for(lambda: not stacker.pagein.leftovers())


def large(tree: Path) -> None:
    (tree / "large").write_bytes(os.urandom(8 << 20))


def test_a_server_that_dies(stacker: Stacker) -> None:
    """What is not here cannot be read, and the stack can be unmounted all the same."""
    layer = stacker.layer("0", large)
    with serve_in_thread(WebServer({"/0": layer}, rate=4_000_000)) as web:
        target = stacker.mount(web.url("/0"), timeout=5.0)
    with (target / "large").open("rb") as file, pytest.raises(OSError) as failed:
        os.pread(file.fileno(), 4096, 7 << 20)
    assert failed.value.errno == errno.EIO
    stacker.pagein.umount()
    # What the kernel reads ahead waits for its own deadline, and keeps the file open until then.
    wait_for(lambda: not stacker.pagein.leftovers())


# ---- mount(2), for kernels that do not append layers --------------------------------------------

AT_ONCE = """
import sys
from pagein.mounts import overlay
target, upper, work, *layers = sys.argv[1:]
job = {"target": target, "layers": layers, "suid": False}
if upper:
    job |= {"upper": upper, "work": work}
overlay.mount(job, append=False)
"""


@pytest.mark.parametrize("writable", [False, True])
def test_many_layers_by_mount_2(public_tmp: Path, writable: bool) -> None:
    names = [public_tmp / "layers" / f"{number}" for number in range(500)]
    for name in names:
        name.mkdir(parents=True)
        (name / name.name).write_text("")
        (name / "which").write_text(name.name)
    target = public_tmp / "mnt"
    target.mkdir()
    where = [public_tmp / "rw,x:y" / "upper", public_tmp / "rw,x:y" / "work"]
    command = [sys.executable, "-c", AT_ONCE, target, *(where if writable else ["", ""]), *names]
    subprocess.run(command, check=True)
    try:
        assert len(os.listdir(target)) == 501
        assert (target / "which").read_text() == "499"
        assert ("rw" if writable else "ro") in options_of(target)[0]
    finally:
        subprocess.run(["umount", target], check=True)
