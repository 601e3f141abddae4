"""Where the tests compute: `pytest --device cuda`. Test files read DEVICE as they are imported."""

from __future__ import annotations

import os

import torch

DEVICE = "cpu"
# Beside one thread, which is what tests have: numbers of threads that must give the same bits.
OTHER_THREADS: tuple[int, ...] = (2,)


def use(device: str, emulated: bool) -> None:
    """Called by conftest.py before any test file is imported and before CUDA starts."""
    global DEVICE, OTHER_THREADS
    DEVICE = device
    if device == "cuda" or emulated:
        OTHER_THREADS = ()
    if device == "cuda":
        # Without it cuBLAS may sum in another order from call to call, which torch refuses.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # torch's layers round float32 to 19 bits by default; no test of exactness could then fail.
        allow_tf32(False)


def allow_tf32(may: bool) -> None:
    """In layers and in products."""
    torch.backends.cudnn.allow_tf32 = may
    # Not by cuda.matmul.allow_tf32: after this function was called once, that leaves torch in a
    # state in which asking for the precision raises.
    torch.set_float32_matmul_precision("high" if may else "highest")
