"""`pagein status [--json]`."""

from __future__ import annotations

import errno
import json
from typing import Annotated, Any

import typer

from pagein.cli.errors import one_line_errors
from pagein.cli.halves import kernel_half, running, user_half
from pagein.cli.settings import CacheDir, Settings, StateDir, settings_of
from pagein.control import ControlError

_TIMEOUT = 10.0


def status(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    state_dir: StateDir = None,
    cache: CacheDir = None,
) -> None:
    """What is mounted, how much of it is here, and what is waited for."""
    settings = settings_of(ctx, state_dir, cache)
    with one_line_errors():
        found = collect(settings)
    if as_json:
        print(json.dumps(found, indent=2))
    elif not found["running"]:
        print("nothing is mounted (pagein is not running)")
    else:
        from pagein.cli.tables import print_status

        print_status(found)


def collect(settings: Settings, *, timeout: float = _TIMEOUT) -> dict[str, Any]:
    """The state of both halves, each within `timeout` seconds; reads no mount.

    Raises ControlError.
    """
    nothing: dict[str, Any] = {"running": False, "blobs": [], "mounts": []}
    nothing |= {"oldest_read": None, "waiting": [], "servers": []}
    if not running(settings):
        return nothing
    try:
        found = kernel_half(settings, {"op": "status"}, timeout=timeout)
    except ControlError as problem:
        if problem.errno == errno.ESHUTDOWN or not running(settings):
            return nothing  # it ended just now
        raise
    del found["ok"]
    try:
        fetching = user_half(settings, {"op": "status"}, timeout=timeout)
    except ControlError:
        fetching = {}  # no user half of ours: `pagein device`, or it is being restarted
    by_key = {(b["volume"], b["cookie"]): b for b in fetching.get("blobs", [])}
    for blob in found["blobs"]:
        more = by_key.get((blob["volume"], blob["cookie"]), {})
        blob["source"] = more.get("source")
        blob["fetched"] = more.get("fetched", 0)
        blob["prefetched"] = more.get("prefetched", 0)
        blob["errors"] = more.get("errors", 0)
        blob["last_error"] = more.get("last_error")
        if found["front_end"] == "kernel":  # which tells nothing of its objects
            _as_the_daemon_knows(blob, more)
    if found["front_end"] == "kernel":  # nor of who reads
        found["waiting"] = [{**read, "pid": 0} for read in fetching.get("waiting", [])]
    for read in found["waiting"]:
        read["source"] = by_key.get((read["volume"], read["cookie"]), {}).get("source")
    return {
        "running": True,
        "daemon_pid": fetching.get("pid"),
        "daemon_tasks": fetching.get("tasks"),
        "servers": fetching.get("servers", []),
        "traffic": fetching.get("traffic"),
        "metrics": fetching.get("metrics", []),
        **found,
    }


def _as_the_daemon_knows(blob: dict[str, Any], more: dict[str, Any]) -> None:
    """Complete a blob; one that has not been read since the daemon was replaced is not open yet."""
    blob["size"] = more.get("size", blob["size"])
    blob["resident"] = more.get("present")
    blob["requests"] = more.get("requests", 0)
    blob["state"] = "OPEN" if more else "CLOSE"
