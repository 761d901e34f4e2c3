"""The library's threads end some time after the last file was closed: not under the next test."""

from collections.abc import Iterator

import pytest
from tests.library.fulldisk import wait_until_unused


@pytest.fixture(scope="module", autouse=True)
def no_runtime_left() -> Iterator[None]:
    """What this module has opened is closed, in threads too, before the next one counts fds."""
    yield
    wait_until_unused()
