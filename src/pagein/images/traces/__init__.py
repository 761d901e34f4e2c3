"""Traces: what an image's start reads, so that the next one need not wait for it (docs/traces.md).

They name files, not offsets of a blob: an index made anew, or a layer packed anew, changes nothing.
"""
