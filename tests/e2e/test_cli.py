"""The command line as such: options, help, status, foreground, and the ends of a mount."""

import errno
import functools
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest
from tests.e2e.harness import COMMAND, DEADLINE, Image, Pagein, read_errno, serve, sums, wait_for
from tests.e2e.readers import Reader
from tests.ending import killed

from pagein.cli.tables import print_status
from pagein.testing.webserver import WebServer

# ---- without root -------------------------------------------------------------------------------

HEAVY = ("aiohttp", "rich")


COMMANDS = ("mount", "umount", "status", "ls", "cat", "stat", "du", "extract")


@pytest.mark.parametrize("words", [(), *((name,) for name in COMMANDS)])
def test_help_is_quick_to_load(words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *COMMAND[1:], *words, "--help"],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=True,
    )
    loaded = {
        line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()
    }
    assert "typer" in loaded
    assert not loaded & set(HEAVY)
    assert "Usage: " in done.stdout
    assert "--cache" in done.stdout


@pytest.mark.parametrize("place", ["before", "after", "both"])
def test_global_options_stand_before_or_after_the_command(place: str, tmp_path: Path) -> None:
    state, cache = tmp_path / "run", tmp_path / "cache"
    options = ["--state-dir", str(state), "--cache", str(cache)]
    wrong = ["--state-dir", "/nowhere", "--cache", "/nowhere"]
    words = {
        "before": [*options, "umount", "/nope"],
        "after": ["umount", *options, "/nope"],
        "both": [*wrong, "umount", *options, "/nope"],
    }
    state.mkdir()
    # Something that only a command with the right directory meets.
    (state / "control.sock").mkdir()
    done = subprocess.run(
        [*COMMAND, *words[place]], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert done.returncode == 1
    assert "/nope is not mounted by pagein" in done.stderr


def test_status_without_anything(tmp_path: Path) -> None:
    places = ["--state-dir", str(tmp_path / "run")]
    run = [*COMMAND, *places, "status"]
    shown = subprocess.run(run, capture_output=True, text=True, timeout=DEADLINE, check=True)
    assert shown.stdout == "nothing is mounted (pagein is not running)\n"
    shown = subprocess.run(
        [*run, "--json"], capture_output=True, text=True, timeout=DEADLINE, check=True
    )
    assert json.loads(shown.stdout)["running"] is False
    assert not (tmp_path / "run").exists()


def test_status_between_mounts(capsys: pytest.CaptureFixture[str]) -> None:
    print_status({"mounts": [], "blobs": [], "oldest_read": None})
    assert capsys.readouterr().out == "nothing is mounted\n"


# ---- with a mount -------------------------------------------------------------------------------


@pytest.mark.root
def test_status_while_a_read_hangs(small: Image, server: WebServer, pagein: Pagein) -> None:
    urls = serve(server, meta=small.meta, blob=small.blob)
    pagein.mount(*urls, options=("--timeout", "100"))
    assert pagein.status()["oldest_read"] is None
    server.rate = 20.0  # no page of it comes before the test lets it
    with Reader(pagein.target / "large/2.txt") as reader:
        oldest = reader.wait_blocked(pagein)
        later = wait_for(lambda: pagein.status()["oldest_read"])
        assert later["age"] > oldest["age"] >= 0
        assert (later["off"], later["pid"]) == (oldest["off"], reader.process.pid)
        found = pagein.status()
        shown = pagein.ok("status")
    assert set(found) == {
        *("running", "pid", "daemon_pid", "front_end", "mount_namespace", "cache", "problem"),
        *("dead", "fuse_requests", "blobs", "mounts", "oldest_read", "waiting"),
        *("numbers", "traffic", "metrics", "servers", "daemon_tasks"),
    }
    assert found["running"] is True
    assert {found["pid"], found["daemon_pid"]} < set(pagein.processes())
    assert found["cache"] == str(pagein.cache)
    assert (found["problem"], found["dead"]) == (None, False)
    (mount,) = found["mounts"]
    assert (mount["target"], mount["sources"]) == (str(pagein.target), urls)
    assert mount["direct"] is False
    blobs = {blob["source"]: blob for blob in found["blobs"]}
    assert set(blobs) == set(urls)
    assert [[blobs[url]["volume"], blobs[url]["cookie"]] for url in urls] == mount["blobs"]
    meta, blob = (blobs[url] for url in urls)
    assert (meta["size"], blob["size"]) == tuple(
        path.stat().st_size for path in (small.meta, small.blob)
    )
    assert meta["resident"] == meta["size"] == meta["fetched"]
    assert blob["resident"] == blob["fetched"] == 0
    assert blob["requests"] >= 1
    assert (blob["state"], blob["errors"], blob["last_error"]) == ("OPEN", 0, None)
    assert set(oldest) == {"age", "pid", "volume", "cookie", "off", "len", "waiting"}
    assert oldest["cookie"] == blob["cookie"]
    assert oldest["waiting"] >= 1
    assert str(reader.process.pid) in shown
    assert urls[1] in shown.replace("\n", "")
    server.rate = None
    pagein.umount()


@pytest.mark.root
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_foreground_shows_progress_and_unmounts(
    number: signal.Signals, small: Image, server: WebServer, pagein: Pagein
) -> None:
    (url,) = serve(server, single=small.single)
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 400))
    argv = pagein.argv("mount", "--foreground", url, pagein.target)
    process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = bytearray()
    thread = threading.Thread(target=_collect, args=(ours, shown))
    thread.start()
    try:
        wait_for(lambda: b" MiB here, " in shown)
        assert sums(pagein.target) == sums(small.tree)
        size = f"{small.single.stat().st_size / (1 << 20):.1f} MiB"
        wait_for(lambda: f"{size} of {size} here, {size} fetched".encode() in shown)
        process.send_signal(number)
        assert process.wait(timeout=DEADLINE) == 0
    finally:
        process.kill()
        process.wait(timeout=DEADLINE)
        thread.join(timeout=DEADLINE)
        os.close(ours)
    assert b"Traceback" not in shown
    assert pagein.leftovers() == []


