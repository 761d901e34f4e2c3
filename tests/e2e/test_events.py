"""`pagein events` and `pagein debug`, of a kernel half at work."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.harness import Image, Pagein, pagein_in, serve, wait_for

from pagein.testing.webserver import WebServer, serve_in_thread

pytestmark = pytest.mark.root


@pytest.fixture
def pagein(public_tmp: Path) -> Iterator[Pagein]:
    with pagein_in(public_tmp) as pagein:
        yield pagein


@pytest.fixture
def server() -> Iterator[WebServer]:
    with serve_in_thread(WebServer({})) as server:
        yield server


def shown(pagein: Pagein) -> list[dict[str, Any]]:
    """The events, as JSON."""
    return [json.loads(line) for line in pagein.ok("events", "show", "--json").splitlines()]


def test_events(pagein: Pagein, server: WebServer, small: Image) -> None:
    nobody = pagein.run("events", "on")
    assert nobody.returncode == 1 and "not running" in nobody.stderr
    pagein.mount(*serve(server, image=small.single))
    off = pagein.run("events", "show")
    assert (off.returncode, off.stdout) == (0, "") and "pagein events on" in off.stderr
    pagein.ok("events", "on")
    (pagein.target / "large/0").read_bytes()

    def answered() -> bool:
        """What the kernel reads ahead may come after what was asked for."""
        records = shown(pagein)
        reads = {r["mid"] for r in records if r["event"] == "cachefiles_ondemand_read"}
        answers = {r["mid"] for r in records if r["event"] == "cachefiles_ondemand_cread"}
        return bool(reads) and reads <= answers

    wait_for(answered)
    pagein.ok("events", "off")
    lines = pagein.ok("events", "show").splitlines()
    assert len(lines) == len(shown(pagein)) > 0
    assert any(" cachefiles_ondemand_fd_write: o=" in line for line in lines)
    (pagein.target / "large/1").read_bytes()
    assert pagein.ok("events", "show").splitlines() == lines


def test_debug(pagein: Pagein, server: WebServer, small: Image) -> None:
    pagein.mount(*serve(server, image=small.single))
    assert pagein.ok("debug") == "0\n"
    pagein.ok("debug", "0x7")
    assert pagein.ok("debug") == "7\n"
    (pagein.target / "large/0").read_bytes()
    pagein.ok("debug", "0")
    said = pagein.log()
    assert "==> cachefiles_ondemand_daemon_read(" in said
    assert "NEW -> DELIVERED" in said
    wrong = pagein.run("debug", "everything")
    assert wrong.returncode == 1 and "'everything' is no number" in wrong.stderr
    too_much = pagein.run("debug", str(1 << 32))
    assert too_much.returncode == 1 and "no mask of 32 bits" in too_much.stderr
