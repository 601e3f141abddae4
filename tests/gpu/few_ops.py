"""A few steps of every cell in every tier and dtype, for tools under which all is slow."""

from __future__ import annotations

import os
import sys

import torch

from adl_kernels import _C

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
DEVICE = sys.argv[1] if len(sys.argv) > 1 else "cuda"


def train(cell: dict, dtype: torch.dtype, H: int, packed: bool) -> None:
    T, B, I = 4, 5, 6
    gates, states = cell["gates"], 2 if cell["has_c"] else 1
    sizes = torch.tensor([5, 3, 3, 1]) if packed else None
    shapes: list[tuple[int, ...]] = [(12, I) if packed else (T, B, I), *[(2, B, H)] * states]
    shapes += [(gates * H, I), (gates * H, H), (gates * H,), (gates * H,)] * 2
    tensors = [torch.randn(s).to(DEVICE, dtype).requires_grad_() for s in shapes]
    x, hx, weights = tensors[0], tensors[1 : 1 + states], tensors[1 + states :]
    outputs = getattr(torch.ops.adl_kernels, cell["name"])(x, hx, weights, sizes)
    torch.autograd.grad(sum(y.sum() for y in outputs), tensors)


def main() -> None:
    for tier, dtypes in (("block", DTYPES[:3]), ("streaming", DTYPES)):
        os.environ["ADL_CUDA_TIER"] = tier
        for cell in _C.cells():
            for dtype in dtypes:
                for H in (20, 96):  # where all weights fit into registers, and where not
                    torch.backends.cudnn.allow_tf32 = H == 96
                    train(cell, dtype, H, packed=H == 20)
    torch.backends.cudnn.allow_tf32 = False
    os.environ["ADL_CUDA_TIER"] = "block"
    for cell in _C.cells():
        train(cell, torch.float32, 96, packed=False)
    print("done")


main()
