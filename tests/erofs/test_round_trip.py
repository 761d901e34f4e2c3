"""Trees drawn by hypothesis: written, checked by fsck.erofs, read by the kernel and our reader."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from tests.erofs import images, trees

from pagein.erofs.tree import Node

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]


def round_trip(root: Node, build_time_ns: int = 0) -> None:
    """What was meant, what the reader reads and what the kernel shows are the same."""
    with tempfile.TemporaryDirectory() as directory:
        files = images.make(Path(directory), root, build_time_ns=build_time_ns)
        images.fsck(files)
        meant = trees.as_meant(root)
        with images.opened(files) as image:
            assert trees.as_read(image) == meant
        with images.mounted(files) as mounted:
            assert trees.as_mounted(mounted) == meant


@pytest.mark.root
@settings(max_examples=15, suppress_health_check=SLOW)
@given(trees.trees())
def test_a_tree_reads_back_as_it_was_meant(root: Node) -> None:
    round_trip(root)


@pytest.mark.root
@pytest.mark.long
@settings(max_examples=400, suppress_health_check=SLOW)
@given(trees.trees())
def test_many_trees_read_back_as_they_were_meant(root: Node) -> None:
    round_trip(root, build_time_ns=10**9)


@settings(max_examples=60, suppress_health_check=SLOW)
@given(trees.trees())
def test_the_reader_reads_what_the_writer_wrote(root: Node) -> None:
    with tempfile.TemporaryDirectory() as directory:
        files = images.make(Path(directory), root)
        with images.opened(files) as image:
            assert trees.as_read(image) == trees.as_meant(root)
