"""Where the ops have kernels."""

from __future__ import annotations

import torch

from ._build_info import CUDA_ARCHS

# What the ops run on; meta tensors have no numbers. Elsewhere torch's own layer runs.
DEVICES = ("cpu", "meta", "cuda") if CUDA_ARCHS else ("cpu", "meta")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def has_kernels(x: torch.Tensor) -> bool:
    return x.device.type in DEVICES and x.dtype in DTYPES
