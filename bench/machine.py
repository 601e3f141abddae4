"""The machine that measures: what it is, what else it does, how its allocator behaves."""

from __future__ import annotations

import datetime
import os
import platform
import resource
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

import adl_kernels

# Above the largest buffer of any case, so that glibc keeps freed memory instead of unmapping it.
STEADY_MALLOC = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=4294967296"


def facts(words: Sequence[str]) -> dict[str, Any]:
    """Where, when and by which command, `python` and these words, a figure was measured."""
    return {
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", *words]),
        "cpu": _cpu_model(),
        "cores": _cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "adl_kernels": adl_kernels.__version__,
        "isa": adl_kernels._C.isa(),
        "malloc": os.environ.get("GLIBC_TUNABLES", "default"),
    }


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_model() -> str:
    """The name the processor gives itself; hypervisors shorten it, so with family and model."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    pairs = (line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
    facts = {}
    for key, value in pairs:
        facts.setdefault(key.strip(), value.strip())
    name = facts.get("model name", platform.machine())
    if "cpu family" in facts:
        name += f" (family {facts['cpu family']} model {facts.get('model', '?')})"
    return name


def line(facts: dict[str, Any]) -> str:
    if facts.get("gpu"):
        where = [facts["gpu"]]
        how = [f"CUDA {facts['cuda']}", f"cuDNN {facts['cudnn']}"]
    else:
        where = [facts["cpu"], f"{facts['cores']} cores", facts["system"]]
        how = [f"malloc {facts['malloc']}"]
    versions = [f"torch {facts['torch']}", f"adl_kernels {facts['adl_kernels']} {facts['isa']}"]
    return ", ".join([*where, *versions, *how, facts["date"]])


def use_steady_malloc() -> None:
    """Start this program again: glibc reads its tunables at the start of a process only."""
    if os.environ.get("GLIBC_TUNABLES") != STEADY_MALLOC:
        os.environ["GLIBC_TUNABLES"] = STEADY_MALLOC
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def malloc() -> str:
    return "steady" if os.environ.get("GLIBC_TUNABLES") == STEADY_MALLOC else "plain"


def in_new_process(function: Callable[..., Any], *arguments: Any, **environment: str) -> Any:
    """The function's result in a process that starts with these variables set."""
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(function, *arguments).result()
    finally:
        os.environ.clear()
        os.environ.update(before)


def without_page_faults(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result in a process whose glibc keeps freed memory."""
    return in_new_process(function, *arguments, GLIBC_TUNABLES=STEADY_MALLOC)


@contextmanager
def threads_kept() -> Iterator[None]:
    """torch's number of threads is in the end what it was before."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def page_faults() -> int:
    """Of this process, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


class Disturbance:
    """Counts the cores that other programs use meanwhile, where the system tells (Linux)."""

    def __init__(self) -> None:
        self.start = self._now()

    def took_one_of(self, threads: int) -> bool:
        """Whether fewer cores were free than threads; at every barrier both sides then wait."""
        return (os.cpu_count() or 1) - self.cores() < threads - 0.1

    def cores(self) -> float:
        wall, busy, own = (b - a for a, b in zip(self.start, self._now(), strict=True))
        return max(0.0, (busy - own) / wall)

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Seconds on the clock, of all cores at work, and of this process on them."""
        own = sum(os.times()[:2])
        stat = Path("/proc/stat")
        if not stat.exists():
            return time.perf_counter(), own, own
        user, nice, system, _, _, irq, softirq, steal = map(int, stat.read_text().split()[1:9])
        ticks = user + nice + system + irq + softirq + steal
        return time.perf_counter(), ticks / os.sysconf("SC_CLK_TCK"), own
