"""Layers that bring a table of contents (TOC): eStargz and zstd:chunked, read without an index.

The TOC is verified by a digest in the manifest, and has a digest of each chunk of each file. It is
made into an index of the usual form, so that nothing else knows of it.
"""
