"""`pagein top` and the metrics, of a pagein at work and of one that waits."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.e2e.harness import DEADLINE, Image, Pagein, ranges_of, serve, wait_for
from tests.e2e.readers import Reader

from pagein.cli.settings import Settings
from pagein.cli.status import collect
from pagein.cli.topdata import Look, summary
from pagein.testing.webserver import WebServer

pytestmark = pytest.mark.root

Samples = dict[tuple[str, ...], float]
"""(name, label values in the order of their names) -> value"""
PAGE, GRANULE = 4096, 16384


def samples(text: str) -> Samples:
    """What Prometheus makes of it."""
    return {
        (each.name, *(each.labels[name] for name in sorted(each.labels))): each.value
        for family in text_string_to_metric_families(text)
        for each in family.samples
    }


def scrape(pagein: Pagein) -> Samples:
    """The metrics by the socket of the runtime directory."""
    done = subprocess.run(
        ["curl", "-sSf", "--unix-socket", "metrics.sock", "http://localhost/metrics"],
        cwd=pagein.state,  # curl takes 107 bytes of a socket's name
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE,
    )
    return samples(done.stdout)


def by_priority(found: Samples) -> dict[str, float]:
    """Bytes that were fetched."""
    kinds = ("demand", "ahead", "prefetch", "background")
    return {kind: found["pagein_fetched_bytes_total", kind] for kind in kinds}


def settled(pagein: Pagein, server: WebServer) -> Samples:
    """The metrics when they know of all that was asked of the server: a reader may be faster."""
    asked = sum(end - start for start, end in ranges_of(server, "/image"))

    def when_settled() -> Samples | None:
        found = scrape(pagein)
        known = sum(by_priority(found).values()) == asked
        return found if known and not found["pagein_waiting_reads",] else None

    found: Samples = wait_for(when_settled)
    return found


def top(pagein: Pagein) -> dict[str, Any]:
    """What `pagein top --json` prints, but for the rates, without a process of its own."""
    found = collect(Settings(str(pagein.state), str(pagein.cache)))
    return summary(None, Look.now(found))


@contextlib.contextmanager
def stalled(server: WebServer) -> Iterator[threading.Event]:
    """A server that says nothing more until the event, which comes at the end at the latest."""
    gate = threading.Event()

    def wait(*_: object) -> None:
        gate.wait(DEADLINE)

    server.faults = wait
    try:
        yield gate
    finally:
        gate.set()
        server.faults = None


def read_page(path: Path, number: int) -> None:
    """One page, without read-ahead."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        assert len(os.pread(fd, PAGE, number * PAGE)) == PAGE
    finally:
        os.close(fd)


def test_exact_counts(pagein: Pagein, server: WebServer, small: Image) -> None:
    (url,) = serve(server, image=small.single)
    pagein.mount(url, options=("--metrics", "--metrics-port", "0"))
    large = pagein.target / "large/0"
    os.stat(large)
    before = settled(pagein, server)
    asked = len(server.requests)
    page = _first_of_a_granule(small, "large/0")
    read_page(large, page)
    after = settled(pagein, server)
    fetched = sum(end - start for _, start, end in server.requests[asked:])
    grown = {kind: count - by_priority(before)[kind] for kind, count in by_priority(after).items()}
    assert grown == {"demand": PAGE, "ahead": fetched - PAGE, "prefetch": 0, "background": 0}
    host = f"127.0.0.1:{server.port}"
    assert after["pagein_origin_requests_total", "206", host] == len(server.requests)
    assert after["pagein_origin_errors_total", host] == 0
    assert after["pagein_read_seconds_count", "fetched"] == len(ranges_of(server, "/image"))
    assert after["pagein_cache_bytes",] == pagein.assert_cached_right(small.single)
    assert (after["pagein_mounts",], after["pagein_blobs",]) == (1, 1)
    _check_unread(pagein, (large, page), before, after, fetched)
    _check_port(pagein)


def _first_of_a_granule(image: Image, name: str) -> int:
    """A page of a file after which more of the file is fetched, wherever mkfs.erofs put it."""
    begin = (image.tree / name).read_bytes()[:PAGE]
    first = image.single.read_bytes().find(begin) // PAGE
    return 500 + -(first + 500) % (GRANULE // PAGE)


def _check_unread(
    pagein: Pagein, page: tuple[Path, int], before: Samples, after: Samples, fetched: int
) -> None:
    """What was fetched around a read is unread until somebody reads it, or wasted at the end."""

    def grown(name: str, *labels: str) -> float:
        return after[name, *labels] - before[name, *labels]

    assert grown("pagein_unread_bytes") == fetched - PAGE
    assert grown("pagein_kernel_reads_total", "miss") == 1
    assert grown("pagein_kernel_reads_total", "hit") == 0
    before = after
    path, number = page
    read_page(path, number + 1)
    after = scrape(pagein)
    assert grown("pagein_unread_bytes") == -PAGE
    assert grown("pagein_kernel_reads_total", "hit") == 1
    assert grown("pagein_kernel_read_bytes_total") == PAGE
    assert by_priority(after) == by_priority(before)
    what = json.loads(pagein.ok("top", "--json", "--interval", "0.1"))
    assert what["reads"]["unread"] == after["pagein_unread_bytes",]
    assert {kind: each["total"] for kind, each in what["fetched"].items()} == by_priority(after)


def _check_port(pagein: Pagein) -> None:
    """The same by TCP; and what is not there."""
    unix, address = pagein.status()["metrics"]
    assert unix == "unix" and address.startswith("127.0.0.1:")
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=DEADLINE) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        assert by_priority(samples(answer.read().decode())) == by_priority(scrape(pagein))
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"http://{address}/etc/passwd", timeout=DEADLINE)
    other = pagein.dir("other")
    refused = pagein.run("mount", "--metrics-port", "1", pagein.cache, other)
    assert refused.returncode == 1
    assert "--metrics-port 1: pagein runs in" in refused.stderr


