"""What the keeper holds for the metrics, and what a command asks of it."""

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagein.cli.settings import Settings
from pagein.cli.showing import Showing, sockets
from pagein.control import ControlError
from pagein.keeper.shown import Shown, parse_address
from pagein.protocol.numbers import Number, Numbers

NOBODY = 65534
TRY_TO_WRITE = """
import mmap, os, sys
fd, nobody = map(int, sys.argv[1:])
os.setgroups([])
os.setgid(nobody)
os.setuid(nobody)
assert mmap.mmap(fd, 4096, prot=mmap.PROT_READ)[:8] == (7).to_bytes(8, sys.byteorder)
for how in (
    lambda: os.open(f"/proc/self/fd/{fd}", os.O_RDWR),
    lambda: mmap.mmap(fd, 4096),
    lambda: os.pwrite(fd, b"x", 0),
    lambda: os.ftruncate(fd, 0),
):
    try:
        how()
    except OSError:
        continue
    raise SystemExit("written")
"""


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.mark.root
def test_who_is_to_read_the_page_cannot_write_it(
    stack: contextlib.ExitStack, tmp_path: Path
) -> None:
    shown = Shown(stack, str(tmp_path / "metrics.sock"), None)
    os.pwrite(shown.numbers, (7).to_bytes(8, sys.byteorder), 0)
    done = subprocess.run(
        [sys.executable, "-I", "-c", TRY_TO_WRITE, str(shown.numbers_to_read), str(NOBODY)],
        pass_fds=[shown.numbers_to_read],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    with pytest.raises(PermissionError):
        os.ftruncate(shown.numbers, 0)  # nor can anybody take it away under a reader


def test_what_is_held_is_let_go(tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    before = set(os.listdir("/proc/self/fd"))
    with contextlib.ExitStack() as stack:
        shown = Shown(stack, str(path), "0")
        assert path.is_socket() and len(shown.user_half_fds) == 3
        with socket.socket(fileno=os.dup(shown.sockets[1])) as port:
            assert port.getsockname()[0] == "127.0.0.1"
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_port_that_is_taken(stack: contextlib.ExitStack, tmp_path: Path) -> None:
    taken = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
    with pytest.raises(OSError, match=f"--metrics-port {taken}: address already in use"):
        Shown(stack, str(tmp_path / "metrics.sock"), str(taken))


def test_a_daemon_without_a_keeper_listens_by_itself(tmp_path: Path) -> None:
    settings = Settings(str(tmp_path / "run"), str(tmp_path))
    assert sockets(settings, Showing(False, None)) == []
    fds = sockets(settings, Showing(True, "0"))
    for fd in fds:
        with socket.socket(fileno=fd) as listening, socket.socket(listening.family) as client:
            name = listening.getsockname()
            client.connect(settings.path("metrics.sock") if isinstance(name, str) else name)
    assert len(fds) == 2


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9100", ("127.0.0.1", 9100)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),
        ("[::1]:65535", ("::1", 65535)),
        (":80", ("127.0.0.1", 80)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


def test_without_its_library_only_who_asks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert Showing.of(False, None).options == []
    Showing.of(False, None).check(Settings("/nonexistent", "/nonexistent"))
    for metrics, port in ((True, None), (False, "9100")):
        with pytest.raises(ControlError, match=r"pip install 'pagein\[metrics\]'"):
            Showing.of(metrics, port)


def test_off_nothing_of_it_is_loaded() -> None:
    program = "import sys, pagein.daemon.process, pagein.keeper.keeper\n"
    program += "print(*(name for name in sys.modules if 'prometheus' in name or name.startswith("
    program += "('aiohttp.web_runner', 'pagein.daemon.metrics'))))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == []


def test_numbers_are_at_their_places() -> None:
    memory = bytearray(4096)
    numbers = Numbers(memory)
    numbers[Number.WASTED_BYTES] = 1 << 40
    assert Numbers(memoryview(bytes(memory))).values()["wasted_bytes"] == 1 << 40
    assert sum(numbers.values().values()) == 1 << 40
