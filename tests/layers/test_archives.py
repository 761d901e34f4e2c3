"""Archives of every form, against what GNU tar extracts as root."""

import shutil
import stat
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import hypothesis
import pytest
from tests.layers import ondisk, rig

pytestmark = pytest.mark.root


def compare(archive: bytes, directory: Path, *, mount: bool) -> None:
    """Fails where the tree of our index differs from what GNU tar extracts."""
    wanted = rig.extracted(archive, directory / "extracted")
    indexed = rig.Indexed(rig.gzipped(archive, 1), directory / "index")
    found = indexed.mounted() if mount else indexed.seen()
    differences = rig.differences(indexed.without_implied(found), indexed.without_implied(wanted))
    if differences:
        pytest.fail("\n".join(differences), pytrace=False)


def all_forms(items: list[ondisk.Item], made: Counter[str], *, mount: bool) -> None:
    """One tree, archived in all forms that can hold it."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="pagein-test-layers-") as name:
        top = Path(name, "tree")
        ondisk.make(top, items)
        for form, maker in ondisk.MAKERS.items():
            try:
                archive = maker(top)
            except ondisk.NotMade:
                continue
            work = Path(name, "work")
            work.mkdir()
            hypothesis.note(f"form: {form}")
            compare(archive, work, mount=mount)
            shutil.rmtree(work)
            made[form] += 1


def item(path: str, kind: ondisk.Kind = "file", size: int = 0, **more: object) -> ondisk.Item:
    attributes = {"mode": 0o644, "uid": 0, "gid": 0, "mtime_ns": 1_600_000_000 * 10**9, **more}
    parts = [part.encode() for part in path.split("/")]
    return ondisk.Item(parts, kind, size=size, **attributes)  # type: ignore[arg-type]


PLAIN = [
    item("usr/bin/tool", size=20_000, mode=0o4755, uid=1000, gid=7),
    item("usr/bin/alias", "hardlink"),
    item("usr/bin/sh", "symlink"),
    item("usr/empty"),
    item("usr/page", size=4096),
    item("usr/large", size=300_000),
    item("dev/fifo", "fifo"),
    item("dev/char", "char", size=3),
    item("dev/block", "block", size=5, mode=0o600),
    item("tmp", "dir", mode=0o1777),
]
ODD = [
    *PLAIN,
    item("/".join(["d" * 90] * 3), size=10, mtime_ns=1_600_000_000_123_456_789),
    item("n" * 255, size=513, uid=1 << 31, gid=(1 << 32) - 2),
    item("t/" + "l" * 120, "hardlink"),
    item("links/0", "symlink"),
    item("links/1", "symlink"),
    item("links/2", "symlink"),
    item("links/3", "symlink"),
    item("sparse/1", "sparse", size=1),
    item("sparse/2", "sparse", size=4097),
    item("sparse/3", "sparse", size=511),
    item("capable", size=600, mode=0o755, xattrs={b"user.a": b"bin\0\n", b"user.b=c%": b""}),
    item("new\nline", size=1, mtime_ns=10**9 + 1),
    item("\xe4\xf6", "dir", xattrs={b"trusted.t": b"\xff" * 300}),
]


@pytest.mark.parametrize("form", ondisk.MAKERS)
@pytest.mark.parametrize("items", [PLAIN, ODD], ids=["plain", "odd"])
def test_an_archive_reads_as_tar_extracts_it(
    form: str, items: list[ondisk.Item], tmp_path: Path
) -> None:
    ondisk.make(tmp_path / "tree", items)
    try:
        archive = ondisk.MAKERS[form](tmp_path / "tree")
    except ondisk.NotMade:
        assert items is ODD, "the form should hold this tree"
        return
    compare(archive, tmp_path, mount=form == "gnu sparse 1.0")


def umoci(*arguments: str | Path) -> None:
    command = ["umoci", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, timeout=200)


@pytest.mark.skipif(shutil.which("umoci") is None, reason="needs umoci")
def test_a_delta_of_umoci_has_no_parents(public_tmp: Path) -> None:
    image, bundle = f"{public_tmp}/image:1", public_tmp / "bundle"
    umoci("init", "--layout", public_tmp / "image")
    umoci("new", "--image", image)
    umoci("unpack", "--image", image, bundle)
    ondisk.make(bundle / "rootfs/first", PLAIN)
    umoci("repack", "--refresh-bundle", "--image", image, bundle)
    before = set((public_tmp / "image/blobs/sha256").iterdir())
    (bundle / "rootfs/first/usr/page").write_bytes(b"changed")
    (bundle / "rootfs/first/usr/large").unlink()
    umoci("repack", "--image", image, bundle)
    new = set((public_tmp / "image/blobs/sha256").iterdir()) - before
    (delta,) = (blob for blob in new if blob.read_bytes()[:2] == b"\x1f\x8b")
    indexed = rig.Indexed(delta.read_bytes(), public_tmp / "index")
    seen = indexed.mounted()
    assert seen[b"/first/usr/page"].content == b"changed"
    gone = seen[b"/first/usr/large"]
    assert (stat.S_ISCHR(gone.mode), gone.rdev) == (True, 0)
    assert {b"", b"first"} <= {*indexed.built.tree.implied}


@pytest.mark.long
def test_archives_mount_as_tar_extracts_them() -> None:
    made: Counter[str] = Counter()
    hypothesis.settings(max_examples=30, phases=[hypothesis.Phase.generate])(
        hypothesis.given(items=ondisk.ITEMS)(lambda items: all_forms(items, made, mount=True))
    )()
    assert made.keys() == ondisk.MAKERS.keys()
    assert made.total() >= 200, made
