"""Traces in files of the user's."""

from __future__ import annotations

import errno

from pagein.images.traces.document import MAX_TRACE, Trace, TraceError, parse_trace


def load(path: str) -> Trace:
    """The trace in a file. Raises OSError with one line for the user."""
    with open(path, "rb") as file:
        data = file.read(MAX_TRACE + 1)
    try:
        return parse_trace(path, data)
    except TraceError as problem:
        raise OSError(errno.EINVAL, str(problem)) from None
