"""The test web server itself: honest where it should be, and a liar of the announced kind."""

import asyncio
import gc
import gzip
import http.client
import os
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pagein.testing import webserver as module
from pagein.testing.webserver import Fault, FaultKind, TokenBucket, WebServer, serve_in_thread

DATA = bytes(range(256)) * 40


@contextmanager
def client(server: WebServer) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=100)
    try:
        yield connection
    finally:
        connection.close()


def get(
    server: WebServer, path: str = "/x", method: str = "GET", **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    with client(server) as connection:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers=names)
        response = connection.getresponse()
        return response, response.read()


@pytest.fixture(params=["bytes", "file"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[WebServer]:
    path = tmp_path / "x"
    path.write_bytes(DATA)
    files: dict[str, bytes | Path] = {"/x": path if request.param == "file" else DATA, "/0": b""}
    with serve_in_thread(WebServer(files)) as running:
        yield running


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=5-9", 5, 10),
        ("bytes=10000-", 10000, len(DATA)),
        ("bytes=10000-99999", 10000, len(DATA)),
        ("bytes=-7", len(DATA) - 7, len(DATA)),
        ("bytes=-99999", 0, len(DATA)),
    ],
)
def test_ranges(server: WebServer, asked: str, start: int, end: int) -> None:
    response, body = get(server, Range=asked)
    assert response.status == 206
    assert response.headers["Content-Range"] == f"bytes {start}-{end - 1}/{len(DATA)}"
    assert body == DATA[start:end]
    assert server.requests == [("/x", start, end)]
    assert server.bytes_sent == end - start


@pytest.mark.parametrize("asked", ["", "bytes=5-4", "bytes=-", "bytes=1-2,5-6", "lines=1-2"])
def test_other_range_headers_are_ignored(server: WebServer, asked: str) -> None:
    response, body = get(server, Range=asked)
    assert (response.status, body) == (200, DATA)
    assert response.headers["Accept-Ranges"] == "bytes"
    assert server.requests == [("/x", 0, len(DATA))]


def test_ranges_outside(server: WebServer) -> None:
    for path, asked, size in [
        ("/x", f"bytes={len(DATA)}-", len(DATA)),
        ("/x", "bytes=-0", len(DATA)),
        ("/0", "bytes=0-0", 0),
    ]:
        response, body = get(server, path, Range=asked)
        assert (response.status, body) == (416, b"")
        assert response.headers["Content-Range"] == f"bytes */{size}"


def test_if_range(server: WebServer) -> None:
    etag = get(server)[0].headers["ETag"]
    assert get(server, Range="bytes=1-2", If_Range=etag)[0].status == 206
    assert get(server, Range="bytes=1-2", If_Range='"old"')[0].status == 200


def test_head_missing_and_other_methods(server: WebServer) -> None:
    response, body = get(server, method="HEAD", Range="bytes=1-2")
    assert (response.status, body) == (200, b"")
    assert response.headers["Content-Length"] == str(len(DATA))
    assert get(server, "/none")[0].status == 404
    assert get(server, method="POST")[0].status == 405
    assert server.requests == []


def test_keep_alive_serves_many_requests(server: WebServer) -> None:
    with client(server) as connection:
        local = set()
        for _ in range(3):
            connection.request("GET", "/x")
            assert connection.getresponse().read() == DATA
            assert isinstance(connection.sock, socket.socket)
            local.add(connection.sock.getsockname())
    assert len(local) == 1


def test_content_may_change_and_so_does_its_etag() -> None:
    files: dict[str, bytes | Path] = {"/x": b"one"}
    with serve_in_thread(WebServer(files)) as server:
        before, _ = get(server)
        files["/x"] = b"two"
        after, body = get(server)
    assert body == b"two"
    assert before.headers["ETag"] != after.headers["ETag"]


def test_validators_redirects_and_credentials() -> None:
    with serve_in_thread(
        WebServer({"/x": DATA}, validators=(), redirects={"/r": "/x"}, credentials=("u", "p"))
    ) as server:
        assert get(server)[0].status == 401
        assert get(server, Authorization="Basic dTpx")[0].status == 401
        response, body = get(server, Authorization="Basic dTpw")
        assert (response.status, body) == (200, DATA)
        assert response.headers["ETag"] is None
        assert response.headers["Last-Modified"] is None
        assert get(server, "/r", Authorization="Basic dTpw")[0].headers["Location"] == "/x"


