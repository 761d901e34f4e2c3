"""Each scenario has the same transcript on the real kernel and on ours, but for what is meant to
differ."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.scenarios.differences import expected
from tests.scenarios.kernels import Kernel, Linux, Make, Running, linux, ours
from tests.scenarios.registry import Scenario, scenarios
from tests.scenarios.run import transcript

EVERY = [pytest.param(each, id=name) for name, each in scenarios().items()]


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """On a disk: in the guest /tmp is memory, which is no place for its cache."""
    prefix = f"pagein-test-{os.environ['PAGEIN_TEST_RUN']}-scenarios-"
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix=prefix) as name:
        yield Path(name)


@contextlib.contextmanager
def running(make: Make, directory: Path) -> Iterator[Running]:
    kernels = Running(make, directory)
    try:
        yield kernels
    finally:
        kernels.close()


@pytest.fixture(scope="module")
def our_kernels(directory: Path) -> Iterator[Running]:
    with running(ours, directory) as kernels:
        yield kernels


@pytest.fixture(scope="module")
def real_kernels(directory: Path) -> Iterator[Running]:
    with running(linux, directory) as kernels:
        yield kernels


@pytest.fixture
def our_kernel(our_kernels: Running) -> Kernel:
    """Our kernel half: one process for all scenarios, which each open its device anew."""
    return our_kernels.kernel()


@pytest.fixture
def real_kernel(real_kernels: Running) -> Kernel:
    """The kernel that this runs on."""
    return real_kernels.kernel()


def answers_as_expected(scenario: Scenario, kernel: Kernel, directory: Path) -> None:
    recorded = scenario.path.read_text()
    said = transcript(scenario, kernel, directory)
    wanted = recorded if isinstance(kernel, Linux) else expected(scenario.name, recorded)
    assert said.splitlines() == wanted.splitlines()


@pytest.mark.root
@pytest.mark.parametrize("scenario", EVERY)
def test_our_kernel_half_answers_as_the_real_one(
    scenario: Scenario, our_kernel: Kernel, directory: Path
) -> None:
    answers_as_expected(scenario, our_kernel, directory)


@pytest.mark.realkernel
@pytest.mark.parametrize("scenario", EVERY)
def test_our_kernel_half_does_so_beside_the_real_one(
    scenario: Scenario, our_kernel: Kernel, directory: Path
) -> None:
    answers_as_expected(scenario, our_kernel, directory)


@pytest.mark.realkernel
@pytest.mark.parametrize("scenario", EVERY)
def test_the_real_kernel_answers_as_recorded(
    scenario: Scenario, real_kernel: Kernel, directory: Path
) -> None:
    answers_as_expected(scenario, real_kernel, directory)
