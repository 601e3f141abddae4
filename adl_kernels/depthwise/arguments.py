"""What the arguments of a convolution mean, and sentences for wrong ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .reference import ACTIVATIONS, pairs

Size = int | Sequence[int]  # a number, or one per dimension
Padding = int | str | Sequence[int] | Sequence[Sequence[int]]

LAYOUTS = {
    1: "[B, C, length] or [C, length]",
    2: "[B, C, height, width] or [C, height, width]",
    3: "[B, C, depth, height, width] or [C, depth, height, width]",
}
# How padding_mode of torch.nn's convolutions is called by F.pad.
MODES = {
    "zeros": "constant",
    "reflect": "reflect",
    "replicate": "replicate",
    "circular": "circular",
}


class Window(NamedTuple):
    """As the ops want it; padding is all before x, then all after it."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]


def window(
    name: str, size: Sequence[int], kernel: Sequence[int], stride: Any, padding: Any, dilation: Any
) -> Window:
    """For an input and a kernel of these sizes."""
    n = len(kernel)
    strides, dilations = each(name, "stride", stride, n), each(name, "dilation", dilation, n)
    before_after = pads(name, size, kernel, strides, padding, dilations)
    found = Window(strides, before_after, dilations)
    for k in range(n):
        padded = size[k] + before_after[k] + before_after[n + k]
        reach = dilations[k] * (kernel[k] - 1) + 1
        if padded < reach:
            raise RuntimeError(
                f"{name}: the kernel must not be larger than the padded input, but in dimension "
                f"{k} of {list(kernel)} reaches over {reach} where there are {padded}"
            )
    return found


def each(name: str, what: str, value: Any, n: int) -> list[int]:
    """One positive number per dimension."""
    given = [value] * n if _is_int(value) else value
    if not isinstance(given, (tuple, list)) or len(given) != n or not all(map(_is_int, given)):
        raise TypeError(f"{name}: {what} must be an int or {_count(n)}, got {value!r}")
    if min(given) < 1:
        raise RuntimeError(f"{name}: {what} must be positive, got {value!r}")
    return list(given)


def pads(
    name: str,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Any,
    dilation: Sequence[int],
) -> list[int]:
    """What lies before x in every dimension, then what lies after it."""
    n = len(kernel)
    if _is_int(padding):
        given: list[tuple[int, int]] = [(padding, padding)] * n
    elif isinstance(padding, str):
        reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        given = _named(name, padding, size, reach, stride)
    else:
        if not isinstance(padding, (tuple, list)) or len(padding) != n:
            raise TypeError(_wanted_padding(name, n, padding))
        given = [(p, p) if _is_int(p) else _pair(name, n, p, padding) for p in padding]
    if min(min(pair) for pair in given) < 0:
        raise RuntimeError(f"{name}: padding must not be negative, got {padding!r}")
    return [low for low, _ in given] + [high for _, high in given]