def _collect(fd: int, into: bytearray) -> None:
    while True:
        try:
            data = os.read(fd, 65536)
        except OSError:  # EIO: the other end is closed
            return
        if not data:
            return
        into += data


@pytest.mark.root
def test_foreground_ends_when_somebody_else_unmounts(
    small: Image, server: WebServer, pagein: Pagein
) -> None:
    (url,) = serve(server, single=small.single)
    argv = pagein.argv("mount", "--foreground", url, pagein.target)
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True) as process:
        wait_for((pagein.target / "large").exists)
        pagein.umount()
        _, said = process.communicate(timeout=DEADLINE)
    assert (process.returncode, said) == (0, "")
    # umount may have come before the command's own question was over, and left the end to it.
    wait_for(lambda: not pagein.leftovers())


@pytest.mark.root
@pytest.mark.parametrize("form", ["fuse", "direct"])
def test_plain_umount_ends_everything(
    form: str, small: Image, server: WebServer, pagein: Pagein
) -> None:
    (url,) = serve(server, single=small.single)
    pagein.mount(url)
    if form == "direct":
        sums(pagein.target)
        pagein.umount()
        pagein.mount(url)
        assert pagein.status()["mounts"][0]["direct"] is True
    assert read_errno(pagein.target / "large/0") == 0
    subprocess.run(["umount", pagein.target], check=True, timeout=DEADLINE)
    wait_for(lambda: not pagein.leftovers())
    pagein.mount(url)
    assert read_errno(pagein.target / "large/0") == 0
    pagein.umount()


