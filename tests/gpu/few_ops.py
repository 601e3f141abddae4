"""A few steps of every cell in every tier and dtype, for tools under which all is slow."""

from __future__ import annotations

import os
import sys

import torch

from adl_kernels import _C

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def train(device: str, cell: dict, dtype: torch.dtype, H: int, packed: bool) -> None:
    T, B, I = 4, 5, 6
    gates, states = cell["gates"], 2 if cell["has_c"] else 1
    sizes = torch.tensor([5, 3, 3, 1]) if packed else None
    shapes: list[tuple[int, ...]] = [(12, I) if packed else (T, B, I), *[(2, B, H)] * states]
    shapes += [(gates * H, I), (gates * H, H), (gates * H,), (gates * H,)] * 2
    tensors = [torch.randn(s).to(device, dtype).requires_grad_() for s in shapes]
    x, hx, weights = tensors[0], tensors[1 : 1 + states], tensors[1 + states :]
    outputs = getattr(torch.ops.adl_kernels, cell["name"])(x, hx, weights, sizes)
    torch.autograd.grad(sum(y.sum() for y in outputs), tensors)


# Hidden sizes by tier: where all weights fit into registers, and where not.
TIERS = {"block": (20, 96), "cluster": (136, 320), "grid": (136, 320), "streaming": (20, 96)}


def main(device: str) -> None:
    for tier, sizes in TIERS.items():
        os.environ["ADL_CUDA_TIER"] = tier
        for cell in _C.cells():
            for dtype in DTYPES:
                for tf32 in (False, True) if dtype == torch.float32 else (False,):
                    torch.backends.cudnn.allow_tf32 = tf32
                    for H in sizes:
                        try:
                            train(device, cell, dtype, H, packed=sizes[0] == H)
                        except RuntimeError as error:
                            if "does not serve" not in str(error):
                                raise
    print("done")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cuda")
