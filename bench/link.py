"""A link of limited speed with a web server at its other end.

A veth pair into a network namespace of its own, shaped by tbf where the server sends; so the limit
is in the kernel's network stack, and what it limits is whole packets on TCP connections, as on a
wire. Without network namespaces: loopback, and the server itself counts its bytes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pagein.testing.webserver import WebServer

_BURST = 512 << 10  # bytes: 4 ms at 1 Gbit/s, several of the largest segments there are
_QUEUE = 20  # milliseconds of data that may wait before it is dropped
_START = 10.0
_NGINX = """
worker_processes 1; pid {dir}/pid; error_log {dir}/error.log; daemon off; master_process off;
events {{ worker_connections 512; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000; autoindex on;
  client_body_temp_path {dir}/1; proxy_temp_path {dir}/2; fastcgi_temp_path {dir}/3;
  uwsgi_temp_path {dir}/4; scgi_temp_path {dir}/5;
  server {{ listen {address}:{port}; root {root}; }}
}}
"""
_OURS = """
import asyncio, sys
from pathlib import Path
from pagein.testing.webserver import WebServer
async def main(root, host, port, rate):
    async with WebServer(Path(root), host=host, port=int(port), rate=float(rate) or None):
        await asyncio.Event().wait()
asyncio.run(main(*sys.argv[1:]))
"""


@dataclass(frozen=True)
class Link:
    """Where the server is; `what` says in words how it is reached."""

    url: str
    server_pid: int
    what: str


@contextmanager
def link(root: Path, scratch: Path, mbit: int | None) -> Iterator[Link]:
    """Serve the directory `root` through a link of `mbit` Mbit/s; None: as fast as it goes."""
    with ExitStack() as stack:
        inside: list[str] = []
        address, wire = "127.0.0.1", "loopback"
        shaped = mbit is not None and _can_shape()
        if mbit is not None and shaped:
            name, address = _namespace(stack, mbit)
            inside = ["ip", "netns", "exec", name]
            wire = f"veth with tbf at {mbit} Mbit/s"
        rate = mbit * 125_000 if mbit is not None and not shaped else 0
        if rate:
            wire = f"loopback, limited to {mbit} Mbit/s by the server"
        yield _serve(stack, root, scratch, inside, address, wire, rate)


def _can_shape() -> bool:
    return (
        bool(shutil.which("ip") and shutil.which("tc"))
        and not subprocess.run(
            ["unshare", "--net", "true"], capture_output=True, check=False
        ).returncode
    )


def _namespace(stack: ExitStack, mbit: int) -> tuple[str, str]:
    """A namespace with a shaped veth to here; its name, and its address there."""
    name = f"pagein{os.getpid()}"
    here, there = f"pa{os.getpid()}"[:15], f"pb{os.getpid()}"[:15]
    network = f"10.213.{os.getpid() % 250}"
    _run("ip", "netns", "add", name)
    stack.callback(_run, "ip", "netns", "del", name)  # the veth pair goes with it
    _run("ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
    _run("ip", "addr", "add", f"{network}.1/30", "dev", here)
    _run("ip", "link", "set", here, "up")
    inside = ["ip", "-n", name]
    _run(*inside, "addr", "add", f"{network}.2/30", "dev", there)
    _run(*inside, "link", "set", there, "up")
    shape = ["rate", f"{mbit}mbit", "burst", str(_BURST), "latency", f"{_QUEUE}ms"]
    _run("tc", "-n", name, "qdisc", "add", "dev", there, "root", "tbf", *shape)
    return name, f"{network}.2"


def _serve(
    stack: ExitStack,
    root: Path,
    scratch: Path,
    inside: list[str],
    address: str,
    wire: str,
    rate: int,
) -> Link:
    port = _free_port()
    nginx = None if rate else shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if nginx:
        directory = scratch / f"nginx-{port}"
        directory.mkdir()
        config = directory / "conf"
        config.write_text(_NGINX.format(dir=directory, address=address, port=port, root=root))
        command = [nginx, "-c", str(config), "-e", str(directory / "error.log")]
    else:
        command = [sys.executable, "-c", _OURS, str(root), address, str(port), str(rate)]
    process = subprocess.Popen([*inside, *command], stdout=subprocess.DEVNULL)
    stack.callback(_stop, process)
    url = f"http://{address}:{port}/"
    _wait_for(url, process)
    name = "nginx" if nginx else WebServer.__module__
    return Link(url, process.pid, f"{name}, {wire}")


def _free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + _START
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            opener.open(url, timeout=1).close()
        except urllib.error.HTTPError as answer:  # it speaks HTTP, that is enough
            answer.close()
        except OSError:
            if process.poll() is not None or time.monotonic() > give_up:
                raise
            time.sleep(0.02)
            continue
        return


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
