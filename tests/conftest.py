"""Fixtures that every test gets, and the device that tests are for."""

from __future__ import annotations

from pathlib import Path

import devices
import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", default="cpu", choices=("cpu", "cuda"), help="where the layers under test run"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "cpu_only: says nothing about other devices; deselected by --device cuda"
    )
    devices.use(config.getoption("device"))


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """tests/gpu is for GPUs alone."""
    return True if collection_path.name == "gpu" and devices.DEVICE == "cpu" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if devices.DEVICE == "cpu":
        return
    deselected = [item for item in items if item.get_closest_marker("cpu_only")]
    config.hook.pytest_deselected(items=deselected)
    items[:] = [item for item in items if not item.get_closest_marker("cpu_only")]


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
