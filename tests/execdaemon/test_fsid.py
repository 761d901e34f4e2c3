"""Options of a mount by fsid."""

import pytest

from pagein.execdaemon.fsid import FsidMount, parse_mount, parse_options


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("fsid=a", FsidMount("a")),
        ("ro,fsid=a,user_xattr", FsidMount("a")),
        ("fsid=a,domain_id=d,device=b,device=c", FsidMount("a", "d", ["b", "c"])),
        ("fsid=a,fsid=b", FsidMount("b")),
        ("", None),
        ("ro,device=b", None),
    ],
)
def test_options(text: str, found: FsidMount | None) -> None:
    assert parse_options(text) == found


@pytest.mark.parametrize(
    "text", ["fsid=", "fsid=a/b", "fsid=" + "x" * 249, "fsid=a,device=", "fsid=a,dax=always"]
)
def test_options_that_are_refused(text: str) -> None:
    with pytest.raises(OSError):
        parse_options(text)


def test_keys_are_those_of_the_kernel() -> None:
    question = FsidMount("a", "", ["b"]).question("/mnt")
    keys = [(bytes.fromhex(b["volume"]), bytes.fromhex(b["cookie"])) for b in question["blobs"]]
    assert keys == [(b"erofs,a", b"a"), (b"erofs,a", b"b")]
    assert question["direct"] is False
    shared = FsidMount("a", "d").question("/mnt")
    assert bytes.fromhex(shared["blobs"][0]["volume"]) == b"erofs,d"


def test_a_mount_of_the_command_line() -> None:
    assert parse_mount("fsid=a,device=b,/x,fsid=y") == (FsidMount("a", "", ["b"]), "/x,fsid=y")
    assert parse_mount("fsid=a,mnt") == (FsidMount("a"), "mnt")


@pytest.mark.parametrize("text", ["/mnt", "fsid=a", "device=b,/mnt", "fsid=a,"])
def test_a_mount_of_the_command_line_without_its_parts(text: str) -> None:
    with pytest.raises(OSError, match="expected fsid=NAME,DIR"):
        parse_mount(text)
