"""Fixtures that every test gets, and the device that tests are for."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import devices
import pytest
import torch

EMULATOR = Path(__file__).parent / "cuda_on_cpu"
collect_ignore = ["cuda_on_cpu", "gpu"]
# Of a test in the fast lane: of processor time, which does not grow much where others compute too;
# that of its threads and programs counts.
MOST_SECONDS = 10


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cuda-on-cpu",
        choices=("fast", "asan", "race"),
        help="run the CUDA kernels, emulated, where otherwise the ops on the CPU would run",
    )
    parser.addoption("--all", action="store_true", help="the slow tests too: `make test-all`")
    parser.addoption(
        "--device", default="cpu", choices=("cpu", "cuda"), help="where the layers under test run"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "cpu_only: says nothing about other devices; deselected by --device cuda"
    )
    config.addinivalue_line("markers", "slow: left out without --all, see CONTRIBUTING.md")
    config.addinivalue_line("markers", "large: takes gigabytes or many thousand steps")
    # Where cores are few, torch's threads wait for each other much longer than they compute.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the programs that tests start
    devices.use(config.getoption("--device"), config.getoption("--cuda-on-cpu") is not None)
    if devices.DEVICE != "cpu":
        collect_ignore.remove("gpu")
    variant = config.getoption("--cuda-on-cpu")
    if variant is not None:
        collect_ignore.remove(EMULATOR.name)
        sys.path.insert(0, str(EMULATOR))
        from library import take_over

        take_over(variant)


def fast_lane(config: pytest.Config) -> bool:
    return devices.DEVICE == "cpu" and not config.getoption("--all")


@functools.cache
def slowness() -> float:
    """How much slower this machine is now than the one that the limit is for; at least 1."""
    start = time.process_time()
    sum(k * k for k in range(1_000_000))
    return max(1.0, (time.process_time() - start) / 0.03)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = ["cpu_only"] * (devices.DEVICE != "cpu") + ["slow"] * fast_lane(config)
    deselected = [i for i in items if any(i.get_closest_marker(mark) for mark in left_out)]
    config.hook.pytest_deselected(items=deselected)
    items[:] = [i for i in items if i not in set(deselected)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    start = sum(os.times()[:4])
    try:
        return (yield)
    finally:
        item.user_properties.append(("seconds", sum(os.times()[:4]) - start))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    if report.when == "call" and report.passed and fast_lane(item.config):
        seconds, most = dict(item.user_properties)["seconds"], MOST_SECONDS * slowness()
        if seconds > most:
            report.outcome = "failed"
            report.longrepr = f"took {seconds:.0f} s; in the fast lane at most {most:.0f}"
    return report


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """Seconds of processor time by file."""
    seconds: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "call":
                file = report.nodeid.split("::")[0]
                seconds[file] += dict(report.user_properties)["seconds"]
    if not seconds:
        return
    terminalreporter.section("seconds of processor time")
    for file, total in seconds.most_common():
        terminalreporter.write_line(f"{total:8.1f}  {file}")
    terminalreporter.write_line(f"{seconds.total():8.1f}  in all")


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
    """Sets the number of threads for one test, which is 1 for all others."""
    yield torch.set_num_threads
    torch.set_num_threads(1)
