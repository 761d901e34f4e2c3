"""`pagein cull [--dry-run] [--run N] [--device PATH]`."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from pagein.cli.errors import fail, one_line_errors
from pagein.cli.settings import CacheDir, StateDir, settings_of
from pagein.cli.units import human

if TYPE_CHECKING:
    from pagein.culler.culling import Free, Outcome
    from pagein.culler.idle import CacheFile


def cull(
    ctx: typer.Context,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go, and take nothing away.")
    ] = False,
    run: Annotated[
        int, typer.Option(metavar="PERCENT", min=2, max=99, help="How much shall be free.")
    ] = 7,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Hold this device, bound in the original mode, and cull whenever it says so.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    state_dir: StateDir = None,
    cache: CacheDir = None,
) -> None:
    """Make room in the cache: what was not used for longest goes first, nothing in use goes.

    Ends when so much of the cache's file system is free, blocks and files. Fails if that much
    could not be freed. Nobody has to be stopped for it.
    """
    directory = os.path.realpath(settings_of(ctx, state_dir, cache).cache)
    with one_line_errors():
        if device is not None:
            if dry_run:
                fail("--dry-run says what would go now, --device what has to go later: not both")
            from pagein.culler.holder import hold

            hold(device, directory, run)
            return
        _once(directory, run, dry_run=dry_run, as_json=as_json)


def _once(directory: str, run: int, *, dry_run: bool, as_json: bool) -> None:
    from pagein.culler import culling
    from pagein.culler.evict import Leases
    from pagein.protocol.space import LIMITS, Limits

    name = os.fsencode(directory)
    limits = Limits({**LIMITS, "brun": run, "frun": run})
    enough = culling.until_run(name, limits)
    went = _say_json if as_json else _say_dry if dry_run else _say
    outcome = culling.cull(name, Leases(name), enough, dry_run=dry_run, tell=went)
    free = culling.Free.of(name)
    if dry_run:
        free = free.with_more(len(outcome.culled), outcome.freed)
    if not as_json:
        _summary(directory, outcome, free, dry_run=dry_run)
    if not enough(outcome):
        fail(_why_not(directory, outcome, free, run))


def _say(file: CacheFile) -> None:
    when = datetime.fromtimestamp(file.used, UTC).strftime("%Y-%m-%d %H:%M")
    print(f"culled {human(file.held):>10}  not used since {when}  {file.name}")


def _say_dry(file: CacheFile) -> None:
    print("would be ", end="")
    _say(file)


def _say_json(file: CacheFile) -> None:
    print(json.dumps({"name": file.name, "bytes": file.held, "used": file.used}))


def _summary(directory: str, outcome: Outcome, free: Free, *, dry_run: bool) -> None:
    graves = f" and {outcome.buried} graves" if outcome.buried else ""
    what = f"{len(outcome.culled)} blobs{graves}, {human(outcome.freed)}"
    done, is_free = ("would go", "would be free") if dry_run else ("went", "is free")
    if not outcome.culled and not outcome.buried:
        what, done = "nothing", "goes" if not dry_run else "would go"
    used = f"; left alone, in use: {len(outcome.in_use)}" if outcome.in_use else ""
    print(
        f"{what} {done}{used}: {free.percent:.1f} % ({human(free.blocks * free.block)}) {is_free}"
        f" where {directory} is"
    )


def _why_not(directory: str, outcome: Outcome, free: Free, run: int) -> str:
    short = f"{free.percent:.1f} % of the blocks and {free.percent_files:.1f} % of the files"
    rest = "what is left of it is in use" if outcome.in_use else "nothing is left of it"
    return f"{directory}: {short} free, {run} % wanted; {rest}"
