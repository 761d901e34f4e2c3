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
    oldest = found["oldest_read"]
    if oldest:
        console.print(
            f"{oldest['waiting']} reads wait; the oldest for {oldest['age']:.1f} s"
            f" (pid {oldest['pid']}, {human(oldest['len'])} at {oldest['off']} of"
            f" {oldest['cookie']})"
        )


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
