"""Traces as a user meets them: recorded, shown, shipped with an image, fetched ahead of readers."""

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.harness import COMMAND, DEADLINE, Pagein, wait_for
from tests.pulled.conftest import Rig
from tests.pulled.rig import Layers, good, refused, user
from tests.pulled.rootfs import BIG, BUSYBOX

from pagein.images.traces.document import Touch, Trace, parse_trace

pytestmark = pytest.mark.root


def read(path: Path) -> Trace:
    return parse_trace(str(path), path.read_bytes())


def prefetched(pagein: Pagein) -> int:
    blobs: list[dict[str, Any]] = pagein.status()["blobs"]
    return sum(blob["prefetched"] for blob in blobs)


def test_what_was_recorded_is_here_before_it_is_read(
    rig: Rig, pagein: Pagein, tmp_path: Path
) -> None:
    recorded = tmp_path / "app.trace"
    good(user("index", "--push", rig.name))
    reads = "cat /srv/big > /dev/null; exit 3"
    done = user("trace", "record", "-o", recorded, "--run", rig.name, "--", "/bin/sh", "-c", reads)
    assert done.returncode == 3, done
    assert f"files: {recorded}" in done.stderr
    trace = read(recorded)
    assert trace.image == rig.name
    first: dict[str, int] = {}
    for touch in trace.touches:
        first.setdefault(touch.path, touch.ms)
    assert first["/bin/busybox"] < first["/srv/big"]
    assert sum(touch.length for touch in trace.touches if touch.path == "/srv/big") == len(BIG)
    shown = good(user("trace", "show", recorded))
    assert rig.name in shown
    assert "/srv/big" in shown
    said = good(
        user("index", "--push", "--trace", recorded, "--output", tmp_path / "out", rig.name)
    )
    assert f"{len(trace.touches)} of {len(trace.touches)} touches" in said
    assert (tmp_path / "out/trace.jsonl").read_bytes() == recorded.read_bytes()
    good(pagein.run("mount", rig.name, pagein.target))
    wait_for(lambda: f"{rig.name}: prefetch done" in pagein.log())
    assert prefetched(pagein) >= sum(touch.length for touch in trace.touches)
    rig.stop()
    assert (pagein.target / "srv/big").read_bytes() == BIG
    assert (pagein.target / "bin/busybox").read_bytes() == Path(BUSYBOX).read_bytes()
    pagein.umount()


def test_a_trace_is_used_by_name_or_not_at_all(
    image: Layers, rig: Rig, pagein: Pagein, tmp_path: Path
) -> None:
    diff_ids = tuple(diff_id for _, diff_id in image.layers)
    touches = [Touch(number, "/srv/big", 0, len(BIG), 0) for number in range(len(diff_ids))]
    given = tmp_path / "app.trace"
    given.write_bytes(Trace("", diff_ids, tuple(touches)).dump())
    good(user("index", "--push", rig.name))
    good(pagein.run("mount", "--no-prefetch", "--trace", given, rig.name, pagein.target))
    assert prefetched(pagein) == 0
    pagein.umount()
    good(pagein.run("mount", "--trace", given, rig.name, pagein.target))
    wait_for(lambda: prefetched(pagein) >= len(BIG))
    pagein.umount()


def test_a_mount_is_recorded_until_it_is_interrupted(
    rig: Rig, pagein: Pagein, tmp_path: Path
) -> None:
    good(user("index", "--push", rig.name))
    good(pagein.run("mount", rig.name, pagein.target))
    (pagein.target / "bin/busybox").read_bytes()
    path = tmp_path / "mount.trace"
    argv = [*COMMAND, "--state-dir", pagein.state, "--cache", pagein.cache]
    argv += ["trace", "record", "-o", path, pagein.target]
    with subprocess.Popen(list(map(str, argv)), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "Ctrl-C ends it" in process.stderr.readline()
        assert (pagein.target / "srv/big").read_bytes() == BIG
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, said
    trace = read(path)
    assert {touch.path for touch in trace.touches} == {"/srv/big"}, "the other was in memory"
    assert sum(touch.length for touch in trace.touches) == len(BIG)
    pagein.umount()


def test_what_cannot_be_is_refused_in_one_line(rig: Rig, pagein: Pagein, tmp_path: Path) -> None:
    bad = tmp_path / "bad.trace"
    bad.write_text('{"pagein_trace":1,"layers":[]}\n[0,"/a",0,1,0]\n')
    why = f"pagein: {bad}, line 2: there is no layer 0 in the header"
    assert refused(user("trace", "show", bad)) == why
    assert refused(user("index", "--push", "--trace", bad, rig.name)) == why
    assert refused(pagein.run("mount", "--trace", bad, rig.name, pagein.target)) == why
    done = pagein.run("run", "--trace", bad, rig.name)
    assert (done.returncode, done.stderr.strip()) == (125, why)
    assert "No such file" in refused(user("trace", "show", tmp_path / "none"))
    other = tmp_path / "other.trace"
    other.write_text(f'{{"pagein_trace":1,"layers":["sha256:{"0" * 64}"]}}\n[0,"/a",0,1,0]\n')
    assert "nothing in this trace is in this image" in refused(
        user("index", "--push", "--trace", other, rig.name)
    )
    assert "is not mounted" in refused(pagein.run("trace", "record", pagein.target))
    assert "for docker:// and oci: images only" in refused(
        pagein.run("mount", "--trace", bad, "http://localhost/x", pagein.target)
    )