def test_a_read_that_waits_is_seen(pagein: Pagein, server: WebServer, small: Image) -> None:
    (url,) = serve(server, image=small.single)
    pagein.mount(url, options=("--metrics",))
    assert top(pagein)["waiting_total"] == 0
    large = pagein.target / "large/0"
    os.stat(large)
    with stalled(server) as gate, Reader(large) as reader:
        found, what = wait_for(lambda: _agreed(scrape(pagein), top(pagein)))
        first = what["waiting"][0]
        assert (first["pid"], first["command"]) == (reader.process.pid, "sha256sum")
        assert first["source"] == url and first["len"] > 0
        assert what["perhaps"] == []
        said = pagein.ok("top", "--once", "--interval", "0.1")
        line = next(each for each in said.splitlines() if "sha256sum" in each)
        assert str(reader.process.pid) in line.split() and url in line
        assert found["pagein_oldest_waiting_read_age_seconds",] > 0
        gate.set()
        assert reader.digest() == sha256((small.tree / "large/0").read_bytes()).hexdigest()
    settled(pagein, server)
    _check_replaced(pagein, found)


def _agreed(found: Samples, what: dict[str, Any]) -> tuple[Samples, dict[str, Any]] | None:
    """Both, when all that EROFS asks for at once has been passed on."""
    same = found["pagein_waiting_reads",] == len(what["waiting"])
    return (found, what) if same and what["waiting"] else None


def _check_replaced(pagein: Pagein, before: Samples) -> None:
    """Whatever is killed, the socket answers; the kernel half's numbers go on."""
    for module in ("pagein.daemon", "pagein.kernelhalf"):
        for pid, command in pagein.processes().items():
            if module in command.split():
                os.kill(pid, signal.SIGKILL)
    reads = "pagein_kernel_reads_total", "miss"
    demand = "pagein_fetched_bytes_total", "demand"
    found = wait_for(lambda: (new := _scraped(pagein)) and new[demand] == 0 and new)
    assert found[reads] >= before[reads] > 0
    wait_for(lambda: (_scraped(pagein) or {}).get(("pagein_mounts",)) == 1)


def _scraped(pagein: Pagein) -> Samples | None:
    with contextlib.suppress(subprocess.CalledProcessError):
        return scrape(pagein)
    return None


def test_through_a_loop_device_readers_are_guessed(
    pagein: Pagein, server: WebServer, small: Image
) -> None:
    pagein.mount(*serve(server, image=small.single), options=("--loop",))
    large = pagein.target / "large/0"
    os.stat(large)
    with stalled(server) as gate, Reader(large) as reader:
        what = wait_for(lambda: (found := top(pagein))["perhaps"] and found)
        assert what["waiting"][0]["pid"] is None
        assert {"pid": reader.process.pid, "command": "sha256sum"} in what["perhaps"]
        gate.set()
    refused = pagein.run("mount", "--metrics", pagein.cache, pagein.dir("other"))
    assert refused.returncode == 1 and "--metrics: pagein runs in" in refused.stderr
    assert not (pagein.state / "metrics.sock").exists()


# ---- without a mount ----------------------------------------------------------------------------


@pytest.mark.parametrize("port", ["65536", "nonsense", "example.org:1", ":", "1:2:3"])
def test_a_port_that_is_none(pagein: Pagein, tmp_path: Path, port: str) -> None:
    refused = pagein.run("mount", "--metrics-port", port, "http://127.0.0.1:1/x", tmp_path)
    assert refused.returncode == 1
    assert refused.stderr == (
        f"pagein: --metrics-port {port}: neither PORT nor ADDRESS:PORT, with a port below 65536\n"
    )


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Master and slave of a pseudo-terminal."""
    master, slave = pty.openpty()
    yield master, slave
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize("end", ["q", "SIGINT", "SIGTERM"])
def test_a_terminal_is_left_as_it_was(pagein: Pagein, terminal: tuple[int, int], end: str) -> None:
    import termios

    master, slave = terminal
    before = termios.tcgetattr(slave)
    process = subprocess.Popen(pagein.argv("top"), stdin=slave, stdout=slave, stderr=slave)
    try:
        seen = bytearray()
        while b"nothing is mounted" not in seen:
            seen += os.read(master, 4096)
        if end == "q":
            os.write(master, b"q")
        else:
            process.send_signal(getattr(signal, end))
        drain = threading.Thread(target=_read_all, args=(master, seen))
        drain.start()
        assert process.wait(DEADLINE) == 0
    finally:
        process.kill()
        process.wait()
    assert termios.tcgetattr(slave) == before
    os.write(slave, b"\x04END")
    drain.join(DEADLINE)
    assert seen.count(b"\x1b[?1049h") == seen.count(b"\x1b[?1049l") == 1
    assert b"Traceback" not in seen


def _read_all(master: int, seen: bytearray) -> None:
    while not seen.endswith(b"\x04END"):
        seen += os.read(master, 4096)
