"""Runs scenarios and prints their transcripts.

python -m tests.scenarios.run ours [NAME...]                on our kernel half (as root)
scripts/real-kernel python -m tests.scenarios.run linux [NAME...]    on the real kernel
... --json                                                  for `record`
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import traceback
from pathlib import Path

from tests.scenarios.kernels import KERNELS, Kernel
from tests.scenarios.registry import Scenario, scenarios
from tests.scenarios.world import world


def transcript(scenario: Scenario, kernel: Kernel, directory: Path) -> str:
    """Run a scenario; its transcript."""
    with world(kernel, directory) as mine:
        scenario.program(mine)
    return mine.log.text


def main() -> int:
    """Run those that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.scenarios.run")
    parser.add_argument("kernel", choices=KERNELS)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    every = scenarios()
    failed = False
    made: dict[str, str] = {}
    with (
        tempfile.TemporaryDirectory(dir="/var/tmp", prefix="pagein-test-scenarios-") as name,
        KERNELS[options.kernel](Path(name)) as kernel,
    ):
        for each in options.names or every:
            try:
                made[each] = transcript(every[each], kernel, Path(name))
            except Exception:
                print(f"--- {each}\n{traceback.format_exc()}", file=sys.stderr)
                failed = True
                continue
            if not options.json:
                print(f"--- {each}\n{made[each]}")
    if options.json:
        json.dump(made, sys.stdout)
    return failed


if __name__ == "__main__":
    sys.exit(main())
