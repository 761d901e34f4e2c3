"""`pagein top` for people: the summary as one screen."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pagein.cli.units import human

_UNKNOWN = "-"
_BAR = 12
"""Characters of a bar."""
_WIDE = 110
"""Columns from which on there is room for explanations."""
_SLOW = 5.0
"""Seconds after which a wait is shown in red."""
_FIXED = 15
"""Lines of headings, of the first table, and between tables."""
_KINDS = {
    "demand": "a reader waits for it",
    "ahead": "around and ahead of reads",
    "prefetch": "named by a trace",
    "background": "the rest, when idle",
}


def screen(
    what: dict[str, Any], *, title: str, width: int, height: int | None = None
) -> RenderableType:
    """All of it for `width` columns; with a `height`, in lines, no longer than that."""
    head = _text(title, "bold")
    if not what["running"]:
        return Group(head, Text("nothing is mounted (pagein is not running)"))
    parts: list[RenderableType] = [head]
    if what["problem"]:
        parts.append(Text(what["problem"], style="red"))
    mounts, waiting = len(what["mounts"]), len(what["waiting"])
    errors = {each["last_error"] for each in what["mounts"]} - {None}
    more = len(what["hosts"]) + len(errors) + bool(what["perhaps"]) + bool(what["problem"])
    most_mounts = most_waiting = None
    if height is not None:
        room = max(2, height - _FIXED - more)
        most_mounts = max(1, room - min(waiting, room // 2))
        most_waiting = max(1, room - min(mounts, most_mounts))
    parts += [Text(), _traffic(what, wide=width >= _WIDE)]
    parts += [Text(), _mounts(what["mounts"], most_mounts)]
    if what["hosts"]:
        parts += [Text(), _hosts(what["hosts"])]
    parts += [Text(), _waiting(what, most_waiting)]
    return Group(*parts)


def _rate(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{human(value)}/s"


def _per_second(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.0f}/s" if value >= 10 else f"{value:.1f}/s"


def _share(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{100 * value:.0f} %"


def _table(*columns: str) -> Table:
    """Columns by their headings: `>NAME` is a number, `NAME...` a text that gives way to others."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(
            column.strip(">."),
            justify="right" if column.startswith(">") else "left",
            no_wrap=not column.endswith("..."),
        )
    return table


def _text(words: str, style: str = "") -> Text:
    """In one line, cut off where the room ends."""
    return Text(words, style, no_wrap=True, overflow="ellipsis")


def _traffic(what: dict[str, Any], *, wide: bool) -> RenderableType:
    fetched = _table("fetched", ">now", ">so far", "...")
    for kind, counts in what["fetched"].items():
        total, rate = counts["total"], counts["rate"]
        style = "" if total else "dim"
        why = _text(_KINDS[kind] if wide else "", "dim")
        fetched.add_row(kind, _rate(rate), human(total), why, style=style)
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(no_wrap=True, overflow="ellipsis")
    asked = what["requests"]
    text = f"{_per_second(asked['rate'])}, {asked['total']} so far"
    facts.add_row("requests", text)
    facts.add_row("errors", _errors(asked))
    if (reads := what["reads"]) is not None:
        facts.add_row("reads", f"{_per_second(reads['rate'])}, {reads['total']} so far")
        now, ever = _share(reads["hit_ratio_now"]), _share(reads["hit_ratio"])
        facts.add_row("hits", f"{now} now, {ever} so far")
        unread, wasted = human(reads["unread"]), human(reads["wasted"])
        facts.add_row("unread", f"{unread} of {human(reads['written'])}, {wasted} wasted")
    both = Table.grid(padding=(0, 2, 0, 0))
    both.add_row(fetched, facts)
    return both


def _errors(asked: dict[str, Any]) -> Text:
    text = f"{asked['errors']} answers, {asked['retries']} retries, {asked['failed_reads']} reads"
    return Text(text, style="red" if asked["failed_reads"] else "")


def _mounts(mounts: list[dict[str, Any]], most: int | None) -> RenderableType:
    if not mounts:
        return Text("nothing is mounted")
    table = _table("mount...", ">here", "", ">size", ">now", "source...")
    for mount in mounts[:most]:
        target, source = _text(mount["target"]), _text(", ".join(mount["sources"]))
        if mount["direct"]:
            table.add_row(target, "all", _bar(1.0), "", "", source)
            continue
        share = mount["resident"] / mount["size"] if mount["size"] else 0.0
        here, size = human(mount["resident"]), human(mount["size"])
        table.add_row(target, here, _bar(share), size, _rate(mount["rate"]), source)
    lines: list[RenderableType] = [table]
    if most is not None and len(mounts) > most:
        lines.append(Text(f"and {len(mounts) - most} more", style="dim"))
    errors = dict.fromkeys(each["last_error"] for each in mounts if each["last_error"])
    lines += [_text(f"! {error}", "red") for error in errors]
    return Group(*lines)


def _bar(share: float) -> Text:
    full = min(_BAR, int(share * _BAR + 0.5))
    rest = ("░" * (_BAR - full), "dim")
    return Text.assemble(("█" * full, "green"), rest, f" {100 * share:.0f} %")


def _hosts(hosts: dict[str, Any]) -> RenderableType:
    table = _table("origin...", ">requests", ">so far", ">errors")
    for host, counts in hosts.items():
        errors = Text(str(counts["errors"]), style="red" if counts["errors"] else "")
        table.add_row(_text(host), _per_second(counts["rate"]), str(counts["requests"]), errors)
    return table


def _waiting(what: dict[str, Any], most: int | None) -> RenderableType:
    waiting, total = what["waiting"][:most], what["waiting_total"]
    if not total:
        return Text("no read waits", style="dim")
    reads = "1 read waits" if total == 1 else f"{total} reads wait"
    table = _table(f">{reads}", ">pid", "command", "wants", "of...")
    for read in waiting:
        age = Text(f"{read['age']:.1f} s", style="red" if read["age"] >= _SLOW else "yellow")
        pid = _UNKNOWN if read["pid"] is None else str(read["pid"])
        wants = f"{human(read['len'])} at {read['off']}"
        source = _text(read["source"] or f"{read['volume']}/{read['cookie']}")
        table.add_row(age, pid, Text(read["command"] or "(kernel)"), wants, source)
    lines: list[RenderableType] = [table]
    if total > len(waiting):
        lines.append(Text(f"and {total - len(waiting)} more", style="dim"))
    if what["perhaps"]:
        who = ", ".join(f"{each['pid']} {each['command']}" for each in what["perhaps"])
        text = f"perhaps for these, which are blocked and use a mount: {who}"
        lines.append(_text(text))
    return Group(*lines)
