"""The daemon that fits on a screen: what the README shows is what runs here."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "hello.py"
PAGEIN = [sys.executable, "-m", "pagein.cli.main"]


def test_the_readme_shows_the_example() -> None:
    readme = (ROOT / "README.md").read_text()
    shown = re.search(r"<!-- the daemon: begin -->\n```python\n(.*?)```", readme, re.DOTALL)
    assert shown is not None
    assert shown[1] == EXAMPLE.read_text()


def wait_for(path: Path) -> None:
    for _ in range(1200):
        if path.exists():
            return
        time.sleep(0.05)
    raise TimeoutError(path)


@pytest.mark.root
def test_the_example_serves_a_mount(public_tmp: Path) -> None:
    tree, images, mnt = (public_tmp / name for name in ("tree", "images", "mnt"))
    for directory in (tree, images, mnt):
        directory.mkdir()
    (tree / "greeting").write_text("hello, world\n" * 1000)
    image = images / "tree.erofs"
    subprocess.run(["mkfs.erofs", image, tree], check=True, capture_output=True)
    where = ["--state-dir", str(public_tmp / "run"), "--cache", str(public_tmp / "cache")]
    device = public_tmp / "run" / "dev" / "cachefiles"
    kernel_half = subprocess.Popen(
        [*PAGEIN, *where, "device"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    daemon = None
    try:
        assert kernel_half.stdout is not None
        assert kernel_half.stdout.readline().strip() == str(device)
        wait_for(device)
        command = [sys.executable, EXAMPLE, device, images, public_tmp / "cache"]
        daemon = subprocess.Popen([str(word) for word in command])
        run = [*PAGEIN, *where, "mount", "key:hello/tree.erofs", str(mnt)]
        mounted = subprocess.run(run, capture_output=True, text=True, timeout=120)
        assert mounted.returncode == 0, mounted.stderr
        try:
            read = subprocess.run(["cat", mnt / "greeting"], capture_output=True, timeout=120)
            assert read.stdout == (tree / "greeting").read_bytes()
        finally:
            unmount = subprocess.run([*PAGEIN, *where, "umount", str(mnt)], timeout=120)
            assert unmount.returncode == 0
        unknown = [*PAGEIN, *where, "mount", "key:nobody/tree.erofs", str(mnt)]
        refused = subprocess.run(unknown, capture_output=True, text=True, timeout=120)
        assert refused.returncode == 1
        assert refused.stderr.startswith("pagein: key:nobody/tree.erofs: "), refused.stderr
    finally:
        if daemon is not None:
            daemon.terminate()
            assert daemon.wait(100) == 0
        kernel_half.terminate()
        assert kernel_half.wait(100) == 0
        if kernel_half.stdout is not None:
            kernel_half.stdout.close()
