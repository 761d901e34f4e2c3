"""`pagein top` and the metrics where Linux is the kernel half, which tells little."""

import pytest
from tests.e2e.harness import Image, serve, wait_for
from tests.e2e.readers import Reader
from tests.e2e.test_metrics import by_priority, scrape, stalled, top
from tests.realkernel.rig import Served

from pagein.testing.webserver import WebServer

pytestmark = pytest.mark.realkernel


def test_who_waits_is_guessed(image: Image, place: Served, server: WebServer) -> None:
    place.mount(*serve(server, image=image.single), options=("--metrics",))
    large = max(image.files, key=lambda name: (image.tree / name).stat().st_size)
    with stalled(server) as gate, Reader(place.target / large) as reader:
        what = wait_for(lambda: (found := top(place))["perhaps"] and found)
        assert what["waiting"][0]["pid"] is None
        assert what["waiting"][0]["source"] == server.url("/image")
        assert {"pid": reader.process.pid, "command": "sha256sum"} in what["perhaps"]
        assert what["reads"] is None
        found = scrape(place)
        assert found["pagein_waiting_reads",] >= 1
        assert not [name for name, *_ in found if name.startswith("pagein_kernel")]
        gate.set()
    wait_for(lambda: by_priority(scrape(place))["demand"])
    place.umount()
    place.end()
