"""`pagein ls`, `cat`, `stat` and `du`."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from tests.e2e.harness import COMMAND, DEADLINE, ranges_of, serve
from tests.erofs import images, trees
from tests.look.commands import fails, ok, ok_apart, run_apart, said
from tests.look.conftest import LARGE, TIME, Image

from pagein.testing.webserver import WebServer

# ---- ls ------------------------------------------------------------------------------------------


def test_ls_shows_names(image: Image) -> None:
    assert ok("ls", *image.words).decode().splitlines() == [
        *("bin", "data", "dev", r"new\nline", r"not-utf8-\udcff", "usr"),
    ]
    assert ok("ls", *image.words, "/bin").split() == [b"again", b"tool"]
    assert ok("ls", *image.words, "data/large") == b"data/large\n"


def test_ls_l_shows_what_ls_l_shows(image: Image) -> None:
    assert ok("ls", "-l", *image.words, "/data").decode().splitlines() == [
        "-rw-r--r-- 1 0 0      0 1970-01-01 00:00 empty",
        "-r--r--r-- 1 0 0 409605 2023-11-14 22:13 hole",
        "-rw-r----- 1 7 8 163840 2023-11-14 22:13 large",
    ]
    assert ok("ls", "-l", *image.words, "/dev").decode().splitlines() == [
        "crw-rw-rw- 1 0 0 1, 3 1970-01-01 00:00 null",
        "prw--w---- 1 0 0    0 1970-01-01 00:00 pipe",
        "srwxr-xr-x 1 0 0    0 1970-01-01 00:00 socket",
    ]
    link = ok("ls", "-l", *image.words, "/bin")
    assert link == b"lrwxrwxrwx 1 0 0 7 1970-01-01 00:00 /bin -> usr/bin\n"


def test_ls_r_goes_down(image: Image) -> None:
    shown = ok("ls", "-R", *image.words, "/usr").decode()
    assert shown == "/usr:\nbin\n\n/usr/bin:\nagain\ntool\n"


def test_ls_json_has_everything(image: Image) -> None:
    lines = ok("ls", "-R", "--json", *image.words).splitlines()
    found = {entry["path"]: entry for entry in map(json.loads, lines)}
    meant = trees.as_meant(image.root)
    assert {os.fsencode(path) for path in found} == {path or b"/" for path in meant}
    large = found["/data/large"]
    assert (large["size"], large["mtime_ns"], large["mode"]) == (LARGE, TIME, "0640")
    assert (large["uid"], large["gid"], large["nlink"], large["type"]) == (7, 8, 1, "file")
    assert found["/bin"]["target"] == "usr/bin"
    assert found["/dev/null"]["device"] == [1, 3]
    assert found["/usr/bin/tool"]["nlink"] == 2


# ---- cat, stat, du -------------------------------------------------------------------------------


def test_cat_writes_the_bytes(image: Image) -> None:
    meant = trees.as_meant(image.root)
    shown = ok("cat", *image.words, "data/large", "/bin/tool", "/data/hole")
    names = (b"/data/large", b"/usr/bin/tool", b"/data/hole")
    assert shown == b"".join(meant[name].content for name in names)
    assert ok("cat", *image.words, b"not-utf8-\xff") == b"bytes"


def test_stat_shows_everything(image: Image) -> None:
    found = json.loads(ok("stat", "--json", *image.words, "/usr/bin/tool"))
    assert found["mode"] == "4755"
    assert found["xattrs"] == {"user.note": "6869", "trusted.t": "01"}
    shown = ok("stat", *image.words, "/dev/null").decode()
    assert "device: 1, 3\n" in shown
    assert " mtime: 1970-01-01 00:00 UTC (0 ns)\n" in shown
    assert " xattr: user.note = 0x6869\n" in ok("stat", *image.words, "/usr/bin/tool").decode()
    assert "target: usr/bin\n" in ok("stat", *image.words, "/bin").decode()
    assert "  path: /usr/bin\n" in ok("stat", "-L", *image.words, "/bin").decode()


@pytest.mark.root
def test_du_counts_as_du_counts_on_the_mount(image: Image) -> None:
    with images.mounted(image.files) as mounted:
        command = ["du", "-B1", "--", "."]
        du = subprocess.run(command, cwd=mounted, capture_output=True, text=True, check=True)
    theirs = {path.removeprefix(".") or "/": int(size) for size, path in _pairs(du.stdout)}
    ours = {path: int(size) for size, path in _pairs(ok("du", "-b", *image.words).decode())}
    assert ours == theirs
    assert ok("du", "-s", "-b", *image.words).split() == [str(theirs["/"]).encode(), b"/"]
    assert json.loads(ok("du", "--json", *image.words, "/data")) == {
        "path": "/data",
        "bytes": theirs["/data"],
    }
    assert ok("du", *image.words, "/data/large") == b"160.0 KiB\t/data/large\n"


def _pairs(text: str) -> list[list[str]]:
    return [line.split("\t", 1) for line in text.splitlines()]


# ---- from a server -------------------------------------------------------------------------------


def test_only_what_is_needed_is_fetched(image: Image, server: WebServer, tmp_path: Path) -> None:
    primary, blob = serve(server, image=image.files[0], blob=image.files[1])
    words = (primary, "--device", blob, "--cache", tmp_path / "cache")
    assert b"large" in ok_apart("ls", "-l", *words, "/data")
    assert ranges_of(server, "/blob") == []
    meant = trees.as_meant(image.root)[b"/data/hole"].content
    assert ok_apart("cat", *words, "/data/hole") == meant
    fetched = ranges_of(server, "/blob")
    assert fetched
    assert sum(end - start for start, end in fetched) < LARGE
    before = len(server.requests)
    assert ok_apart("cat", *words, "/data/hole") == meant
    assert not [each for each in server.requests[before:] if each[2] - each[1] > 1]


# ---- what goes wrong -----------------------------------------------------------------------------


def test_errors_are_one_line(image: Image, tmp_path: Path) -> None:
    primary = image.files[0]
    assert fails("cat", *image.words, "/nope") == "/nope: No such file or directory"
    assert fails("ls", *image.words, "/data/large/x").startswith("/data/large/x: Not a directory")
    assert fails("cat", *image.words, "/data").startswith("/data: is a directory")
    assert fails("cat", *image.words, "/dev/pipe") == "/dev/pipe: is not a regular file"
    assert fails("ls", tmp_path / "nope") == f"{tmp_path}/nope: No such file or directory"
    assert fails("ls", tmp_path) == f"{tmp_path}: is a directory: name a file in it"
    assert "1 data device(s), 0 given: name each" in fails("ls", primary)
    assert "1 data device(s), 2 given" in fails("ls", *image.words, "--device", primary)
    assert "not an EROFS image" in fails("ls", image.files[1])


def test_errors_of_urls_are_one_line(tmp_path: Path, server: WebServer) -> None:
    cache = ("--cache", tmp_path / "cache")
    assert "404" in said(run_apart("ls", *cache, server.url("/nope")))
    assert "http" in said(run_apart("ls", *cache, "ftp://host/image"))


def test_a_damaged_image_is_named_with_the_place(image: Image, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    cut.write_bytes(image.files[1].read_bytes()[:5000])
    told = fails("cat", image.files[0], "--device", cut, "/data/large")
    assert told == f"{image.files[0]}: /data/large: device 1 ends at 5000 bytes: is it cut off?"


def test_a_compressed_file_is_named(tmp_path: Path) -> None:
    tree, made = tmp_path / "tree", tmp_path / "image"
    tree.mkdir()
    (tree / "text").write_bytes(b"again " * 100_000)
    command = ["mkfs.erofs", "-zlz4hc", "--quiet", str(made), str(tree)]
    subprocess.run(command, check=True, capture_output=True, timeout=DEADLINE)
    assert b"600000" in ok("ls", "-l", made)
    assert fails("cat", made, "text").startswith(f"{made}: /text: is compressed")


def test_a_reader_that_leaves_is_no_error(image: Image) -> None:
    command = [*COMMAND, "cat", *map(str, image.words), *["/data/large"] * 50]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as cat:
        assert cat.stdout is not None
        assert cat.stderr is not None
        assert len(cat.stdout.read(10)) == 10
        cat.stdout.close()
        assert cat.stderr.read() == b""
        assert cat.wait(DEADLINE) == 1
