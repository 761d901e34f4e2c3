"""From nothing to a container's first output: a full pull by containerd, and `pagein run`.

An image of Debian packages (see `coldimage`) lies in a docker-registry: as it is, with an index
that `pagein index --push` made, and with that and a trace, which `pagein trace record` made of the
same workload; with layers of zstd (`coldzstd`) and an index; and converted to eStargz (`coldtoc`),
which needs no index. Between registry and
client is a link. Each start is of a client that has nothing, with an empty page cache; what is
compared runs in turn.
"""

from __future__ import annotations

import argparse
import compileall
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from coldimage import TAG, image
from coldparts import Link, Start, checked, containerd, link_to, pagein, push, registry, timed
from coldtoc import estargz
from coldzstd import zstd
from common import MB, Spread, console, ratios, rounds, save, table, workspace

import pagein as pagein_package

FULL, PLAIN, INDEXED, TRACED = "full pull", "no index", "index", "index + trace"
ESTARGZ = "eStargz, no index"
ZSTD = "zstd, index"
EVERYTHING = "everything resident"
CONTENDERS = (FULL, PLAIN, INDEXED, TRACED, ZSTD, ESTARGZ, EVERYTHING)
RESIDENT, KEPT = "pulled before", "run before"
RUNNING = "index, pagein runs"
LINKS = {
    "0/unlimited": (0.0, 0.0),
    "20 ms/200 Mbit": (20.0, 200.0),
    "50 ms/100 Mbit": (50.0, 100.0),
}
WORKLOADS = {
    "print(1)": ["python3", "-c", "print(1)"],
    "numpy app": ["python3", "/srv/app.py"],
}
REPOSITORIES = {work: f"traced-{number}" for number, work in enumerate(WORKLOADS)}
"""Each workload has an image of its own: an image has one trace."""
_PROGRAMS = (
    "containerd",
    "ctr",
    "runc",
    "skopeo",
    "docker-registry",
    "pigz",
    "mkfs.erofs",
    "ctr-remote",
)


class Contest:
    """The contenders, on one link; keeps all starts of each."""

    def __init__(self, directory: Path, link: Link, work: str) -> None:
        self.starts: dict[str, list[Start]] = {}
        self._directory = directory
        self._link = link
        self._command = WORKLOADS[work]
        self._traced = REPOSITORIES[work]
        self._image = f"127.0.0.1:{link.port}/cold"

    def variants(self, wanted: Sequence[str]) -> dict[str, Callable[[], float]]:
        """What `rounds` calls: seconds to the first output."""
        known = {
            FULL: self.full,
            PLAIN: self.plain,
            INDEXED: self.indexed,
            TRACED: self.traced,
            EVERYTHING: self.everything,  # until all of it is here, that is
        }
        known[ZSTD] = lambda: self.lone(ZSTD, "zstd")
        known[ESTARGZ] = lambda: self.lone(ESTARGZ, "estargz")
        return {name: known[name] for name in wanted}

    def full(self) -> float:
        """Pull and run; then run once more what is here."""
        name = f"{self._image}/plain:{TAG}"
        with containerd(self._directory / "ctd") as client:

            def pull() -> Iterator[None]:
                client.pull(name)
                yield

            begun = timed(self._link, pull(), client.first_output(name, self._command))
            self._note(FULL, begun)
            self._note(RESIDENT, timed(self._link, client.first_output(name, self._command)))
        return begun.seconds

    def plain(self) -> float:
        """`pagein run` of an image that nobody has indexed."""
        name = f"{self._image}/plain:{TAG}"
        with pagein(self._directory / "pagein") as client:
            begun = timed(self._link, client.first_output(name, self._command))
        self._note(PLAIN, begun)
        return begun.seconds

    def indexed(self) -> float:
        """`pagein run` of an image whose index is in the registry; then once more.

        And then with nothing of it, but pagein's processes running, as containerd does all along.
        """
        name = f"{self._image}/indexed:{TAG}"
        with pagein(self._directory / "pagein") as client:
            begun = timed(self._link, client.first_output(name, self._command))
            self._note(INDEXED, begun)
            client.ended()
            self._note(KEPT, timed(self._link, client.first_output(name, self._command)))
        with pagein(self._directory / "pagein") as client, client.held():
            self._note(RUNNING, timed(self._link, client.first_output(name, self._command)))
        return begun.seconds

    def traced(self) -> float:
        """`pagein run` of an image whose trace is in the registry with the index."""
        name = f"{self._image}/{self._traced}:{TAG}"
        with pagein(self._directory / "pagein") as client:
            begun = timed(self._link, client.first_output(name, self._command))
        self._note(TRACED, begun)
        return begun.seconds

    def lone(self, variant: str, repository: str) -> float:
        """`pagein run` of an image of another kind."""
        name = f"{self._image}/{repository}:{TAG}"
        with pagein(self._directory / "pagein") as client:
            begun = timed(self._link, client.first_output(name, self._command))
        self._note(variant, begun)
        return begun.seconds

    def everything(self) -> float:
        """`pagein mount --background idle` of the indexed image, until nothing is missing."""
        name = f"{self._image}/indexed:{TAG}"
        with pagein(self._directory / "pagein") as client:
            begun = timed(self._link, client.everything(name))
        self._note(EVERYTHING, begun)
        return begun.seconds

    def _note(self, name: str, start: Start) -> None:
        self.starts.setdefault(name, []).append(start)


