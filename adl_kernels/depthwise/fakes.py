"""What the depthwise convolutions return, without computing it, and what vmap makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Dims = tuple[Any, ...]  # over which dimension of each argument vmap runs; None: over none


def out_size(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """Of a convolution; padding is all before x, then all after it."""
    n = len(kernel)
    return [
        (size[k] + padding[k] + padding[n + k] - dilation[k] * (kernel[k] - 1) - 1) // stride[k] + 1
        for k in range(n)
    ]


def is_channels_last(t: Tensor) -> bool:
    """As csrc/depthwise/ops.h has it: whether the channels lie side by side."""
    if t.dim() > 3:
        return torch._prims_common.suggest_memory_format(t) != torch.contiguous_format
    return not t.is_contiguous() and t.movedim(1, -1).is_contiguous()


def empty_laid_out(like: Tensor, sizes: Sequence[int], *weights: Tensor) -> Tensor:
    """Of these sizes, channels last if they are so in `like` or if a weight was put so."""
    put_last = any(w.dim() > 3 and is_channels_last(w) for w in weights)
    if not put_last and not is_channels_last(like):
        return like.new_empty(sizes)
    return like.new_empty([sizes[0], *sizes[2:], sizes[1]]).movedim(-1, 1)


@torch.library.register_fake("adl_kernels::depthwise_conv")
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    *rest: Any,
    **more: Any,
) -> Tensor:
    size = out_size(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    return empty_laid_out(x, [x.shape[0], weight.shape[0], *size], weight)


@torch.library.register_fake("adl_kernels::depthwise_conv_input_grad")
def _(grad: Tensor, weight: Tensor, input_size: list[int], *rest: Any, **more: Any) -> Tensor:
    return empty_laid_out(grad, input_size, weight)


@torch.library.register_fake("adl_kernels::depthwise_conv_weight_grad")
def _(
    grad: Tensor,
    x: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    seq_idx: Tensor | None = None,
    bias: bool = False,
) -> tuple[Tensor, Tensor]:
    channels = grad.shape[1]
    return x.new_empty([channels, 1, *kernel_size]), x.new_empty([channels if bias else 0])


@torch.library.register_fake("adl_kernels::separable_conv")
def _(
    x: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor | None,
    pw_weight: Tensor,
    pw_bias: Tensor | None,
    packed: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    *rest: Any,
    **more: Any,
) -> Tensor:
    size = out_size(x.shape[2:], dw_weight.shape[2:], stride, padding, dilation)
    return empty_laid_out(x, [x.shape[0], pw_weight.shape[0], *size], dw_weight, pw_weight)


@torch.library.register_fake("adl_kernels::pack_pointwise")
def _(weight: Tensor) -> Tensor:
    """On the CPU panels of 64 columns (depthwise/cpu/separable.h), elsewhere the weight itself."""
    if weight.device.type != "cpu":
        return torch.empty_like(weight)
    columns, rows = weight.shape[:2]
    dtype = torch.float32 if weight.dtype == torch.float16 else weight.dtype
    if dtype == torch.bfloat16:
        rows = rows + rows % 2
    return weight.new_empty([(columns + 63) // 64, rows, 64], dtype=dtype)


# vmap: each channel is convolved by itself, so what vmap runs over becomes more channels. That is
# exact whichever arguments are batched; ids of documents alone cannot lie there.


def _into_channels(t: Tensor, at: int | None, batch: int, channels: int) -> Tensor:
    """V becomes part of the dimension `channels`, before what is there."""
    moved = t.unsqueeze(channels) if at is None else t.movedim(at, channels)
    sizes = list(moved.shape)
    sizes[channels] = batch
    return moved.expand(sizes).flatten(channels, channels + 1)


def _one_by_one(op: Any, info: Any, in_dims: Sequence[Any], args: Sequence[Any]) -> tuple[Any, Any]:
    """Call by call, and the results side by side."""
    results = []
    for k in range(info.batch_size):
        pairs = zip(args, in_dims, strict=True)
        results.append(op(*(a.select(at, k) if isinstance(at, int) else a for a, at in pairs)))
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    return tuple(torch.stack(r) for r in zip(*results, strict=True)), (0,) * len(results[0])


def _complete(op: Any, in_dims: Dims, args: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """With the defaults that the dispatcher leaves out."""
    missing = op.default._schema.arguments[len(args) :]
    return [*args, *(a.default_value for a in missing)], [*in_dims, *[None] * len(missing)]


@torch.library.register_vmap("adl_kernels::depthwise_conv")
def _(info: Any, in_dims: Dims, *given: Any) -> tuple[Tensor, int]:
    op, batch = torch.ops.adl_kernels.depthwise_conv, info.batch_size
    args, at = _complete(op, in_dims, given)
    x, weight, bias, *window, seq_idx, activation, residual = args
    if at[6] is not None:
        return _one_by_one(op, info, at, args)
    y = op(
        _into_channels(x, at[0], batch, 1),
        _into_channels(weight, at[1], batch, 0),
        None if bias is None else _into_channels(bias, at[2], batch, 0),
        *window,
        seq_idx,
        activation,
        None if residual is None else _into_channels(residual, at[8], batch, 1),
    )
    return y.unflatten(1, (batch, y.size(1) // batch)), 1


@torch.library.register_vmap("adl_kernels::depthwise_conv_input_grad")
def _(info: Any, in_dims: Dims, *given: Any) -> tuple[Tensor, int]:
    op, batch = torch.ops.adl_kernels.depthwise_conv_input_grad, info.batch_size
    args, at = _complete(op, in_dims, given)
    grad, weight, (rows, channels, *size), *window, seq_idx = args
    if at[6] is not None:
        return _one_by_one(op, info, at, args)
    dx = op(
        _into_channels(grad, at[0], batch, 1),
        _into_channels(weight, at[1], batch, 0),
        [rows, batch * channels, *size],
        *window,
        seq_idx,
    )
    return dx.unflatten(1, (batch, channels)), 1


@torch.library.register_vmap("adl_kernels::depthwise_conv_weight_grad")
def _(info: Any, in_dims: Dims, *given: Any) -> tuple[Any, Any]:
    op, batch = torch.ops.adl_kernels.depthwise_conv_weight_grad, info.batch_size
    args, at = _complete(op, in_dims, given)
    grad, x, *window, seq_idx, bias = args
    if at[6] is not None:
        return _one_by_one(op, info, at, args)
    dweight, dbias = op(
        _into_channels(grad, at[0], batch, 1),
        _into_channels(x, at[1], batch, 1),
        *window,
        seq_idx,
        bias,
    )
    sizes = (batch, dweight.size(0) // batch)
    return (dweight.unflatten(0, sizes), dbias.view(sizes if bias else (batch, 0))), (0, 0)


@torch.library.register_vmap("adl_kernels::separable_conv")
def _(info: Any, in_dims: Dims, *given: Any) -> tuple[Tensor, int]:
    op = torch.ops.adl_kernels.separable_conv
    args, at = _complete(op, in_dims, given)
    return _one_by_one(op, info, at, args)
