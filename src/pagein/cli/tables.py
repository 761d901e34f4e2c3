"""`pagein status` for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from pagein.cli.units import human


def print_status(found: dict[str, Any]) -> None:
    """Mounts, blobs and the oldest waiting read on standard output."""
    console = Console()
    if found.get("problem"):
        console.print(f"[red]{found['problem']}[/red]")
    if not found["mounts"]:
        console.print("nothing is mounted")
    for mount in found["mounts"]:
        how = "complete, mounted directly" if mount["direct"] else "on demand"
        if mount.get("layers"):
            how = f"{mount['layers']} layers, {how}"
        if mount.get("upper"):
            how += f", written to {mount['upper']}"
        text = f"{mount['target']}  {', '.join(mount['sources'])}  ({how})"
        console.print(text, soft_wrap=True, markup=False, highlight=False)
    if found["blobs"]:
        console.print(_blobs(found["blobs"]))
    for server in found.get("servers", ()):
        if (trouble := _trouble(server)) is not None:
            console.print(trouble, soft_wrap=True, markup=False, highlight=False)
    oldest = found["oldest_read"]
    if oldest:
        console.print(
            f"{oldest['waiting']} reads wait; the oldest for {oldest['age']:.1f} s"
            f" (pid {oldest['pid']}, {human(oldest['len'])} at {oldest['off']} of"
            f" {oldest['cookie']})"
        )


def _trouble(server: dict[str, Any]) -> str | None:
    """A line about a server that does not do as it should; None for one that does."""
    name, error = server["server"], server["last_error"]
    if server["state"] != "closed":
        asked = f"asked again in {server['next_try']:.0f} s"
        if server["state"] == "half-open":
            asked = "being tried"
        return (
            f"{name}: dead for {server['failing_for']:.0f} s, reads fail at once, {asked}: {error}"
        )
    if server["busy_for"] > 0:
        return f"{name}: asked not to be asked for another {server['busy_for']:.0f} s"
    if server["aside_for"] > 0:
        return f"{name}: in trouble for another {server['aside_for']:.0f} s: {error}"
    return None


def _blobs(blobs: list[dict[str, Any]]) -> Table:
    table = Table("blob", "size", "resident", "fetched", "by trace", "requests", "state", box=None)
    for blob in blobs:
        resident = "unknown"  # to a daemon that was replaced, until it is read
        if blob["resident"] is not None:
            share = 100 * blob["resident"] / blob["size"] if blob["size"] else 100
            resident = f"{human(blob['resident'])} ({share:.0f} %)"
        name = blob["source"] or f"{blob['volume']}/{blob['cookie']}"
        table.add_row(
            name,
            human(blob["size"]),
            resident,
            human(blob["fetched"]),
            human(blob["prefetched"]),
            str(blob["requests"]),
            blob["state"],
        )
        if blob["last_error"]:
            table.add_row(f"  [red]{blob['last_error']}[/red]")
    return table
