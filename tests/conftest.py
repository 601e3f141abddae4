"""Fixtures that every test gets, and the device that tests are for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import devices
import pytest
import torch

EMULATOR = Path(__file__).parent / "cuda_on_cpu"
collect_ignore = ["cuda_on_cpu", "gpu"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cuda-on-cpu",
        choices=("fast", "asan", "race"),
        help="run the CUDA kernels, emulated, where otherwise the ops on the CPU would run",
    )
    parser.addoption(
        "--device", default="cpu", choices=("cpu", "cuda"), help="where the layers under test run"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "cpu_only: says nothing about other devices; deselected by --device cuda"
    )
    config.addinivalue_line("markers", "large: takes gigabytes or many thousand steps")
    devices.use(config.getoption("--device"))
    if devices.DEVICE != "cpu":
        collect_ignore.remove("gpu")
    variant = config.getoption("--cuda-on-cpu")
    if variant is not None:
        collect_ignore.remove(EMULATOR.name)
        sys.path.insert(0, str(EMULATOR))
        from library import take_over

        take_over(variant)


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
def tf32(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Whether float32 may be rounded to tf32: in layers, in products, and on the emulated GPU."""
    may = getattr(request, "param", True)
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    monkeypatch.setenv("ADL_EMULATED_TF32", str(int(may)))
    devices.allow_tf32(may)
    yield may
    torch.backends.cudnn.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])


@pytest.fixture
def threads():
    """Sets the number of threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(threads):
    threads(1)
