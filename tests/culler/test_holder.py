"""`pagein cull --device`: the daemon of the original mode, on our device."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.cachefiles.served import served
from tests.culler.test_culler import plant
from tests.library.fulldisk import full, tiny

from pagein.cachefiles.cache import Cache
from pagein.culler.holder import bind
from pagein.protocol.space import LIMITS, Limits

pytestmark = pytest.mark.root


@pytest.mark.parametrize("run", [2, 3, 5, 6, 7, 50, 99])
def test_the_limits_are_set_in_an_order_that_is_allowed(
    run: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits, said = Limits(), []

    def write(_: int, command: bytes) -> int:
        verb, argument = (command.decode() + " ").split(" ", 1)
        if verb in LIMITS:
            limits.set(verb, int(argument.rstrip("% ")))
        else:
            said.append(command)
        return len(command)

    monkeypatch.setattr(os, "write", write)
    bind(3, b"/cache", run)
    assert said == [b"dir /cache", b"bind"]
    for kind in "bf":
        assert limits.percent[f"{kind}run"] == run
        assert limits.percent[f"{kind}cull"] == max(run - 2, 1)


def start(device: Path, cache: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pagein.cli.main", "cull"]
    command += ["--device", str(device), "--cache", str(cache)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_it_makes_room_when_the_device_says_so(tmp_path: Path) -> None:
    with tiny("ext4 -b4096", tmp_path / "fs", 64) as fs, served(tmp_path) as half:
        directory = fs / "cache"
        directory.mkdir()
        cache = Cache(os.fsencode(directory))
        cache.prepare_volume(b"erofs,test")
        old, new = (plant(cache, key, days, size=800) for key, days in ((b"a", 2.0), (b"b", 1.0)))
        cache.close()
        with full(fs, left=2_200_000):
            process = start(half.path, directory)
            try:
                give_up = time.monotonic() + 60
                while old.exists():
                    assert time.monotonic() < give_up
                    time.sleep(0.02)
                second = subprocess.run(
                    [*process.args, "--run", "9"],  # type: ignore[misc]
                    capture_output=True,
                    text=True,
                    timeout=100,
                    check=False,
                )
                assert second.returncode == 1
                assert "Device or resource busy" in second.stderr
            finally:
                process.send_signal(signal.SIGTERM)
                said = process.communicate(timeout=100)[1]
            assert process.returncode == 0
            assert "culled 1 blobs, 3200 KiB; 0 were in use" in said
            assert new.exists()


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with served(tmp_path) as half:
        process = start(half.path, tmp_path / "absent")
        said = process.communicate(timeout=100)[1]
        assert process.returncode == 1
        assert said == f"pagein: {tmp_path / 'absent'}: No such file or directory\n"
