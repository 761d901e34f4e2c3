"""Trees on a disk, drawn by hypothesis, and everybody's way to make an archive of one."""

import os
import stat
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hypothesis import strategies as st

DEADLINE = 60.0

LONG = [b"x" * 99, b"y" * 100, b"z" * 101, b"n" * 255]
ODD = [b"\xff\xfe", "äöü".encode(), b"two words", b"new\nline", b"back\\slash", b"=", b"%3D", b"-x"]
NAMES = st.sampled_from([b"a", b"b", b"usr", b"lib", *LONG, *ODD])
# Not between 0 and 0.0001 s: there Python's tarfile writes "1e-05", which GNU tar reads as 1.
MTIMES = st.sampled_from([0, 10**9, 1_600_000_000 * 10**9, 1_600_000_000_123_456_789, 1 << 62]) | (
    st.integers(10**9, 1 << 61)
)
IDS = st.sampled_from([0, 1, 1000, 65534, 0o7777777, 0o7777777 + 1, 1 << 31, (1 << 32) - 2])
XATTRS = st.dictionaries(
    st.sampled_from([b"user.a", b"user.b=c%", b"trusted.t", b"user." + b"long" * 20]),
    st.sampled_from([b"v", b"", b"bin\0ary\n", b"\xff" * 300]),
    max_size=2,
)
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw, revision 2
Kind = Literal["file", "sparse", "dir", "symlink", "hardlink", "fifo", "char", "block"]


@dataclass
class Item:
    """One file to make."""

    path: list[bytes]
    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


ITEMS = st.lists(
    st.builds(
        Item,
        path=st.lists(NAMES, min_size=1, max_size=4),
        kind=st.sampled_from(
            [
                "file",
                "file",
                "file",
                "sparse",
                "dir",
                "symlink",
                "hardlink",
                "fifo",
                "char",
                "block",
            ]
        ),
        mode=st.sampled_from([0o644, 0o755, 0o4755, 0o2711, 0o1777, 0o000]),
        uid=IDS,
        gid=IDS,
        mtime_ns=MTIMES,
        size=st.sampled_from([0, 1, 511, 512, 513, 4095, 4096, 4097, 20_000, 300_000]),
        xattrs=XATTRS,
    ),
    min_size=1,
    max_size=14,
)


def make(top: Path, items: list[Item]) -> None:
    """Make the tree; what cannot be made (a name taken by a file, say) is left out."""
    top.mkdir()
    made: list[tuple[bytes, Item]] = []
    files: list[bytes] = []
    for number, item in enumerate(items):
        path = os.fsencode(top) + b"/" + b"/".join(item.path)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            _make_one(path, item, files, number)
        except OSError:
            continue
        made.append((path, item))
    for path, item in reversed(made):
        _set(path, item)


def _make_one(path: bytes, item: Item, files: list[bytes], number: int) -> None:
    if item.kind == "dir":
        os.mkdir(path)
    elif item.kind == "symlink":
        os.symlink([b"a", b"../" * 40 + b"x", b"/usr/lib", b"t" * 150][number % 4], path)
    elif item.kind == "hardlink":
        os.link(files[number % len(files)] if files else b"", path)
    elif item.kind == "fifo":
        os.mkfifo(path)
    elif item.kind in ("char", "block"):
        form = stat.S_IFCHR if item.kind == "char" else stat.S_IFBLK
        os.mknod(path, form | 0o600, os.makedev(1 + number, item.size % 256))
    else:
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            _fill(fd, item, number)
        finally:
            os.close(fd)
        files.append(path)


def _fill(fd: int, item: Item, number: int) -> None:
    pattern = bytes((number + n * 7) % 251 for n in range(1000))
    if item.kind == "file":
        os.write(fd, (pattern * (item.size // 1000 + 1))[: item.size])
        return
    # Pieces with holes between them; at the end a hole, or data that ends anywhere.
    for piece in range(1 + number % 7):
        os.pwrite(fd, pattern, piece * 50_000 + item.size % 3 * 4096)
    os.ftruncate(fd, 400_000 + item.size)


def _set(path: bytes, item: Item) -> None:
    link = stat.S_ISLNK(os.lstat(path).st_mode)
    os.lchown(path, item.uid, item.gid)
    if not link:
        os.chmod(path, item.mode)
        for name, value in item.xattrs.items():
            try:
                os.setxattr(path, name, value)
            except PermissionError:  # user.* belongs to files and directories only
                continue
        if item.kind == "file" and item.mode == 0o755:
            os.setxattr(path, b"security.capability", CAPABILITY)
    os.utime(path, ns=(0, item.mtime_ns), follow_symlinks=False)


# ---- archives -----------------------------------------------------------------------------------

Maker = Callable[[Path], bytes]


def _run(command: list[str]) -> bytes:
    done = subprocess.run(command, capture_output=True, timeout=DEADLINE, check=False)
    if done.returncode:
        raise NotMade(done.stderr.decode(errors="replace"))
    return done.stdout


class NotMade(Exception):
    """A form that cannot hold this tree; its own maker says so."""


def by(program: str, *options: str) -> Maker:
    """By GNU tar or libarchive's bsdtar."""
    command = [program, "-c", "-f", "-", "--numeric-owner", *options]
    return lambda top: _run([*command, "-C", str(top), "."])


def v7(top: Path) -> bytes:
    """V7 holds neither devices nor long names: what it leaves out is not in the archive."""
    command = ["tar", "-c", "-f", "-", "--numeric-owner", "--format=v7", "-C", str(top), "."]
    return subprocess.run(command, capture_output=True, timeout=DEADLINE, check=False).stdout


def python(form: int) -> Maker:
    """By Python, without "./" and the root, depth first."""

    def make_archive(top: Path) -> bytes:
        archive = top.parent / "python.tar"
        try:
            with tarfile.open(archive, "w", format=form, errors="surrogateescape") as out:
                for name in sorted(os.listdir(top)):
                    out.add(top / name, arcname=name)
            return archive.read_bytes()
        except (ValueError, OverflowError, UnicodeError) as error:
            raise NotMade(str(error)) from error
        finally:
            archive.unlink(missing_ok=True)

    return make_archive


_XATTRS = ("--xattrs", "--xattrs-include=*")
MAKERS: dict[str, Maker] = {
    "gnu v7": v7,
    "gnu oldgnu": by("tar", "--format=oldgnu", "--sparse"),
    "gnu gnu": by("tar", "--format=gnu", "--sparse"),
    "gnu ustar": by("tar", "--format=ustar"),
    "gnu posix": by("tar", "--format=posix", *_XATTRS),
    "gnu sparse 0.0": by("tar", "--format=posix", "--sparse-version=0.0", "--sparse", *_XATTRS),
    "gnu sparse 0.1": by("tar", "--format=posix", "--sparse-version=0.1", "--sparse", *_XATTRS),
    "gnu sparse 1.0": by("tar", "--format=posix", "--sparse-version=1.0", "--sparse", *_XATTRS),
    "gnu global": by("tar", "--format=posix", "--pax-option=globexthdr.name=g,mtime={1970-01-02}"),
    "bsdtar ustar": by("bsdtar", "--format=ustar"),
    "bsdtar pax": by("bsdtar", "--format=pax", "--xattrs"),
    "bsdtar gnutar": by("bsdtar", "--format=gnutar"),
    "python gnu": python(tarfile.GNU_FORMAT),
    "python pax": python(tarfile.PAX_FORMAT),
    "python ustar": python(tarfile.USTAR_FORMAT),
}
