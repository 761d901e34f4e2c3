"""Containers: an OCI image config and a mounted root directory, run by runc in the foreground.

Stands above both halves: neither of them knows of containers, and nothing here knows where the
root directory comes from.
"""
