"""What `pagein top` shows, as values: two looks at both halves, and what changed in between."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from pagein.cli.readers import blocked_on, reader_of

Found = dict[str, Any]
"""What `status.collect` gives."""


@dataclass(frozen=True, slots=True)
class Look:
    """The state of both halves at a time, in seconds of the monotonic clock."""

    found: Found
    at: float

    @classmethod
    def now(cls, found: Found) -> Look:
        """One that was just taken."""
        return cls(found, time.monotonic())


def summary(before: Look | None, after: Look) -> dict[str, Any]:
    """The screen as plain values, for --json too. Bytes, seconds, and both per second.

    Rates are null where they are not known: a half was replaced, or there was no look before.
    """
    found = after.found
    if not found["running"]:
        return {"running": False, "mounts": [], "waiting": []}
    rates = _Rates(before, after)
    traffic = found.get("traffic")
    return {
        "running": True,
        "front_end": found["front_end"],
        "cache": found["cache"],
        "seconds": rates.seconds,
        "problem": found.get("problem"),
        "metrics": found["metrics"],
        "fetched": _fetched(traffic, rates),
        "requests": _requests(traffic, rates),
        "hosts": _hosts(traffic, rates),
        "reads": _reads(found.get("numbers"), rates),
        "mounts": [_mount(mount, found, rates) for mount in found["mounts"]],
        **_waiting(found),
    }


class _Rates:
    """Differences between two looks, per second."""

    def __init__(self, before: Look | None, after: Look) -> None:
        same = before is not None and before.found["running"]
        self._before = before.found if same and before is not None else None
        self._after = after.found
        self.seconds = round(after.at - before.at, 3) if before is not None and same else None

    def of(self, pid: str, *path: str | tuple[str, str]) -> float | None:
        """Of the number at `path`, which the process of `pid` counts."""
        if self._before is None or not self.seconds or self._before.get(pid) != self._after[pid]:
            return None
        then, now = _at(self._before, path), _at(self._after, path)
        return round(max(0, now - then) / self.seconds, 3)


def _at(found: Any, path: tuple[Any, ...]) -> float:
    for name in path:
        if isinstance(name, tuple):
            found = next((b for b in found if (b["volume"], b["cookie"]) == name), None)
        else:
            found = (found or {}).get(name)
    return found or 0


def _fetched(traffic: Found | None, rates: _Rates) -> dict[str, Any]:
    totals = (traffic or {}).get("fetched", {})
    return {
        kind: {"total": total, "rate": rates.of("daemon_pid", "traffic", "fetched", kind)}
        for kind, total in totals.items()
    }


def _requests(traffic: Found | None, rates: _Rates) -> dict[str, Any]:
    hosts = (traffic or {}).get("hosts", {})
    each = [rates.of("daemon_pid", "traffic", "hosts", host, "requests") for host in hosts]
    known = [rate for rate in each if rate is not None]
    return {
        "total": sum(host["requests"] for host in hosts.values()),
        "rate": round(sum(known), 3) if len(known) == len(each) and rates.seconds else None,
        "errors": sum(host["errors"] for host in hosts.values()),
        "retries": (traffic or {}).get("retries", 0),
        "failed_reads": (traffic or {}).get("failed_reads", 0),
    }


def _hosts(traffic: Found | None, rates: _Rates) -> dict[str, Any]:
    return {
        host: {**counts, "rate": rates.of("daemon_pid", "traffic", "hosts", host, "requests")}
        for host, counts in (traffic or {}).get("hosts", {}).items()
    }


def _reads(numbers: Found | None, rates: _Rates) -> dict[str, Any] | None:
    """Of the kernel's file system; None where Linux is the kernel half, which tells nothing."""
    if numbers is None:
        return None
    reads, misses = numbers["reads"], numbers["misses"]
    rate = rates.of("pid", "numbers", "reads")
    missed = rates.of("pid", "numbers", "misses")
    return {
        "total": reads,
        "rate": rate,
        "hit_ratio": round(1 - misses / reads, 4) if reads else None,
        "hit_ratio_now": round(1 - missed / rate, 4) if rate and missed is not None else None,
        "written": numbers["written_bytes"],
        "unread": numbers["unread_bytes"],
        "wasted": numbers["wasted_bytes"],
    }


def _mount(mount: Found, found: Found, rates: _Rates) -> dict[str, Any]:
    keys = {(volume, cookie) for volume, cookie in mount["blobs"]}
    blobs = [blob for blob in found["blobs"] if (blob["volume"], blob["cookie"]) in keys]
    each = [rates.of("daemon_pid", "blobs", key, "fetched") for key in keys]
    known = [rate for rate in each if rate is not None]
    return {
        "target": mount["target"],
        "sources": mount["sources"],
        "direct": mount["direct"],
        "size": sum(blob["size"] for blob in blobs),
        "resident": sum(blob["resident"] or 0 for blob in blobs),
        "fetched": sum(blob["fetched"] for blob in blobs),
        "rate": round(sum(known), 3) if len(known) == len(each) and rates.seconds else None,
        "last_error": next((b["last_error"] for b in blobs if b["last_error"]), None),
    }


def _waiting(found: Found) -> dict[str, Any]:
    """Reads that wait, who reads, and who probably does where that is not known."""
    waiting, unknown = [], False
    for read in found["waiting"]:
        reader = reader_of(read["pid"]) if read["pid"] else None
        unknown = unknown or reader is None
        waiting.append(
            {
                **read,
                "pid": reader.pid if reader else None,
                "command": reader.command if reader else None,
            }
        )
    oldest = found["oldest_read"]
    guesses = blocked_on([mount["target"] for mount in found["mounts"]]) if unknown else []
    return {
        "waiting_total": max(len(waiting), oldest["waiting"] if oldest else 0),
        "waiting": waiting,
        "perhaps": [{"pid": each.pid, "command": each.command} for each in guesses],
    }
