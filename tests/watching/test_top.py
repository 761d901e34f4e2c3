"""`pagein top`: two looks as one summary, and the summary as a screen that fits."""

import os
import threading
from typing import Any

import pytest
from rich.console import Console

from pagein.cli.readers import Reader, blocked_on, reader_of
from pagein.cli.topdata import Look, summary
from pagein.cli.topview import screen

SOURCE = "https://example.org/image"


def found(*, mounts: int = 1, waiting: int = 0, **numbers: int) -> dict[str, Any]:
    """What `collect` gives, with some numbers."""
    given = {"fetched": 0, "reads": 0, "misses": 0, "requests": 0, "daemon": 1, "kernel": 2}
    given |= numbers
    keys = [("v", f"blob-{number}") for number in range(mounts)]
    of_blob = {"size": 1 << 20, "resident": 1 << 18, "fetched": given["fetched"]}
    return {
        "running": True,
        "front_end": "fuse",
        "cache": "/var/cache/pagein",
        "problem": None,
        "metrics": [],
        "daemon_pid": given["daemon"],
        "pid": given["kernel"],
        "traffic": {
            "fetched": {"demand": given["fetched"], "ahead": 0, "prefetch": 0, "background": 0},
            "hosts": {"example.org": {"requests": given["requests"], "errors": 1}},
            "retries": 3,
            "failed_reads": 0,
        },
        "numbers": {
            "reads": given["reads"],
            "misses": given["misses"],
            "written_bytes": 10,
            "unread_bytes": 5,
            "wasted_bytes": 0,
        },
        "blobs": [
            {"volume": volume, "cookie": cookie, "last_error": None, **of_blob}
            for volume, cookie in keys
        ],
        "mounts": [
            {"target": f"/mnt/{n}", "sources": [SOURCE], "direct": False, "blobs": [list(key)]}
            for n, key in enumerate(keys)
        ],
        "waiting": [
            {"age": 9.5 - n, "pid": os.getpid(), "off": n << 12, "len": 4096, "source": SOURCE}
            | {"volume": "v", "cookie": "blob-0"}
            for n in range(waiting)
        ],
        "oldest_read": {"waiting": waiting} if waiting else None,
    }


def test_rates_are_differences_by_time() -> None:
    before = Look(found(fetched=1000, reads=10, misses=10, requests=1), 50.0)
    after = Look(found(fetched=5000, reads=30, misses=15, requests=3), 52.0)
    what = summary(before, after)
    assert what["seconds"] == 2.0
    assert what["fetched"]["demand"] == {"total": 5000, "rate": 2000.0}
    assert what["requests"] == {
        "total": 3,
        "rate": 1.0,
        "errors": 1,
        "retries": 3,
        "failed_reads": 0,
    }
    assert what["hosts"]["example.org"]["rate"] == 1.0
    assert (what["reads"]["rate"], what["reads"]["hit_ratio"]) == (10.0, 0.5)
    assert what["reads"]["hit_ratio_now"] == 0.75
    assert what["mounts"][0]["rate"] == 2000.0


@pytest.mark.parametrize(
    ("who", "unknown", "known"),
    [("daemon", "fetched", "reads"), ("kernel", "reads", "fetched")],
)
def test_of_a_half_that_was_replaced_no_rate_is_known(who: str, unknown: str, known: str) -> None:
    before, after = Look(found(fetched=9, reads=9), 1.0), Look(found(**{who: 77}), 2.0)
    what = summary(before, after)
    rates = {"fetched": what["fetched"]["demand"]["rate"], "reads": what["reads"]["rate"]}
    assert rates[unknown] is None
    assert rates[known] == 0


def test_the_first_look_has_no_rates() -> None:
    what = summary(None, Look(found(fetched=7), 1.0))
    assert what["fetched"]["demand"] == {"total": 7, "rate": None}
    assert what["requests"]["rate"] is what["mounts"][0]["rate"] is what["seconds"] is None
    stopped = {"running": False}
    assert summary(Look(stopped, 1.0), Look(found(), 2.0))["requests"]["rate"] is None
    assert summary(Look(found(), 1.0), Look(stopped, 2.0))["running"] is False


def test_where_linux_is_the_kernel_half_it_tells_little() -> None:
    state = found(waiting=2)
    del state["numbers"]
    state |= {"front_end": "kernel", "oldest_read": None}
    for read in state["waiting"]:
        read["pid"] = 0
    what = summary(Look(state, 1.0), Look(state, 2.0))
    assert what["reads"] is None
    assert what["waiting_total"] == 2
    assert [read["pid"] for read in what["waiting"]] == [None, None]
    text = "\n".join(drawn(what, 120, 40))
    assert "hits" not in text and "(kernel)" in text


def drawn(what: dict[str, Any], width: int, height: int) -> list[str]:
    """The screen's lines, as a terminal of that size gets them."""
    console = Console(width=width, height=height, color_system=None)
    made = screen(what, title="pagein", width=width, height=height)
    return ["".join(piece.text for piece in line) for line in console.render_lines(made)]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (200, 60)])
@pytest.mark.parametrize(("mounts", "waiting"), [(0, 0), (1, 1), (3, 16), (100, 0), (100, 16)])
def test_it_fits_on_the_screen(width: int, height: int, mounts: int, waiting: int) -> None:
    what = summary(None, Look(found(mounts=mounts, waiting=waiting), 1.0))
    what["perhaps"] = [{"pid": 1, "command": "cat"}] * (20 if waiting else 0)
    lines = drawn(what, width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    if waiting:
        assert "9.5 s" in text and str(os.getpid()) in text
        assert "perhaps" in text
    if mounts:
        assert "/mnt/0" in text


def test_a_name_is_no_markup() -> None:
    state = found(waiting=1)
    state["mounts"][0] |= {"target": "/mnt/[red]x", "sources": ["[/bold]"]}
    state["waiting"][0]["source"] = "[/nothing]"
    text = "\n".join(drawn(summary(None, Look(state, 1.0)), 120, 40))
    assert "/mnt/[red]x" in text and "[/bold]" in text and "[/nothing]" in text


def test_a_thread_is_its_process() -> None:
    seen: list[Reader | None] = []

    def look() -> None:
        seen.append(reader_of(threading.get_native_id()))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen[0] is not None and seen[0].pid == os.getpid()


def test_threads_of_the_kernel_and_of_nobody_are_no_readers() -> None:
    assert reader_of(2) is None or os.path.exists("/proc/2/exe")  # in a container 2 is anybody
    assert reader_of(1 << 30) is None


def test_nobody_is_blocked_on_a_directory_of_ours(tmp_path: os.PathLike[str]) -> None:
    with open(os.path.join(tmp_path, "x"), "w") as _:
        assert blocked_on([str(tmp_path)]) == []
