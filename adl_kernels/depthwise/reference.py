"""The depthwise convolutions in plain PyTorch: their definition, and the road elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

# What may follow a sum and its bias, by the names of csrc/depthwise/params.h.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu": torch.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}

_CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def depthwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    seq_idx: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """What ``torch.ops.adl_kernels.depthwise_conv`` computes: the arguments are its own."""
    around = pairs(padding)
    if seq_idx is None:
        n = len(stride)
        conv, low, high = _CONVS[n], padding[:n], padding[n:]
        if low != high or 0 in x.shape[2:]:  # torch's convolutions want places before the padding
            x, low = F.pad(x, around), [0] * n
        y = conv(x, weight, bias, stride, low, dilation, x.shape[1])
    else:
        y = _per_document(x, weight, around, dilation[0], seq_idx)
        y = y if bias is None else y + bias[:, None]
    y = ACTIVATIONS[activation](y)
    return y if residual is None else y + residual


def separable_conv(
    x: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor | None,
    pw_weight: Tensor,
    pw_bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    dw_activation: str = "none",
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """What ``torch.ops.adl_kernels.separable_conv`` computes."""
    mid = depthwise_conv(x, dw_weight, dw_bias, stride, padding, dilation, activation=dw_activation)
    y = ACTIVATIONS[activation](pointwise(mid, pw_weight, pw_bias))
    return y if residual is None else y + residual


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The 1x1 convolution; weight [N, C, 1..]."""
    return _CONVS[x.dim() - 2](x, weight, bias)


def pairs(padding: Sequence[int]) -> list[int]:
    """What lies before and after each dimension, the last one first, as F.pad wants it."""
    n = len(padding) // 2
    return [p for k in reversed(range(n)) for p in (padding[k], padding[n + k])]


def _per_document(
    x: Tensor, weight: Tensor, around: list[int], dilation: int, seq_idx: Tensor
) -> Tensor:
    """Taps of other documents count as zeros."""
    reach = dilation * (weight.shape[2] - 1) + 1

    def taps(t: Tensor) -> Tensor:  # [.., length, taps]
        return t.unfold(-1, reach, 1)[..., ::dilation]

    ids = seq_idx.long()
    inside = F.pad(torch.ones_like(ids), around)
    same = (taps(F.pad(ids, around)) == ids[..., None]) & (taps(inside) == 1)
    seen = torch.where(same[:, None], taps(F.pad(x, around)), 0)
    return (seen.repeat_interleave(weight.shape[0] // x.shape[1], 1) * weight).sum(-1)
