"""The list of bugs fits the source; that each is caught is run by `python -m tests.sabotage`."""

from pathlib import Path

import pytest
from tests.sabotage.bugs import BUGS, CHECKOUT, Bug


def test_there_are_enough_of_both_halves() -> None:
    assert len(BUGS) >= 40
    assert len({bug.name for bug in BUGS}) == len(BUGS)
    assert {bug.file.split("/")[0] for bug in BUGS} >= {"cachefiles", "protocol", "daemon"}


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_each_changes_one_line_that_is_there(bug: Bug, tmp_path: Path) -> None:
    copy = tmp_path / "src/pagein" / bug.file
    copy.parent.mkdir(parents=True)
    before = (CHECKOUT / "src/pagein" / bug.file).read_text()
    copy.write_text(before)
    bug.plant(tmp_path)
    after = copy.read_text()
    compile(after, str(copy), "exec")
    changed = [a != b for a, b in zip(before.splitlines(), after.splitlines(), strict=True)]
    assert sum(changed) == 1
