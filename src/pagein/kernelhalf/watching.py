"""The control socket's questions about trace events and the debug mask of this process."""

from __future__ import annotations

import errno
import itertools
from typing import Any

from pagein.cachefiles import debug as debugging
from pagein.cachefiles.tracepoints import trace
from pagein.control import Answer
from pagein.controlserver import MAX_LINE

_MOST = MAX_LINE // 512
"""Events in one answer, which is one line."""


async def events(question: dict[str, Any]) -> Answer:
    """`do`: on, off or show; of `show` the answer has the events from the `from`-th on."""
    do = question.get("do")
    if do in ("on", "off"):
        trace.switch(do == "on")
    elif do != "show":
        raise OSError(errno.EINVAL, f"events: {do!r} is none of on, off, show")
    answer: Answer = {"on": trace.on, "count": trace.count, "lost": trace.lost}
    if do == "show":
        # Who asks for more of what goes on meanwhile counts from the very first event.
        first = max(int(question.get("from", 0)), trace.lost)
        skipped = first - trace.lost
        answer["events"] = list(itertools.islice(trace.records(), skipped, skipped + _MOST))
        answer["next"] = first + len(answer["events"])
    return answer


async def debug(question: dict[str, Any]) -> Answer:
    """Set the mask to `mask`, unless that is None; the mask."""
    mask = question.get("mask")
    if mask is not None:
        if not isinstance(mask, int) or not 0 <= mask < 1 << 32:
            raise OSError(errno.EINVAL, f"debug: {mask!r} is no mask of 32 bits")
        debugging.debug.set(mask)
    return {"mask": debugging.debug.mask}


async def not_ours(question: dict[str, Any]) -> Answer:
    """Where Linux is the kernel half. Raises EOPNOTSUPP, with where to look instead."""
    raise OSError(
        errno.EOPNOTSUPP,
        "Linux is the kernel half here: see /sys/kernel/tracing/events/cachefiles and"
        " /sys/module/cachefiles/parameters/debug",
    )
