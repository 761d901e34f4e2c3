"""The diagrams in the docs are those of the tables."""

import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "states.md"


def test_the_diagrams_are_generated_from_the_tables() -> None:
    command = [sys.executable, "-m", "pagein.protocol.diagrams"]
    made = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200).stdout
    assert PAGE.read_text().endswith(made.rstrip() + "\n")
