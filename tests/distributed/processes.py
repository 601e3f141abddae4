"""Two processes that know each other, for the time of a test."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

MOST_SECONDS = 300


def run_two(work: Callable[..., None], *arguments: Any) -> None:
    """work(*arguments) in both; what either raises fails the test. A module's function."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        both = torch.multiprocessing.spawn(_start, (store, work, arguments), nprocs=2, join=False)
        end = time.monotonic() + MOST_SECONDS
        while not both.join(timeout=1):
            if time.monotonic() > end:
                for process in both.processes:
                    process.kill()
                raise AssertionError(f"{work.__name__} did not end in {MOST_SECONDS} seconds")


def _start(rank: int, store: Path, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # memory that nobody wrote is NaN
    torch.manual_seed(0)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),  # rather than to wait for what does not come
    )
    try:
        work(*arguments)
    finally:
        distributed.destroy_process_group()
