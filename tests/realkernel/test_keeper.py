"""`pagein mount --front-end kernel` from its begin to its end, and what it refuses."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from tests.e2e.harness import DEADLINE, Image, read_errno, sums, wait_for
from tests.realkernel.rig import DEVICE, USER_HALF, Daemon, Served, device_is_free, drop_caches

pytestmark = pytest.mark.realkernel


def test_one_command_mounts_and_one_ends_everything(small: Image, place: Served) -> None:
    place.mount(str(small.meta), str(small.blob))
    assert sums(place.target) == sums(small.tree)
    found = place.status()
    assert found["front_end"] == "kernel"
    assert found["cache"] == str(place.cache)
    (mount,) = found["mounts"]
    assert mount["target"] == str(place.target)
    assert mount["sources"] == [str(small.meta), str(small.blob)]
    for blob, path in zip(found["blobs"], (small.meta, small.blob), strict=True):
        size = path.stat().st_size
        assert blob["source"] == str(path)
        assert blob["size"] == size
        assert 0 < blob["fetched"] <= blob["resident"] <= size + 4096
        assert (blob["state"], blob["users"], blob["errors"]) == ("OPEN", 1, 0)
    text = place.ok("status")
    assert f"{place.target}  {small.meta}, {small.blob}  (on demand)" in text
    # Nothing of it is left when the command returns.
    place.umount()
    assert not place.leftovers()
    assert device_is_free()


def test_status_says_what_a_new_daemon_does_not_know_yet(small: Image, place: Served) -> None:
    place.mount(str(small.single))
    killed = place.kill()
    wait_for(lambda: place.replaced("daemon_pid", killed))
    (blob,) = place.status()["blobs"]
    assert (blob["size"], blob["state"]) == (small.single.stat().st_size, "CLOSE")
    assert blob["resident"] is None
    assert "unknown" in place.ok("status")
    place.umount()
    place.end()


def test_it_ends_by_itself_when_somebody_else_unmounts(small: Image, place: Served) -> None:
    place.mount(str(small.single))
    subprocess.run(["umount", place.target], check=True)
    place.end()


def test_it_stays_for_who_uses_what_is_out_of_sight(small: Image, place: Served) -> None:
    """A file that is open after `umount --lazy`."""
    place.mount(str(small.single))
    name = max(small.files, key=lambda name: (small.tree / name).stat().st_size)
    with (place.target / name).open("rb") as file:
        refused = place.run("umount", place.target)
        assert refused.returncode == 1
        assert "is in use" in refused.stderr
        place.ok("umount", "--lazy", place.target)
        assert place.status()["mounts"] == []
        drop_caches()
        assert file.read() == (small.tree / name).read_bytes()
    place.end()


def test_a_mount_in_another_namespace_keeps_it(small: Image, place: Served) -> None:
    place.mount(str(small.single))
    # The copy of the mount table is there before the first word is said.
    inside = f"echo copied; read _; sha256sum {place.target / small.files[-1]}"
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", inside]
    copy = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert copy.stdout is not None
    assert copy.stdout.readline() == "copied\n"
    subprocess.run(["umount", place.target], check=True)
    drop_caches()
    assert place.pid(USER_HALF)
    said, _ = copy.communicate("\n", timeout=DEADLINE)
    digest = sums(small.tree)[f"./{small.files[-1]}"]
    assert said.split()[0] == digest
    place.end()


@pytest.mark.parametrize("front_end", ["fuse", "kernel"])
def test_from_another_namespace_it_says_where_it_would_mount(
    front_end: str, small: Image, place: Served
) -> None:
    place.ok("mount", "--front-end", front_end, small.single, place.target)
    argv = place.argv("mount", "--front-end", front_end, small.meta, place.dir("second"))
    command = ["unshare", "--mount", "--propagation", "private", *argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 1
    assert re.fullmatch(
        r"pagein: pagein \(process \d+\) runs in another mount namespace, and would mount there;"
        r" start the command with `nsenter -m -t \d+`\n",
        done.stderr,
    )
    place.umount()
    place.end()


@pytest.mark.parametrize("first", ["fuse", "kernel"])
def test_one_runtime_directory_has_one_front_end(first: str, small: Image, place: Served) -> None:
    other = "kernel" if first == "fuse" else "fuse"
    place.ok("mount", "--front-end", first, small.single, place.target)
    done = place.run("mount", "--front-end", other, small.single, place.dir("second"))
    assert done.returncode == 1
    assert done.stderr == (
        f"pagein: --front-end {other}: pagein runs in {place.state} with the front end `{first}`;"
        " use that one, or another --state-dir and --cache\n"
    )
    # Another runtime directory works, but one cache has one kernel half.
    (place.directory / "other").mkdir()
    aside = Served(place.directory / "other", cache=place.cache)
    done = aside.run("mount", "--front-end", other, small.single, aside.target)
    assert done.returncode == 1
    assert "another pagein has it in use" in done.stderr
    aside = Served(place.directory / "other")
    aside.ok("mount", "--front-end", other, small.single, aside.target)
    assert sums(aside.target) == sums(place.target) == sums(small.tree)
    aside.umount()
    place.umount()
    place.end()


def test_a_device_in_use_is_refused_with_who_uses_it(small: Image, place: Served) -> None:
    with DEVICE.open("rb", buffering=0):
        done = place.run("mount", "--front-end", "kernel", small.single, place.target)
    assert done.returncode == 1
    assert f"{DEVICE}: in use by process {os.getpid()} (" in done.stderr
    assert done.stderr.count("\n") == 1
    place.end()


def waits_for_ctrl_c(pid: int) -> bool:
    """Whether SIGINT is blocked, for sigtimedwait(2); before the mount, vfork blocks it as well."""
    status = Path(f"/proc/{pid}/status").read_text()
    blocked = re.search(r"^SigBlk:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return blocked is not None and bool(int(blocked[1], 16) >> (signal.SIGINT - 1) & 1)


def test_in_the_foreground(small: Image, place: Served) -> None:
    argv = place.argv("mount", "--front-end", "kernel", "--foreground", small.single, place.target)
    command = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: os.path.ismount(place.target) and waits_for_ctrl_c(command.pid))
    assert sums(place.target) == sums(small.tree)
    command.send_signal(signal.SIGINT)
    said, _ = command.communicate(timeout=DEADLINE)
    assert command.returncode == 0
    assert "fetched. Ctrl-C unmounts." in said
    assert not place.leftovers()
    place.end()


def test_told_to_end_it_unmounts_what_nobody_uses(small: Image, served: Daemon) -> None:
    """Rule 15.11: unmount, then CLOSE, then the device; nothing fetched is lost."""
    free, used = served.target, served.dir("used")
    served.mount(str(small.single), target=free)
    served.mount(str(small.meta), str(small.blob), target=used)
    assert sums(free) == sums(used) == sums(small.tree)
    name = max(small.files, key=lambda name: (small.tree / name).stat().st_size)
    with (used / name).open("rb"):
        assert served.keeper is not None
        served.keeper.terminate()
        assert served.keeper.wait(DEADLINE) == 0
        served.keeper = None
        assert not os.path.ismount(free)
        assert os.path.ismount(used)
        said = [line for line in served.log().splitlines() if str(used) in line]
        assert f"what is not in memory cannot be read any more: `pagein umount {used}`" in said[-1]
        assert "Traceback" not in served.log()
        assert device_is_free()
        drop_caches()
        assert read_errno(used / name) != 0
    served.umount(used)
    assert not served.leftovers()
    assert served.assert_cached_right(small.single, small.meta, small.blob) > 0


def test_ctrl_c_ends_a_daemon_in_order(small: Image, place: Served) -> None:
    daemon = Daemon(place.directory, cache=place.cache)
    daemon.state.mkdir()
    with (daemon.state / "log").open("wb") as log:
        argv = daemon.argv("daemon", "--device", DEVICE)
        process = subprocess.Popen(argv, stdout=log, stderr=log, process_group=0)
    wait_for((daemon.state / "daemon.sock").exists)
    daemon.mount(str(small.single))
    assert sums(daemon.target) == sums(small.tree)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(DEADLINE) == 0
    assert daemon.log() == ""
    assert not daemon.leftovers()
    assert device_is_free()


def test_a_key_of_another_volume_is_refused(small: Image, place: Served) -> None:
    done = place.run("mount", "--front-end", "kernel", "key:hello/image", place.target)
    assert done.returncode == 1
    text = "key:hello/image: this front end has no volume but erofs,pagein"
    assert done.stderr == f"pagein: {text}\n"
    place.end()
