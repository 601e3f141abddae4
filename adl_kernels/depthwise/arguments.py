"""What the arguments of a convolution mean, and sentences for wrong ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .._transforms import is_traced, untraced
from .fakes import out_size
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
        # "same" fills up to where the last window ends, whatever the size.
        if (padding != "same" or size[k] == 0) and padded < reach:
            raise RuntimeError(
                f"{name}: the kernel must not be larger than the padded input, but in dimension "
                f"{k} of {list(kernel)} reaches over {reach} where there are {padded}"
            )
    return found


def each(name: str, what: str, value: Any, n: int) -> list[int]:
    """One positive number per dimension; a tuple of one stands for all, as in torch."""
    given = [value] if _is_int(value) else value
    if not isinstance(given, (tuple, list)) or not all(map(_is_int, given)):
        raise TypeError(f"{name}: {what} must be an int or {_count(n)}, got {value!r}")
    if len(given) not in (1, n):
        raise RuntimeError(f"{name}: {what} must be an int or {_count(n)}, got {value!r}")
    given = list(given) * (n // len(given))
    if min(given) < 1:
        raise RuntimeError(f"{name}: {what} must be positive, got {value!r}")
    return given


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
        return _before_after(_named(name, padding, size, reach, stride))
    else:
        if not isinstance(padding, (tuple, list)):
            raise TypeError(_wanted_padding(name, n, padding))
        if len(padding) not in (1, n):
            raise RuntimeError(_wanted_padding(name, n, padding))
        given = [(p, p) if _is_int(p) else _pair(name, n, p, padding) for p in padding]
        given *= n // len(given)
    if min(min(pair) for pair in given) < 0:
        raise RuntimeError(f"{name}: padding must not be negative, got {padding!r}")
    return _before_after(given)


def _before_after(given: list[tuple[int, int]]) -> list[int]:
    return [low for low, _ in given] + [high for _, high in given]


def _named(
    name: str, padding: str, size: Sequence[int], reach: Sequence[int], stride: Sequence[int]
) -> list[tuple[int, int]]:
    if padding == "valid":
        return [(0, 0)] * len(reach)
    if padding == "same":  # as many outputs as ceil(size / stride); an odd zero lies after x
        total = [
            r if s == 1 else _at_least_0((n - 1) // s * s + r + 1 - n, s > r + 1)
            for n, r, s in zip(size, reach, stride, strict=True)
        ]
        return [(t // 2, t - t // 2) for t in total]
    if padding == "causal" and len(reach) == 1:
        return [(reach[0], 0)]
    raise ValueError(
        f"{name}: padding must be numbers, 'valid' or 'same', or 'causal' in one dimension, got "
        f"{padding!r} in {len(reach)}"
    )


def _at_least_0(n: Any, may_be_less: bool) -> Any:
    """n is an int, a SymInt, of which torch.export must see what it is at least, or traced."""
    if not may_be_less:
        return n
    return n.clamp(min=0) if isinstance(n, Tensor) else torch.sym_max(n, 0)


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


def around(
    name: str, x: Tensor, weight: Tensor, window: Window, padding: Any, mode: str
) -> tuple[Tensor, Window]:
    """x with what padding_mode puts around it; zeros are left to the op.

    Not those that depend on the size of x where that is open, in a trace or in torch.export: as
    arguments of the op they would be constants.
    """
    around, is_open = window.padding, padding == "same" and max(window.stride) > 1
    if is_open and is_traced():
        kernel = kernel_size(weight)
        around = pads(name, x.shape[2:], kernel, window.stride, padding, window.dilation)
    elif not (is_open and torch.compiler.is_compiling()) and (mode == "zeros" or not any(around)):
        return x, window
    padded = F.pad(x, pairs(around), MODES[mode])
    return padded, window._replace(padding=[0] * len(around))


@untraced
def kernel_size(weight: Tensor) -> list[int]:
    return list(weight.shape[2:])


def check_around(name: str, size: Sequence[int], window: Window, mode: str) -> None:
    """What padding_mode puts around an input of this size."""
    check_mode(name, mode)
    most = {"reflect": -1, "circular": 0}
    if mode not in most or torch.compiler.is_compiling():  # there F.pad checks
        return
    for k, length in enumerate(size):
        pad = max(window.padding[k], window.padding[len(size) + k])
        if pad > length + most[mode]:
            raise RuntimeError(
                f"{name}: padding_mode {mode!r} must not put more than {length + most[mode]} "
                f"around a dimension of {length}, got {pad}"
            )


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


@untraced
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


@untraced
def check_seq_idx(
    name: str, x: Tensor, weight: Tensor, seq_idx: Tensor | None, window: Window
) -> None:
    if seq_idx is None:
        return
    size = out_size(x.shape[2:], weight.shape[2:], *window)
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
