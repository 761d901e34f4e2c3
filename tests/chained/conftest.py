"""What fsspec keeps for the life of a process, given back."""

import gc
from collections.abc import Iterator

import fsspec.asyn
import pytest
from fsspec.implementations.http import HTTPFileSystem
from tests.library.fulldisk import wait_until_unused


@pytest.fixture(scope="module", autouse=True)
def no_runtime_left() -> Iterator[None]:
    """What was opened through the library is closed before the next module counts fds."""
    yield
    wait_until_unused()


@pytest.fixture(scope="session", autouse=True)
def fsspec_loop() -> Iterator[None]:
    """Ends the thread in which fsspec's asynchronous file systems run."""
    yield
    HTTPFileSystem.clear_instance_cache()
    gc.collect()  # closes their sessions, on that loop
    loop, thread = fsspec.asyn.loop[0], fsspec.asyn.iothread[0]
    if loop is not None:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()
        fsspec.asyn.loop[0] = fsspec.asyn.iothread[0] = None
