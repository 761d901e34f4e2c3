"""What runc is told, for what an image and a command line say; and whom users are."""

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from pagein.containers import rootfs, users
from pagein.containers.run import stop_signal
from pagein.containers.spec import (
    CAPABILITIES,
    Machine,
    RunOptions,
    Volume,
    arguments,
    environment,
    runtime_spec,
)
from pagein.containers.users import User

MACHINE = Machine(frozenset(CAPABILITIES), True, 1024, "this-machine")


def spec(config: dict[str, Any], machine: Machine = MACHINE, **options: Any) -> dict[str, Any]:
    given = RunOptions("name", **options)
    return runtime_spec("/root-dir", {"Cmd": ["sh"], **config}, given, User(1, 2, (3,)), machine)


# ---- command ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "options", "expected"),
    [
        ({"Cmd": ["c", "d"]}, {}, ["c", "d"]),
        ({"Entrypoint": ["e"], "Cmd": ["c"]}, {}, ["e", "c"]),
        ({"Entrypoint": ["e"], "Cmd": ["c"]}, {"command": ["x", "y"]}, ["e", "x", "y"]),
        ({"Entrypoint": ["e"], "Cmd": ["c"]}, {"entrypoint": "f"}, ["f"]),
        ({"Entrypoint": ["e"], "Cmd": ["c"]}, {"entrypoint": "f", "command": ["x"]}, ["f", "x"]),
        ({"Entrypoint": ["e"], "Cmd": ["c"]}, {"entrypoint": "", "command": ["x"]}, ["x"]),
        ({"Entrypoint": None, "Cmd": None}, {"command": ["x"]}, ["x"]),
    ],
)
def test_the_command(config: dict[str, Any], options: dict[str, Any], expected: list[str]) -> None:
    assert arguments(config, RunOptions("name", **options)) == expected


@pytest.mark.parametrize("options", [{}, {"entrypoint": ""}])
def test_no_command(options: dict[str, Any]) -> None:
    with pytest.raises(OSError, match="the image names no command") as none:
        arguments({"Entrypoint": [], "Cmd": ["c"] if options else None}, RunOptions("n", **options))
    assert none.value.errno == errno.EINVAL


# ---- environment --------------------------------------------------------------------------------


def test_the_environment() -> None:
    config = {"Env": ["PATH=/image", "A=1", "B=image", "EMPTY"]}
    options = RunOptions("name", env=["B=line", "C=x=y"], tty=True)
    assert environment(config, options, User(0, 0, (), "/home/u"), MACHINE) == [
        "PATH=/image",
        "HOME=/home/u",
        "HOSTNAME=name",
        "TERM=xterm",
        "A=1",
        "B=line",
        "EMPTY=",
        "C=x=y",
    ]


def test_there_is_always_a_path() -> None:
    found = environment({}, RunOptions("name", host_network=True), User(0, 0), MACHINE)
    assert found[0] == "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert "HOSTNAME=this-machine" in found


# ---- the rest -----------------------------------------------------------------------------------


def test_the_process() -> None:
    process = spec({"WorkingDir": "/srv"})["process"]
    assert process["user"] == {"uid": 1, "gid": 2, "additionalGids": [3]}
    assert process["cwd"] == "/srv"
    assert spec({"WorkingDir": "/srv"}, workdir="/x")["process"]["cwd"] == "/x"
    assert spec({"WorkingDir": ""})["process"]["cwd"] == "/"
    assert process["rlimits"] == [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}]
    assert process["noNewPrivileges"] is False


def test_no_capability_is_asked_for_that_this_machine_lacks() -> None:
    machine = Machine(frozenset({"CAP_KILL", "CAP_SYS_ADMIN"}), True, 1024, "h")
    found = spec({}, machine)["process"]["capabilities"]
    assert found == {key: ["CAP_KILL"] for key in ("bounding", "effective", "permitted")}


def test_namespaces_and_network() -> None:
    own = spec({})
    assert {each["type"] for each in own["linux"]["namespaces"]} == {
        "pid",
        "ipc",
        "uts",
        "mount",
        "network",
        "cgroup",
    }
    assert own["hostname"] == "name"
    host = spec({}, host_network=True)
    assert {"type": "network"} not in host["linux"]["namespaces"]
    assert host["hostname"] == "this-machine"


def test_without_cgroups() -> None:
    found = spec({}, Machine(frozenset(), False, 1024, "h"))
    assert "resources" not in found["linux"]
    assert {"type": "cgroup"} not in found["linux"]["namespaces"]
    assert "/sys/fs/cgroup" not in {each["destination"] for each in found["mounts"]}