def show(title: str, contest: Contest, found: dict[str, list[float]]) -> None:
    """One table: seconds, what came over the link, how many times as fast as the full pull."""
    rows = []
    for name, starts in contest.starts.items():
        faster = ratios(found, FULL, name).text(1) if name in found and FULL in found else ""
        rows.append(
            [
                name,
                Spread.of([each.seconds for each in starts]).text(2),
                f"{median(each.bytes_down / MB for each in starts):.1f}",
                f"{median(each.sequence for each in starts):.0f}",
                faster,
            ]
        )
    table(title, ["", "seconds", "MB", "in a row", "times as fast"], rows)


def options_of() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Raw)
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on which disk")
    parser.add_argument("--link", action="append", choices=LINKS, help="only this one")
    parser.add_argument("--workload", action="append", choices=WORKLOADS, help="only this one")
    parser.add_argument("--only", action="append", choices=CONTENDERS)
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if os.geteuid():
        sys.exit("error: this mounts and runs containers, and needs root")
    for program in _PROGRAMS:
        if shutil.which(program) is None:
            sys.exit(f"error: this needs {program}")
    return options


class _Raw(argparse.RawDescriptionHelpFormatter):
    """The docstring as it is."""


def main() -> None:
    """Measure, print, save."""
    options = options_of()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was made is taken down
    wanted = options.only or CONTENDERS
    compileall.compile_dir(Path(pagein_package.__file__).parent, quiet=1)  # as pip leaves it
    with console.status("making the image: a minute, the first time"):
        layout = image()
    figures: dict[str, Any] = {"image": layout.name, "versions": versions()}
    with (
        workspace(options.directory) as directory,
        registry(directory / "registry") as port,
        link_to(port) as link,
    ):
        for repository in ("plain", "indexed"):
            push(layout, TAG, f"127.0.0.1:{port}/cold/{repository}:{TAG}")
        if ESTARGZ in wanted:
            with console.status("converting: a minute, the first time"):
                push(
                    estargz(layout, directory / "convert"),
                    TAG,
                    f"127.0.0.1:{port}/cold/estargz:{TAG}",
                )
        if ZSTD in wanted:
            name = f"127.0.0.1:{port}/cold/zstd:{TAG}"
            with console.status("zstd"), pagein(directory / "zstd-indexer") as client:
                push(zstd(layout, directory / "zstd"), TAG, name)
                client.index(name)
        if INDEXED in wanted or EVERYTHING in wanted:
            with console.status("indexing"), pagein(directory / "indexer") as client:
                client.index(f"127.0.0.1:{port}/cold/indexed:{TAG}")
        if TRACED in wanted:
            for work in options.workload or WORKLOADS:
                name = f"127.0.0.1:{port}/cold/{REPOSITORIES[work]}:{TAG}"
                push(layout, TAG, name)
                with console.status(f"recording {work}"), pagein(directory / "recorder") as client:
                    client.index(name, client.record(name, WORKLOADS[work]))
        for place in options.link or LINKS:
            link.set(*LINKS[place])
            for work in options.workload or WORKLOADS:
                contest = Contest(directory, link, work)
                found = rounds(options.rounds, contest.variants(wanted), f"{place}, {work}")
                show(f"{place}, {work}", contest, found)
                if ZSTD in found and INDEXED in found:
                    ratio = ratios(found, ZSTD, INDEXED)
                    console.print(f"zstd / gzip, seconds: {ratio.text(2)} (wanted: at most 1.1)")
                figures[f"{place}, {work}"] = contest.starts
    save(options.json, "cold_start", figures)


def versions() -> dict[str, str]:
    """Of those that take part."""
    return {
        "containerd": checked(["containerd", "--version"]).strip(),
        "runc": checked(["runc", "--version"]).splitlines()[0],
    }


if __name__ == "__main__":
    main()
