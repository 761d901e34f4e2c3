"""Records transcripts anew from the real kernel: `python -m tests.scenarios.record [NAME...]`.

Without names all of them, and those of scenarios that are gone are removed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.scenarios.registry import HERE, scenarios

ROOT = Path(__file__).parents[2]


def main() -> int:
    """Boot the real kernel, run, write what it says."""
    names = sys.argv[1:]
    every = scenarios()
    if unknown := set(names) - set(every):
        print(f"no such scenario: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    command = ["scripts/real-kernel", "--timeout", "300", "python", "-m", "tests.scenarios.run"]
    done = subprocess.run([*command, "--json", "linux", *names], cwd=ROOT, stdout=subprocess.PIPE)
    for name, text in json.loads(done.stdout or b"{}").items():
        path = every[name].path
        before = path.read_text() if path.exists() else None
        if text != before:
            print(f"{'new' if before is None else 'changed'}: {name}")
            path.write_text(text)
    if not names:
        for path in (HERE / "transcripts").glob("*.txt"):
            if path.stem not in every:
                print(f"removed: {path.stem}")
                path.unlink()
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