def test_volumes() -> None:
    volumes = [Volume.parse("/a:/b"), Volume.parse("/c:/d:ro")]
    mounts = {each["destination"]: each for each in spec({}, volumes=volumes)["mounts"]}
    assert mounts["/b"]["source"] == "/a"
    assert mounts["/b"]["options"] == ["rbind", "rprivate", "rw"]
    assert mounts["/d"]["options"] == ["rbind", "rprivate", "ro"]
    order = [each["destination"] for each in spec({}, volumes=volumes)["mounts"]]
    assert order.index("/dev") < order.index("/b") < order.index("/d")


@pytest.mark.parametrize("text", ["/a", ":/b", "/a:b", "/a:", "/a:/b:rx", ""])
def test_what_is_no_volume(text: str) -> None:
    with pytest.raises(OSError, match=r"--volume .*expected SRC:DST\[:ro\]"):
        Volume.parse(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", signal.SIGTERM),
        ("SIGQUIT", signal.SIGQUIT),
        ("int", signal.SIGINT),
        ("9", 9),
        ("SIGRTMIN+3", signal.SIGRTMIN + 3),
    ],
)
def test_stop_signals(text: str, number: int) -> None:
    assert stop_signal(text) == number


@pytest.mark.parametrize("text", ["0", "65", "SIGNOTHING", "SIGRTMIN+99", "-1"])
def test_what_is_no_stop_signal(text: str) -> None:
    with pytest.raises(OSError, match="StopSignal"):
        stop_signal(text)


# ---- users --------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    passwd = (
        "root:x:0:0::/root:/bin/sh\nbad line\napp:x:1000:1001::/home/app:/bin/sh\n77:x:5:6::/n:\n"
    )
    (tmp_path / "etc/passwd").write_text(passwd)
    groups = "root:x:0:\napp:x:1001:\nextra:x:2000:other,app\nbad:x:x:app\nmore:x:30:app\n"
    (tmp_path / "etc/group").write_text(groups)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "user"),
    [
        ("", User(0, 0, (), "/root")),
        ("app", User(1000, 1001, (30, 2000), "/home/app")),
        ("1000", User(1000, 1001, (30, 2000), "/home/app")),
        ("app:extra", User(1000, 2000, (), "/home/app")),
        ("app:7", User(1000, 7, (), "/home/app")),
        ("4242", User(4242, 0, (), "/")),
        ("4242:4343", User(4242, 4343, (), "/")),
        ("77", User(5, 6, (), "/n")),  # a name that is a number is a name
        (":app", User(0, 1001, (), "/root")),
    ],
)
def test_users(root: Path, text: str, user: User) -> None:
    assert users.resolve(text, str(root)) == user


@pytest.mark.parametrize("text", ["nobody", "app:nogroup", "-1", "99999999999", "1000:99999999999"])
def test_unknown_users(root: Path, text: str) -> None:
    with pytest.raises(OSError, match="unable to find") as unknown:
        users.resolve(text, str(root))
    assert unknown.value.errno == errno.EINVAL


def test_an_image_without_users(tmp_path: Path) -> None:
    assert users.resolve("", str(tmp_path)) == User(0, 0)
    assert users.resolve("5:6", str(tmp_path)) == User(5, 6)
    with pytest.raises(OSError, match="unable to find user root"):
        users.resolve("root", str(tmp_path))


def test_links_stay_within_the_root_directory(root: Path, tmp_path: Path) -> None:
    (root / "etc/passwd").rename(root / "real")
    (root / "etc/passwd").symlink_to("/real")
    assert users.resolve("app", str(root)).uid == 1000
    (root / "etc/passwd").unlink()
    (root / "etc/passwd").symlink_to("../../../../../../etc/passwd")
    with pytest.raises(OSError, match="symbolic links"):
        users.resolve("", str(root))  # to itself, since it is within


def test_what_is_no_list_of_users(root: Path) -> None:
    (root / "etc/passwd").unlink()
    os.mkfifo(root / "etc/passwd")
    assert users.resolve("", str(root)) == User(0, 0)
    (root / "etc/passwd").unlink()
    with (root / "etc/passwd").open("wb") as file:
        file.truncate(rootfs.MAX_FILE + 1)
    with pytest.raises(OSError, match="more than 4194304 bytes"):
        users.resolve("", str(root))
