"""One container, from its start to its exit status."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pagein.containers import rootfs as inside
from pagein.containers import runc, streams, users
from pagein.containers.spec import RunOptions, Volume, runtime_spec

__all__ = ["RunOptions", "Volume", "run_container"]


def run_container(
    rootfs: Path, image_config: Mapping[str, Any], options: RunOptions, *, place: Path, state: Path
) -> int:
    """Run a container in the foreground, with the streams of this process; its exit status.

    `rootfs` is its mounted root directory, `image_config` what the OCI image config calls `config`.
    `place` is a directory for what the container needs while it runs, `state` one that runc keeps
    for all. Returns 128 + n for a container that signal n ended. Raises RunError, whose `status`
    is 125, 126 or 127, when it could not be started. Nothing of it runs any more at the end.
    """
    root = str(rootfs)
    tool = runc.Runc(runc.find(), str(state))
    user = users.resolve(options.user or str(image_config.get("User") or ""), root)
    stop = stop_signal(str(image_config.get("StopSignal") or ""))
    found = runc.machine(_network_files(root, place, options))
    spec = runtime_spec(root, image_config, options, user, found)
    _check_volumes(options)
    (place / "config.json").write_text(json.dumps(spec))
    runc.become_subreaper()
    with contextlib.ExitStack() as stack:
        signals = streams.Signals()
        stack.callback(signals.close)
        listener = _listener(stack, place) if options.tty else None
        stack.callback(tool.delete, options.name)
        pid = tool.start(options.name, str(place), cgroups=found.cgroups, console=listener)
        console = None
        if listener is not None:
            console = streams.take_console(listener)
            stack.enter_context(streams.raw_terminal(0))
        return streams.wait(pid, signals, stop_signal=stop, console=console)


def stop_signal(text: str) -> int:
    """The number of a `StopSignal`: SIGTERM, TERM or 15; SIGTERM for none. Raises OSError."""
    if not text:
        return signal.SIGTERM
    if text.isdigit() and 0 < int(text) < signal.NSIG:
        return int(text)
    name = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
    if real := re.fullmatch(r"SIGRT(MIN|MAX)([+-]\d+)", name):
        number = signal.Signals[f"SIGRT{real[1]}"] + int(real[2])
        if signal.SIGRTMIN <= number <= signal.SIGRTMAX:
            return number
    elif name in signal.Signals.__members__:
        return signal.Signals[name]
    raise OSError(errno.EINVAL, f"the image's StopSignal {text!r} is no signal")


def _check_volumes(options: RunOptions) -> None:
    for volume in options.volumes:
        if not os.path.lexists(volume.source):
            text = f"--volume {volume.source}:{volume.target}: no such file or directory"
            raise OSError(errno.ENOENT, text)


def _network_files(root: str, place: Path, options: RunOptions) -> list[Volume]:
    """Names and name servers: copies of this machine's, or no more than the loopback's."""
    texts = {"hosts": f"127.0.0.1\tlocalhost {options.name}\n::1\tlocalhost\n"}
    if options.host_network:
        texts = {}
        for name in ("hosts", "resolv.conf"):
            with contextlib.suppress(OSError):
                texts[name] = Path("/etc", name).read_text(errors="surrogateescape")
    for name, text in texts.items():
        (place / name).write_text(text, errors="surrogateescape")
        (place / name).chmod(0o644)
    return [
        Volume(str(place / name), f"/etc/{name}")
        for name in texts
        # Where nothing can be made, runc cannot make the file to mount it on.
        if not options.read_only or inside.exists(root, f"/etc/{name}")
    ]


def _listener(stack: contextlib.ExitStack, place: Path) -> socket.socket:
    """A socket that runc sends the terminal to; its name is relative, since it has to be short."""
    listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    fd = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    listener.bind(f"/proc/{os.getpid()}/fd/{fd}/console.sock")
    listener.listen(1)
    return listener
