"""Fixtures that every test gets."""

import sys
from pathlib import Path

import pytest
import torch

EMULATOR = Path(__file__).parent / "cuda_on_cpu"
collect_ignore = ["cuda_on_cpu"]


def pytest_addoption(parser):
    parser.addoption(
        "--cuda-on-cpu",
        choices=("fast", "asan", "race"),
        help="run the CUDA kernels, emulated, where otherwise the ops on the CPU would run",
    )


def pytest_configure(config):
    variant = config.getoption("--cuda-on-cpu")
    if variant is not None:
        collect_ignore.remove(EMULATOR.name)
        sys.path.insert(0, str(EMULATOR))
        from library import take_over

        take_over(variant)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Uninitialised memory is NaN, also what the ops allocate: a value never written shows."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def threads():
    """Sets the number of threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(threads):
    threads(1)
