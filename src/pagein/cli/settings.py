"""Where things are, and the options that may stand before or after every command."""

from __future__ import annotations

import errno
import os
import pwd
from dataclasses import dataclass, replace
from typing import Annotated

import typer

from pagein.cli.early import DEFAULT_STATE_DIR
from pagein.control import ControlError

DEFAULT_CACHE = "/var/cache/pagein"
DEFAULT_HOSTS_DIR = "/etc/containerd/certs.d"
DEFAULT_FAIL_AFTER = 30.0


@dataclass(frozen=True)
class Settings:
    """The directories that a command works with, absolute."""

    state_dir: str = DEFAULT_STATE_DIR
    cache: str = DEFAULT_CACHE
    hosts_dir: str = DEFAULT_HOSTS_DIR

    def path(self, name: str) -> str:
        """A file of the runtime directory."""
        return os.path.join(self.state_dir, name)

    def given(
        self, state_dir: str | None, cache: str | None, hosts_dir: str | None = None
    ) -> Settings:
        """These settings with what a command line says instead."""
        changed = self
        if state_dir is not None:
            changed = replace(changed, state_dir=os.path.abspath(state_dir))
        if cache is not None:
            changed = replace(changed, cache=os.path.abspath(cache))
        if hosts_dir is not None:
            changed = replace(changed, hosts_dir=os.path.abspath(hosts_dir))
        return changed


def fail_after_of(given: float | None, timeout: float) -> float:
    """`--fail-after` as given; without it no read ends before its own deadline."""
    return max(DEFAULT_FAIL_AFTER, timeout) if given is None else given


def dead_after(given: float | None, timeout: float) -> list[str]:
    """`--fail-after` for a keeper."""
    return ["--fail-after", str(fail_after_of(given, timeout))]


def default_user() -> str:
    """Whom the fetching process runs as: `pagein` if there is such a user, else `nobody`."""
    try:
        return pwd.getpwnam("pagein").pw_name
    except KeyError:
        return "nobody"


def check_user(name: str) -> str:
    """`name`, if there is such a user. Raises ControlError."""
    try:
        return pwd.getpwnam(name).pw_name
    except KeyError:
        raise ControlError(errno.EINVAL, f"--daemon-user: no user is called {name}") from None


StateDir = Annotated[
    str | None,
    typer.Option(
        "--state-dir",
        metavar="DIR",
        help=f"Runtime files, instead of {DEFAULT_STATE_DIR}.",
        show_default=False,
    ),
]
CacheDir = Annotated[
    str | None,
    typer.Option(
        "--cache",
        metavar="DIR",
        help=f"The cache directory, instead of {DEFAULT_CACHE}.",
        show_default=False,
    ),
]
HostsDir = Annotated[
    str | None,
    typer.Option(
        "--hosts-dir",
        metavar="DIR",
        help=f"Mirrors of registries as containerd has them, instead of {DEFAULT_HOSTS_DIR}.",
        show_default=False,
    ),
]
FailAfter = Annotated[
    float | None,
    typer.Option(
        "--fail-after",
        metavar="SECONDS",
        min=0.1,
        help="Of no answer at all from a server, after which reads fail at once until it is back.",
        show_default=f"{DEFAULT_FAIL_AFTER:g}, or --timeout if that is more",
    ),
]


DaemonUser = Annotated[
    str | None,
    typer.Option(
        "--daemon-user",
        metavar="NAME",
        help="User that the fetching process runs as, instead of `pagein`, or `nobody`.",
        show_default=False,
    ),
]


PlatformOption = Annotated[
    str,
    typer.Option(
        "--platform",
        metavar="OS/ARCH",
        help="Of an image for several, instead of this machine's.",
        show_default=False,
    ),
]


TraceOption = Annotated[
    str | None,
    typer.Option(
        "--trace",
        metavar="FILE",
        help="What is read first, from `pagein trace record`; instead of the image's own.",
        show_default=False,
    ),
]
PrefetchOption = Annotated[
    bool,
    typer.Option(
        "--prefetch/--no-prefetch", help="Fetch what a trace or command says will be read."
    ),
]

BackgroundOption = Annotated[
    str | None,
    typer.Option(
        "--background",
        metavar="off|idle|RATE",
        help="Fetch what nobody has read yet, too: while nobody waits, at RATE bytes per second"
        " (500k, 10M) at most.",
        show_default="off",
    ),
]


def check_background(text: str | None) -> str | None:
    """`text`, if it is a policy. Raises OSError."""
    if text is not None:
        from pagein.daemon.policy import parse_background

        parse_background(text)
    return text


def settings_of(
    ctx: typer.Context,
    state_dir: str | None,
    cache: str | None,
    hosts_dir: str | None = None,
) -> Settings:
    """Options after the command over those before it over the defaults."""
    base = ctx.obj if isinstance(ctx.obj, Settings) else Settings()
    return base.given(state_dir, cache, hosts_dir)
