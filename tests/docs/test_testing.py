"""docs/testing.md: its program runs, and its table of faults is the one in the code."""

import re
from pathlib import Path

from pagein.testing import POSSIBLE, Step

PAGE = (Path(__file__).parents[2] / "docs/testing.md").read_text()


def test_the_program_runs(tmp_path: Path) -> None:
    program = re.search(r"```python\n(from pagein.protocol.*?)```", PAGE, re.DOTALL)
    assert program is not None
    exec(program[1], {"directory": tmp_path})


def test_the_table_of_faults() -> None:
    for step in Step:
        (row,) = re.findall(rf"^\| `{step.name}` \|[^|]*\|(.*)\|$", PAGE, re.MULTILINE)
        said = set(re.findall(r"`(Drop|Delay|Kill|Short|Fail)`", row))
        assert said == {kind.__name__ for kind in POSSIBLE[step]}, step
