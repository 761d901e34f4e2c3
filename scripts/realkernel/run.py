"""The program of scripts/real-kernel, which says what it does."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType

import boot
import build


def main() -> int:
    """Build if need be, boot, run; the command's exit status."""
    options = _arguments()
    signal.signal(signal.SIGINT, _interrupt)  # ignored in what a shell runs in the background
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    try:
        kernel = build.kernel(options.series, options.config, options.kernels)
        if options.command:
            if options.processor is not None:
                _stay_on(options.processor)
            return boot.run(kernel, options.command, timeout=options.timeout)
        print(kernel)
    except (build.BuildError, boot.BootError, OSError) as problem:
        print(f"real-kernel: {problem}", file=sys.stderr)
        return boot.NO_STATUS
    except KeyboardInterrupt:
        return 130
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/real-kernel", add_help=False)
    parser.add_argument("--series", default="6.12")
    parser.add_argument("--config", choices=build.CONFIGURATIONS, default="ondemand")
    parser.add_argument("--timeout", type=float, default=600.0)
    parser.add_argument("--processor", type=int)
    kept = os.environ.get("PAGEIN_KERNELS") or build.cache_directory()
    parser.add_argument("--kernels", type=lambda text: Path(text).absolute(), default=Path(kept))
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if options.command[:1] == ["--"]:
        del options.command[0]
    return options


def _stay_on(number: int) -> None:
    """Run on one of the processors we may use: no system call of the guest crosses to another."""
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {allowed[number % len(allowed)]})


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