@pytest.mark.root
def test_lazy_umount(small: Image, server: WebServer, pagein: Pagein) -> None:
    (url,) = serve(server, single=small.single)
    pagein.mount(url)
    with (pagein.target / "large/0").open("rb") as file:
        pagein.ok("umount", "--lazy", pagein.target)
        assert list(pagein.target.iterdir()) == []
        # Still served, for whom it is open.
        assert file.read() == (small.tree / "large/0").read_bytes()
        assert pagein.processes()
    wait_for(lambda: not pagein.leftovers())


def unmounted(target: Path) -> bool:
    """Whether nothing is mounted there."""
    return not os.path.ismount(target)


@pytest.mark.root
def test_a_mount_while_the_last_one_ends(small: Image, server: WebServer, pagein: Pagein) -> None:
    (url,) = serve(server, single=small.single)
    second = pagein.dir("mnt2")
    targets = [pagein.target, second]
    pagein.mount(url)
    for turn in range(6):
        old, new = targets[turn % 2], targets[1 - turn % 2]
        pipe = subprocess.PIPE
        with subprocess.Popen(pagein.argv("umount", old), stderr=pipe, text=True) as ending:
            if turn % 3:
                # As the keeper lets go: between the answer to umount and the end of its process.
                wait_for(functools.partial(unmounted, old))
            pagein.mount(url, target=new)
            assert (new / "dir-1/5").read_bytes() == (small.tree / "dir-1/5").read_bytes()
            _, said = ending.communicate(timeout=DEADLINE)
        assert (ending.returncode, said) == (0, "")
    pagein.umount(pagein.target)
    assert pagein.leftovers() == []


@pytest.mark.root
def test_many_mounts_begun_at_once(small: Image, server: WebServer, pagein: Pagein) -> None:
    urls = serve(server, meta=small.meta, blob=small.blob)
    targets = [pagein.dir(f"mnt-{n}") for n in range(4)]
    pipe = subprocess.PIPE
    mounting = [
        subprocess.Popen(
            pagein.argv("mount", urls[0], "--device", urls[1], target), stderr=pipe, text=True
        )
        for target in targets
    ]
    with killed(*mounting):
        said = [process.communicate(timeout=DEADLINE)[1] for process in mounting]
    assert said == ["", "", "", ""]
    assert [process.returncode for process in mounting] == [0, 0, 0, 0]
    assert len(pagein.status()["mounts"]) == 4
    for target in targets:
        assert (target / "dir-1/5").read_bytes() == (small.tree / "dir-1/5").read_bytes()
        pagein.umount(target)
    assert pagein.leftovers() == []


@pytest.mark.root
def test_a_mount_that_fails_leaves_the_others_alone(
    small: Image, server: WebServer, pagein: Pagein
) -> None:
    (url,) = serve(server, single=small.single)
    pagein.mount(url)
    done = pagein.run("mount", server.url("/nope"), pagein.dir("mnt2"))
    assert done.returncode == 1
    assert read_errno(pagein.target / "large/0") == 0
    assert read_errno(pagein.target / "large/1") != errno.EIO
    pagein.umount()
    assert pagein.leftovers() == []


@pytest.mark.root
def test_a_mount_that_another_namespace_has_goes_on_there(
    small: Image, server: WebServer, pagein: Pagein
) -> None:
    (url,) = serve(server, single=small.single)
    pagein.mount(url)
    # As a container, or a service with mounts of its own, begun while it was mounted.
    command = ["unshare", "--mount", "--propagation", "private", "cat"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as other:
        assert other.stdin is not None and other.stdout is not None
        other.stdin.write(b"x")
        other.stdin.flush()
        assert other.stdout.read(1) == b"x"
        pagein.umount()
        assert pagein.processes()
        inside = Path(f"/proc/{other.pid}/root{pagein.target}")
        assert (inside / "large/0").read_bytes() == (small.tree / "large/0").read_bytes()
        other.stdin.close()
        assert other.wait(timeout=DEADLINE) == 0
    wait_for(lambda: not pagein.leftovers())
