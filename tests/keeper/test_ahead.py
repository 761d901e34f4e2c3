"""What is read ahead of the user half's imports, and when."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.harness import wait_for

from pagein.keeper import ahead

SIZE = 1 << 16


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package on disk, which stands for all; its byte code."""
    code = tmp_path / "some/__pycache__" / f"it{ahead._CODE}"
    code.parent.mkdir(parents=True)
    (tmp_path / "some/__init__.py").touch()
    (tmp_path / "some/it.py").touch()
    code.write_bytes(bytes(SIZE))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(ahead, "_PACKAGES", ["some", "other"])
    monkeypatch.setattr(ahead, "_FIRST", "some")
    yield code


def children() -> set[str]:
    return set(Path("/proc/thread-self/children").read_text().split())


def out_of_memory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
    if ahead._in_memory(str(path)):
        pytest.skip("this file system keeps files in memory, or does not tell")


def test_byte_code_and_no_sources(package: Path) -> None:
    assert list(ahead._files(["some", "other"])) == [str(package)]


def test_what_is_not_in_memory_is_fetched(package: Path) -> None:
    out_of_memory(package)
    before = children()
    ahead.read_ahead()
    assert children() <= before  # nobody is left to be waited for
    wait_for(lambda: ahead._in_memory(str(package)))


def test_nothing_is_begun_for_what_is_in_memory(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package.read_bytes()
    monkeypatch.delattr(os, "fork")
    ahead.read_ahead()


def test_without_byte_code_nothing_is_begun(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package.unlink()
    monkeypatch.delattr(os, "fork")
    ahead.read_ahead()


def test_its_packages_are_what_the_user_half_imports() -> None:
    """Each of them; and of what is imported from files most."""
    program = "import sys, pagein.daemon.process\n"
    program += "print(*(m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)))"
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, timeout=60, check=True
    )
    directories = [os.path.dirname(path) for path in done.stdout.split()]
    for package in ahead._PACKAGES:
        assert any(each.endswith(f"/{package}") for each in directories), package
    known = [d for d in directories if any(d.endswith(f"/{p}") for p in ahead._PACKAGES)]
    assert len(known) > len(directories) / 2