def _named(
    name: str, padding: str, size: Sequence[int], reach: Sequence[int], stride: Sequence[int]
) -> list[tuple[int, int]]:
    if padding == "valid":
        return [(0, 0)] * len(reach)
    if padding == "same":  # as many outputs as ceil(size / stride); an odd zero lies after x
        total = [
            r if s == 1 else max((-(-n // s) - 1) * s + r + 1 - n, 0)
            for n, r, s in zip(size, reach, stride, strict=True)
        ]
        return [(t // 2, t - t // 2) for t in total]
    if padding == "causal" and len(reach) == 1:
        return [(reach[0], 0)]
    raise ValueError(
        f"{name}: padding must be numbers, 'valid' or 'same', or 'causal' in one dimension, got "
        f"{padding!r} in {len(reach)}"
    )


def _pair(name: str, n: int, pair: Any, padding: Any) -> tuple[int, int]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(map(_is_int, pair)):
        raise TypeError(_wanted_padding(name, n, padding))
    return pair[0], pair[1]


def _wanted_padding(name: str, n: int, padding: Any) -> str:
    return (
        f"{name}: padding must be an int, {_count(n)}, or as many pairs (before, after), or a "
        f"name, got {padding!r}"
    )


def _count(n: int) -> str:
    return f"a tuple of {n} int{'s' * (n > 1)}, one per dimension"


def _is_int(value: Any) -> bool:
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)


def around(name: str, x: Tensor, window: Window, mode: str) -> tuple[Tensor, Window]:
    """x with what padding_mode puts around it; zeros are left to the op."""
    check_mode(name, mode)
    if mode == "zeros" or not any(window.padding):
        return x, window
    n = len(window.stride)
    most = {"reflect": -1, "circular": 0}
    for k, size in enumerate(x.shape[2:]):
        pad = max(window.padding[k], window.padding[n + k])
        if mode in most and pad > size + most[mode]:
            raise RuntimeError(
                f"{name}: padding_mode {mode!r} must not put more than {size + most[mode]} around "
                f"a dimension of {size}, got {pad}"
            )
    padded = F.pad(x, pairs(window.padding), MODES[mode])
    return padded, window._replace(padding=[0] * (2 * n))


def check_mode(name: str, mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"{name}: padding_mode must be one of {', '.join(MODES)}, got {mode!r}")


def check_activation(name: str, activation: Any, argument: str = "activation") -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"{name}: {argument} must be one of {', '.join(ACTIVATIONS)}, got {activation!r}"
        )


def check_tensors(name: str, n: int, **tensors: Any) -> None:
    """x of one dimension less or as many as a weight; all that are given are tensors."""
    for what, tensor in tensors.items():
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: {what} must be a Tensor, got {type(tensor).__name__}")
    x = tensors["x"]
    if x is None:
        raise TypeError(f"{name}: x must be a Tensor, got None")
    if x.dim() not in (n + 1, n + 2):
        raise RuntimeError(f"{name}: x must be {LAYOUTS[n]}, got {list(x.shape)}")
    if not (x.is_floating_point() or x.is_complex()):
        raise TypeError(f"{name}: x must be of a floating-point dtype, got {x.dtype}")


def check_weight(name: str, n: int, x: Tensor, weight: Any, argument: str = "weight") -> None:
    """[M C, 1, kernel..] for x [B, C, ..]."""
    if weight is None:
        raise TypeError(f"{name}: {argument} must be a Tensor, got None")
    channels = x.shape[1]
    if weight.dim() != n + 2 or weight.shape[1] != 1 or (channels and weight.shape[0] % channels):
        raise RuntimeError(
            f"{name}: {argument} must be [{channels} M, 1, {n} kernel size{'s' * (n > 1)}] for x "
            f"{list(x.shape)}, got {list(weight.shape)}"
        )


def check_like(
    name: str, x: Tensor, sizes: dict[str, tuple[Tensor | None, list[int], str]]
) -> None:
    """Of each tensor: the sizes that it must have, and what they are; then dtype and device."""
    autocast = torch._C._is_any_autocast_enabled()
    for what, (tensor, wanted, meaning) in sizes.items():
        if tensor is None:
            continue
        if list(tensor.shape) != wanted:
            raise RuntimeError(
                f"{name}: {what} must be {wanted} ({meaning}), got {list(tensor.shape)}"
            )
        if tensor.dtype != x.dtype and not autocast:
            raise RuntimeError(
                f"{name}: {what} must have the dtype of x, {x.dtype}, got {tensor.dtype}"
            )
        if tensor.device != x.device:
            raise RuntimeError(
                f"{name}: {what} must be on the device of x, {x.device}, got {tensor.device}"
            )


def check_seq_idx(
    name: str, x: Tensor, seq_idx: Tensor | None, window: Window, size: Sequence[int]
) -> None:
    if seq_idx is None:
        return
    if window.stride != [1] or size[0] != x.shape[2]:
        raise RuntimeError(
            f"{name}: seq_idx needs stride 1 and an output as long as x, got stride "
            f"{window.stride[0]} and {size[0]} outputs for {x.shape[2]} inputs"
        )
    wanted = [x.shape[0], x.shape[2]]
    if list(seq_idx.shape) != wanted or seq_idx.dtype not in (torch.int32, torch.int64):
        raise RuntimeError(
            f"{name}: seq_idx must be int32 or int64 {wanted} (batch, length), got "
            f"{seq_idx.dtype} {list(seq_idx.shape)}"
        )
    if seq_idx.device != x.device:
        raise RuntimeError(
            f"{name}: seq_idx must be on the device of x, {x.device}, got {seq_idx.device}"
        )
