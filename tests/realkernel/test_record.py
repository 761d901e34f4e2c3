"""The recordings of tests/protocol can be made again, and are what the tables allow."""

import pytest
from tests.protocol.recording import dump, load
from tests.protocol.replay import Replay
from tests.realkernel import record

pytestmark = pytest.mark.realkernel


@pytest.mark.parametrize("name", [name for name in record.SESSIONS if name != "without-ondemand"])
def test_a_recording_made_now(name: str) -> None:
    entries = record.record(name).entries
    assert load(dump("now", entries)) == ("now", entries)
    Replay().run(entries)
