"""`pagein mount [-t erofs] -o fsid=... none DIR`: what mount(8) does where Linux has CacheFiles."""

from __future__ import annotations

import errno

from pagein.cli.halves import kernel_half
from pagein.cli.settings import Settings
from pagein.control import ControlError, NotListening
from pagein.execdaemon.fsid import parse_options


def mount_by_fsid(settings: Settings, kind: str, options: str, target: str, timeout: float) -> None:
    """Mount on the kernel half that runs, for whichever daemon it has. Raises OSError."""
    if kind != "erofs":
        raise ControlError(errno.ENODEV, f"-t {kind}: only erofs is mounted by fsid")
    wanted = parse_options(options)
    if wanted is None:
        raise ControlError(errno.EINVAL, f"-o {options}: expected fsid=NAME")
    try:
        kernel_half(settings, wanted.question(target), timeout=4 * timeout + 30)
    except NotListening:
        text = f"no kernel half runs in {settings.state_dir}"
        text += "; `pagein exec-daemon` and `pagein device` start one"
        raise ControlError(errno.ENOENT, text) from None
