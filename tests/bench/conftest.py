"""Where bench is, which is not installed; and torch has as many threads after a test as before."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Appended, so that it cannot shadow an installed adl_kernels.
sys.path.append(str(Path(__file__).parents[2]))


@pytest.fixture(autouse=True)
def keep_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
