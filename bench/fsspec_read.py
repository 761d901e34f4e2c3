"""Four processes read three columns of a parquet file, through the caches of fsspec and pagein's.

pandas, a web server behind a link of 20 ms and 200 Mbit/s, an empty cache directory. All begin at
once. Seconds until the last one has its columns; bytes and requests are counted on the link.

The four share pagein's directory. blockcache has one for each process: where processes fill one
together it gives them wrong bytes (pyarrow then finds no parquet); filecache has, too.

`--python` has pandas, pyarrow and pagein[fsspec]; needs no root.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from coldparts import Link, link_to
from common import MB, Spread, ratios, rounds, save, table, workspace
from link import link

COLUMNS, GROUPS = 20, 10
WANTED = ["c03", "c09", "c15"]
RTT_MS, MBIT = 20.0, 200.0
PAGEIN = "pagein"
VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    PAGEIN: ("pagein", "cache", {}),
    "blockcache, 64 KiB": ("blockcache", "cache_storage", {"block_size": 64 << 10}),
    "blockcache, 1 MiB": ("blockcache", "cache_storage", {"block_size": 1 << 20}),
    "filecache": ("filecache", "cache_storage", {}),
}
"""Protocol, its option for the directory, options of the protocol `http` below it."""

_MAKE = """
import sys
import numpy, pyarrow, pyarrow.parquet
path, rows, columns, groups = sys.argv[1], *map(int, sys.argv[2:])
random = numpy.random.default_rng(1)
table = pyarrow.table({f"c{n:02}": random.random(rows) for n in range(columns)})
options = dict(compression="none", use_dictionary=False, row_group_size=-(-rows // groups))
pyarrow.parquet.write_table(table, path, **options)
"""
_READ = """
import json, sys, time
import fsspec.implementations.cached, fsspec.implementations.http, pandas, pyarrow.parquet
if sys.argv[1].startswith("pagein"):
    import pagein.fsspec, pagein.daemon.loop, pagein.origins.http, aiohttp
url, columns, options = sys.argv[1], *map(json.loads, sys.argv[2:])
print("ready", flush=True)
sys.stdin.readline()
frame = pandas.read_parquet(url, columns=columns, storage_options=options, engine="pyarrow")
print(json.dumps([len(frame), float(frame.to_numpy().sum())]), flush=True)
sys.stdin.readline()
"""


class Contest:
    """The same columns, each time into an empty cache."""

    def __init__(self, python: str, count: int, directory: Path, url: str, proxy: Link) -> None:
        """`count` processes read `url` through `proxy`."""
        self._python, self._count = python, count
        self._directory, self._url, self._proxy = directory, url, proxy
        self.counted: dict[str, list[dict[str, int]]] = {name: [] for name in VARIANTS}
        self._answer = ""

    def run(self, name: str) -> Callable[[], float]:
        """What has four processes read once; seconds until the last has its columns."""

        def once() -> float:
            cache = self._directory / "cache"
            try:
                return self._once(name, cache)
            finally:
                shutil.rmtree(cache, ignore_errors=True)

        return once

    def _once(self, name: str, cache: Path) -> float:
        protocol, option, http = VARIANTS[name]
        pipe = subprocess.PIPE
        with ExitStack() as stack:
            readers = []
            for number in range(self._count):
                own = cache if name == PAGEIN else cache / f"{number}"
                options = {protocol: {option: str(own)}, **({"http": http} if http else {})}
                words = [f"{protocol}::{self._url}", json.dumps(WANTED), json.dumps(options)]
                argv = [self._python, "-c", _READ, *words]
                reader = subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True)
                stack.callback(reader.wait, 60)
                stack.callback(reader.kill)
                readers.append(reader)
            for reader in readers:
                assert _line(reader) == "ready"
            self._proxy.reset()
            begun = time.monotonic()
            for reader in readers:
                _tell(reader)
            for reader in readers:
                said = _line(reader)
                self._answer = self._answer or said
                if said != self._answer or not said:
                    raise RuntimeError(f"{name}: {said!r} where others read {self._answer!r}")
            took = time.monotonic() - begun
            self.counted[name].append(self._proxy.counters())
            for reader in readers:
                _tell(reader)
                reader.wait(60)
        return took


def _line(reader: subprocess.Popen[str]) -> str:
    assert reader.stdout is not None
    return reader.stdout.readline().strip()


def _tell(reader: subprocess.Popen[str]) -> None:
    assert reader.stdin is not None
    reader.stdin.write("\n")
    reader.stdin.flush()


def main() -> None:
    """Run it all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="which has pandas and pyarrow")
    parser.add_argument("--processes", type=int, default=4, metavar="N")
    parser.add_argument("--size", type=int, default=200, metavar="MB", help="of the file")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on which disk")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was made is taken down
    with workspace(options.directory) as directory, ExitStack() as stack:
        (directory / "www").mkdir()
        path = directory / "www" / "table.parquet"
        rows = options.size * MB // 8 // COLUMNS
        make = [options.python, "-c", _MAKE, str(path), *map(str, (rows, COLUMNS, GROUPS))]
        subprocess.run(make, check=True)
        # blockcache lists the directory to learn of a file, and fails where that is forbidden.
        (path.parent / "index.html").write_text(f'<a href="{path.name}">{path.name}</a>')
        server = stack.enter_context(link(path.parent, directory, None))
        proxy = stack.enter_context(link_to(urlsplit(server.url).port or 80))
        proxy.set(RTT_MS, MBIT)
        url = f"http://127.0.0.1:{proxy.port}/{path.name}"
        contest = Contest(options.python, options.processes, directory, url, proxy)
        seconds = rounds(options.rounds, {each: contest.run(each) for each in VARIANTS}, "reads")
        _show(seconds, contest, rows * 8 * len(WANTED), path.stat().st_size)
    save(options.json, "fsspec_read", {"seconds": seconds, "link": contest.counted})


def _show(seconds: dict[str, list[float]], contest: Contest, columns: int, size: int) -> None:
    shown = []
    for name in VARIANTS:
        counted = contest.counted[name]
        megabytes = Spread.of([each["bytes_down"] / MB for each in counted]).text(1)
        requests = Spread.of([each["requests"] for each in counted]).text(0)
        ratio = ratios(seconds, name, PAGEIN).text(2)
        shown.append([name, Spread.of(seconds[name]).text(2), ratio, megabytes, requests])
    what = f"{columns / MB:.0f} MB of columns in a file of {size / MB:.0f} MB"
    table(what, ["", "seconds", "of pagein", "MB", "requests"], shown)


if __name__ == "__main__":
    main()
