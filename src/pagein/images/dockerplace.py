"""Where docker keeps credentials: by itself, since most who look find that there are none."""

from __future__ import annotations

import os


def default_path() -> str:
    """Where docker has its `config.json` for this user."""
    directory = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    return os.path.join(directory, "config.json")
