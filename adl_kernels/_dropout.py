"""Dropout whose mask depends on a seed alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._devices import DEVICES
from ._transforms import is_traced, needs_reference_path


def seeded_dropout(input: Tensor, p: float, seed: Tensor, stream: int = 0) -> Tensor:
    """Dropout whose mask depends on a seed and the place of an element alone.

    The same on every device, from call to call and for any number of threads: word i of
    Philox4x32-10 (Salmon et al. 2011) decides on element i. Equivalent to
    ``torch.nn.functional.dropout(input, p)`` with another generator.

    Args:
        input: of any shape, float64, float32, bfloat16 or float16.
        p: probability of zeroing an element; the others are multiplied by 1 / (1 - p).
        seed: one int64 on the CPU, or on the device of input: there a CUDA graph reads it anew.
        stream: tells masks of one seed apart.

    Raises:
        RuntimeError: p is not between 0 and 1, or an argument has a wrong dtype, size or device.
    """
    if needs_reference_path() or input.device.type not in DEVICES:
        return defined_dropout(input, p, seed, stream)
    return torch.ops.adl_kernels.dropout(input, p, seed, stream)


def seeded_mask(like: Tensor, sizes: Sequence[int], p: float, seed: Tensor, stream: int) -> Tensor:
    """uint8 of these sizes on the device of `like`, 1 where seeded_dropout with p drops."""
    if needs_reference_path() or like.device.type not in DEVICES:
        return defined_mask(like, sizes, p, seed, stream)
    if is_traced():  # a trace keeps no sizes that an op is called with
        ones = torch.ones(sizes, dtype=like.dtype, device=like.device)
        return (torch.ops.adl_kernels.dropout(ones, p, seed, stream) == 0).to(torch.uint8)
    return torch.ops.adl_kernels.mask(like, sizes, p, seed, stream)


def defined_dropout(x: Tensor, p: float, seed: Tensor, stream: int = 0) -> Tensor:
    """What ``torch.ops.adl_kernels.dropout`` computes: kept where word i >= p 2^32."""
    scale = 1 / (1 - p) if p < 1 else 0.0
    return torch.where(defined_mask(x, x.shape, p, seed, stream) == 0, x * scale, 0)


def defined_mask(like: Tensor, sizes: Sequence[int], p: float, seed: Tensor, stream: int) -> Tensor:
    """What ``torch.ops.adl_kernels.mask`` computes: uint8, 1 where word i < p 2^32."""
    count = math.prod(sizes)
    blocks = torch.arange((count + 3) // 4, dtype=torch.int64, device=like.device)
    words = philox(seed.to(like.device).reshape(()), stream, blocks).flatten()[:count]
    return (words < int(p * 2**32)).to(torch.uint8).view(*sizes)


def philox(seed: Tensor, stream: int, blocks: Tensor) -> Tensor:
    """Philox4x32-10 (Salmon et al. 2011): four words for each block, [..., 4] below 2^32."""
    low = 2**32 - 1
    keys = [seed & low, seed >> 32 & low]
    streams = (torch.full_like(blocks, n & low) for n in (stream, stream >> 32))
    c = [blocks & low, blocks >> 32 & low, *streams]
    for _ in range(10):
        # Products of 64 bits may wrap to negative numbers; their bits are right.
        a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [b >> 32 & low ^ c[1] ^ keys[0], b & low, a >> 32 & low ^ c[3] ^ keys[1], a & low]
        keys = [keys[0] + 0x9E3779B9 & low, keys[1] + 0xBB67AE85 & low]
    return torch.stack(c, -1)


@torch.library.register_fake("adl_kernels::dropout")
def _(x: Tensor, p: float, seed: Tensor, stream: int = 0) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake("adl_kernels::mask")
def _(like: Tensor, sizes: list[int], p: float, seed: Tensor, stream: int = 0) -> Tensor:
    return like.new_empty(sizes, dtype=torch.uint8)


def _keep_seed(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.p, seed, ctx.stream = inputs
    ctx.save_for_backward(seed)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    (seed,) = ctx.saved_tensors
    return torch.ops.adl_kernels.dropout(grad, ctx.p, seed, ctx.stream), None, None, None


torch.library.register_autograd("adl_kernels::dropout", _backward, setup_context=_keep_seed)