def test_a_directory_is_served_and_nothing_above_it(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    (inside / "a b").write_bytes(DATA)
    (tmp_path / "out").write_bytes(b"secret")
    (inside / "link").symlink_to(tmp_path / "out")
    with serve_in_thread(WebServer(inside)) as server:
        assert get(server, "/a%20b")[1] == DATA
        for path in ("/../out", "/%2e%2e/out", "/link", "/", "//etc/passwd"):
            assert get(server, path)[0].status == 404


def test_several_pieces_make_one_body(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FREE_PIECE", 1000)
    assert get(server)[1] == DATA
    server.rate = 1e9
    monkeypatch.setattr(module, "_PACED_PIECE", 999)
    assert get(server, Range="bytes=1-5000")[1] == DATA[1:5001]


def test_bucket_lets_exactly_the_rate_through(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 100.0

    async def sleep(seconds: float) -> None:
        nonlocal clock
        clock += seconds

    async def main() -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: clock)
        bucket = TokenBucket(1000)
        for _ in range(100):
            await bucket.take(100)
        # 10,000 bytes take 10 s, less what the pause before the first allows at once.
        assert clock == pytest.approx(110.0 - module._BURST)
        bucket.rate = None
        await bucket.take(1 << 40)
        assert clock == pytest.approx(110.0 - module._BURST)

    with monkeypatch.context() as patched:
        patched.setattr(asyncio, "sleep", sleep)
        asyncio.run(main())


def lie(kind: FaultKind, code: int = 500, after: int | None = None) -> WebServer:
    fault = Fault(kind, code, after)
    return WebServer({"/x": DATA}, faults=lambda number, *_: None if number else fault)


@pytest.mark.parametrize(
    ("server", "status", "content_range", "body"),
    [
        (lie("status", 503), 503, None, b""),
        (lie("ignore_range"), 200, None, DATA),
        (lie("short_length"), 206, "bytes 0-9/10240", DATA[:5]),
        (lie("long_body"), 206, "bytes 0-9/10240", DATA[:10] + b"and more"),
        (lie("wrong_content_range"), 206, "bytes 10240-10249/10240", bytes(range(255, 245, -1))),
        (lie("wrong_total"), 206, "bytes 0-9/10241", bytes(range(255, 245, -1))),
        (lie("change_etag"), 206, "bytes 0-9/10240", bytes(range(255, 245, -1))),
        (lie("extra_encoding"), 206, "bytes 0-9/10240", gzip.compress(DATA[:10], mtime=0)),
    ],
    ids=lambda value: "",
)
def test_lies(server: WebServer, status: int, content_range: str | None, body: bytes) -> None:
    with serve_in_thread(server):
        response, found = get(server, Range="bytes=0-9")
        assert (response.status, response.headers["Content-Range"]) == (status, content_range)
        if response.headers["Content-Encoding"] == "gzip":
            found, body = gzip.decompress(found), gzip.decompress(body)
        assert found == body
        # The next answer is honest again, also on disk and in memory.
        assert get(server, Range="bytes=0-9")[1] == DATA[:10]


def test_a_file_on_disk_is_lied_about_as_well(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(DATA)
    with serve_in_thread(WebServer(tmp_path, faults=lambda *_: Fault("change_etag"))) as server:
        assert get(server, Range="bytes=5-9")[1] == bytes(range(250, 245, -1))
    assert (tmp_path / "x").read_bytes() == DATA


@pytest.mark.parametrize("after", [None, 0, 3])
def test_broken_connections(after: int | None) -> None:
    with serve_in_thread(lie("short_body", after=after)) as server:
        with pytest.raises(http.client.IncompleteRead) as caught:
            get(server, Range="bytes=0-9")
        assert caught.value.partial == DATA[: 5 if after is None else after]
    with serve_in_thread(lie("reset", after=after)) as server, pytest.raises(ConnectionError):
        get(server, Range="bytes=0-9")


@pytest.mark.parametrize("after", [None, 3])
def test_hang_sends_no_more_and_ends_with_the_client(after: int | None) -> None:
    with serve_in_thread(lie("hang", after=after)) as server, client(server) as connection:
        connection.request("GET", "/x")
        if after is not None:
            response = connection.getresponse()
            assert response.read(after) == DATA[:after]
        assert isinstance(connection.sock, socket.socket)
        connection.sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            connection.sock.recv(1)


def test_a_port_in_use_is_an_error() -> None:
    with serve_in_thread(WebServer({})) as server:
        second = WebServer({}, port=server.port)
        with pytest.raises(OSError), serve_in_thread(second):
            pytest.fail("two servers on one port")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_program_says_its_url_and_ends_by_signal(tmp_path: Path, number: int) -> None:
    (tmp_path / "x").write_bytes(DATA)
    command = [sys.executable, "-m", "pagein.testing.webserver", os.fspath(tmp_path)]
    with subprocess.Popen(
        [*command, "--rate", "1e9"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            host = process.stdout.readline().strip().removeprefix("http://").rstrip("/")
            connection = http.client.HTTPConnection(host, timeout=100)
            connection.request("GET", "/x")
            assert connection.getresponse().read() == DATA
            connection.close()
        finally:
            process.send_signal(number)
        assert process.wait(100) == 0


@pytest.mark.parametrize("options", [["/none"], ["/", "--rate", "0"], ["/", "--port", "x"]])
def test_the_program_refuses_bad_options(options: list[str]) -> None:
    command = [sys.executable, "-m", "pagein.testing.webserver", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_client_that_comes_at_the_end_leaves_no_socket_behind() -> None:
    async def main(steps: int) -> None:
        async with WebServer({"/x": DATA}) as server:
            with socket.create_connection(("127.0.0.1", server.port)):
                for _ in range(steps):
                    await asyncio.sleep(0)
                await server.__aexit__(None, None, None)

    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", ResourceWarning)
        for steps in range(8):
            asyncio.run(main(steps))
            gc.collect()
    assert [str(each.message) for each in found] == []
