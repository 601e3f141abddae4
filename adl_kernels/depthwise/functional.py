"""Depthwise and separable convolutions for those who hold the weights themselves.

Each channel is convolved by itself, as torch's convolutions do with ``groups`` as many as channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._devices import has_kernels
from .._transforms import is_traced, needs_reference_path, untraced
from . import arguments as args
from . import fakes as _conv_fake
from . import reference as conv_reference
from .arguments import Padding, Size, Window
from .reference import ACTIVATIONS, pointwise

_depthwise_op = torch.ops.adl_kernels.depthwise_conv.default
_separable_op = torch.ops.adl_kernels.separable_conv.default


def depthwise_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    *,
    padding_mode: str = "zeros",
    activation: str = "none",
    residual: Tensor | None = None,
    seq_idx: Tensor | None = None,
) -> Tensor:
    """``y = activation(conv(x) + bias) + residual``, each channel by itself, over a length.

    Args:
        x: [B, C, length], or [C, length]; float64, float32, bfloat16 or float16, sums in float32
            at least. The result lies in memory as x does: a (B, length, C) tensor seen as
            (B, C, length) is not copied.
        weight: [C M, 1, k]; channel o of the result sees channel o // M of x.
        bias: [C M].
        stride: int, or one per dimension.
        padding: what lies around x: an int, one per dimension, or a pair (before, after) per
            dimension; "valid", nothing; "same", ceil(length / stride) outputs, where an odd zero
            lies after x (torch's rule for stride 1, TensorFlow's for others); "causal", all
            (k - 1) dilation before x.
        dilation: int, or one per dimension.
        padding_mode: "zeros", "reflect", "replicate" or "circular", as in torch.nn.Conv1d.
        activation: "none", "relu", "relu6", "hardswish", "silu", "sigmoid" or "tanh".
        residual: as the result; is added after the activation.
        seq_idx: [B, length] int32 or int64: ids of documents that lie one after the other in each
            row; each is convolved as if it were alone. With stride 1 and as many outputs as inputs.

    Raises:
        RuntimeError: an argument has a wrong size, dtype or device.
        ValueError, TypeError: an argument has a wrong value, or is of a wrong type.

    Equivalent to:
        ``activation(torch.nn.functional.conv1d(x, weight, bias, stride, padding, dilation,
        groups=C)) + residual`` where torch knows the padding.
    """
    how = (stride, padding, dilation, padding_mode, activation, residual, seq_idx)
    return depthwise("depthwise_conv1d", 1, x, weight, bias, *how)


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    *,
    padding_mode: str = "zeros",
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """As :func:`depthwise_conv1d`, of images: x [B, C, height, width], weight [C M, 1, kh, kw].

    Padding cannot be "causal". The result is in torch.channels_last if x is.
    """
    how = (stride, padding, dilation, padding_mode, activation, residual, None)
    return depthwise("depthwise_conv2d", 2, x, weight, bias, *how)


def depthwise_conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    *,
    padding_mode: str = "zeros",
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """As :func:`depthwise_conv2d`, of volumes or films: x [B, C, depth, height, width]."""
    how = (stride, padding, dilation, padding_mode, activation, residual, None)
    return depthwise("depthwise_conv3d", 3, x, weight, bias, *how)


def separable_conv1d(
    x: Tensor,
    dw_weight: Tensor,
    pw_weight: Tensor,
    dw_bias: Tensor | None = None,
    pw_bias: Tensor | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    *,
    padding_mode: str = "zeros",
    dw_activation: str = "none",
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """As :func:`separable_conv2d`, over a length: dw_weight [C M, 1, k], pw_weight [N, C M, 1]."""
    how = (stride, padding, dilation, padding_mode, dw_activation, activation, residual, None)
    return separable("separable_conv1d", 1, x, dw_weight, pw_weight, dw_bias, pw_bias, *how)


def separable_conv2d(
    x: Tensor,
    dw_weight: Tensor,
    pw_weight: Tensor,
    dw_bias: Tensor | None = None,
    pw_bias: Tensor | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    *,
    padding_mode: str = "zeros",
    dw_activation: str = "none",
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """A depthwise convolution, then a 1x1 convolution of its result (Sifre 2014).

    Without gradients it is one operator, and what lies between the two never becomes a tensor.

    Args:
        x: [B, C, height, width], or [C, height, width].
        dw_weight: [C M, 1, kh, kw]. dw_bias: [C M].
        pw_weight: [N, C M, 1, 1]. pw_bias: [N].
        stride, padding, dilation, padding_mode: of the depthwise convolution, as in
            :func:`depthwise_conv2d`.
        dw_activation: follows the depthwise convolution. activation: follows the other.
        residual: [B, N, ..] as the result; is added after the activation.

    Returns:
        [B, N, height, width], in the layout of x.

    Raises: as :func:`depthwise_conv1d`.

    Equivalent to:
        ``activation(conv2d(dw_activation(conv2d(x, dw_weight, dw_bias, stride, padding, dilation,
        groups=C)), pw_weight, pw_bias)) + residual``
    """
    how = (stride, padding, dilation, padding_mode, dw_activation, activation, residual, None)
    return separable("separable_conv2d", 2, x, dw_weight, pw_weight, dw_bias, pw_bias, *how)


def depthwise(
    name: str,
    n: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size,
    padding: Padding,
    dilation: Size,
    mode: str,
    activation: str,
    residual: Tensor | None,
    seq_idx: Tensor | None,
) -> Tensor:
    args.check_tensors(name, n, x=x, weight=weight, bias=bias, residual=residual, seq_idx=seq_idx)
    args.check_activation(name, activation)
    if x.dim() == n + 1:
        rows = (None if t is None else t[None] for t in (residual, seq_idx))
        how = (stride, padding, dilation, mode, activation)
        return depthwise(name, n, x[None], weight, bias, *how, *rows)[0]
    window = _check_depthwise(name, n, x, weight, bias, stride, padding, dilation, mode, residual)
    x, window = args.around(name, x, weight, window, padding, mode)
    args.check_seq_idx(name, x, weight, seq_idx, window)
    run = _depthwise_op if runs_ops(x, n) else conv_reference.depthwise_conv
    return run(x, weight, bias, *window, seq_idx, activation, residual)


@untraced
def _check_depthwise(
    name: str,
    n: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size,
    padding: Padding,
    dilation: Size,
    mode: str,
    residual: Tensor | None,
) -> Window:
    args.check_weight(name, n, x, weight)
    window = args.window(name, x.shape[2:], weight.shape[2:], stride, padding, dilation)
    args.check_around(name, x.shape[2:], window, mode)
    size = _conv_fake.out_size(x.shape[2:], weight.shape[2:], *window)
    channels = weight.shape[0]
    wanted = {
        "weight": (weight, list(weight.shape), ""),
        "bias": (bias, [channels], "channels of the result"),
        "residual": (residual, [x.shape[0], channels, *size], "as the result"),
    }
    args.check_like(name, x, wanted)
    return window


def runs_ops(x: Tensor, n: int) -> bool:
    """Whether a convolution over n dimensions is an op of this package, or torch's own.

    torch.compile and torch.export get torch's two-dimensional convolutions: Inductor chooses their
    layouts, folds norms into them and fuses what follows, which an op that it does not know stops.
    """
    return has_kernels(x) and not (n == 2 and torch.compiler.is_compiling())


def separable(
    name: str,
    n: int,
    x: Tensor,
    dw_weight: Tensor,
    pw_weight: Tensor,
    dw_bias: Tensor | None,
    pw_bias: Tensor | None,
    stride: Size,
    padding: Padding,
    dilation: Size,
    mode: str,
    dw_activation: str,
    activation: str,
    residual: Tensor | None,
    packed: Tensor | None,
) -> Tensor:
    """packed: what the op pack_pointwise makes of pw_weight, for those who keep it."""
    weights = {"dw_weight": dw_weight, "pw_weight": pw_weight}
    biases = {"dw_bias": dw_bias, "pw_bias": pw_bias}
    args.check_tensors(name, n, x=x, residual=residual, **weights, **biases)
    args.check_activation(name, dw_activation, "dw_activation")
    args.check_activation(name, activation)
    if x.dim() == n + 1:
        row = None if residual is None else residual[None]
        how = (stride, padding, dilation, mode, dw_activation, activation, row, packed)
        return separable(name, n, x[None], dw_weight, pw_weight, dw_bias, pw_bias, *how)[0]
    if pw_weight is None:
        raise TypeError(f"{name}: pw_weight must be a Tensor, got None")
    window = _check_separable(
        name,
        n,
        x,
        dw_weight,
        pw_weight,
        dw_bias,
        pw_bias,
        stride,
        padding,
        dilation,
        mode,
        residual,
    )
    x, window = args.around(name, x, dw_weight, window, padding, mode)
    return run_separable(
        x,
        dw_weight,
        dw_bias,
        pw_weight,
        pw_bias,
        packed,
        window,
        dw_activation,
        activation,
        residual,
    )


@untraced
def _check_separable(
    name: str,
    n: int,
    x: Tensor,
    dw_weight: Tensor,
    pw_weight: Tensor,
    dw_bias: Tensor | None,
    pw_bias: Tensor | None,
    stride: Size,
    padding: Padding,
    dilation: Size,
    mode: str,
    residual: Tensor | None,
) -> Window:
    args.check_weight(name, n, x, dw_weight, "dw_weight")
    window = args.window(name, x.shape[2:], dw_weight.shape[2:], stride, padding, dilation)
    args.check_around(name, x.shape[2:], window, mode)
    size = _conv_fake.out_size(x.shape[2:], dw_weight.shape[2:], *window)
    mid, outs = dw_weight.shape[0], pw_weight.shape[0] if pw_weight.dim() else 0
    wanted = {
        "dw_weight": (dw_weight, list(dw_weight.shape), ""),
        "dw_bias": (dw_bias, [mid], "channels between the two"),
        "pw_weight": (pw_weight, [outs, mid, *[1] * n], "channels after and before, ones"),
        "pw_bias": (pw_bias, [outs], "channels of the result"),
        "residual": (residual, [x.shape[0], outs, *size], "as the result"),
    }
    args.check_like(name, x, wanted)
    return window


def run_separable(
    x: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor | None,
    pw_weight: Tensor,
    pw_bias: Tensor | None,
    packed: Tensor | None,
    window: Window,
    dw_activation: str,
    activation: str,
    residual: Tensor | None,
) -> Tensor:
    """One op where nothing is to be differentiated, else one for each convolution.

    A trace has two: whoever runs it may want gradients.
    """
    tensors = (x, dw_weight, dw_bias, pw_weight, pw_bias, residual)
    wants_graph = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in tensors
    )
    with_ops = runs_ops(x, len(window.stride))
    if not with_ops or wants_graph or is_traced() or needs_reference_path():
        run = _depthwise_op if with_ops else conv_reference.depthwise_conv
        mid = run(x, dw_weight, dw_bias, *window, None, dw_activation, None)
        y = ACTIVATIONS[activation](pointwise(mid, pw_weight, pw_bias))
        return y if residual is None else y + residual
    kind = x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        x, dw_weight, pw_weight = x.to(dtype), dw_weight.to(dtype), pw_weight.to(dtype)
        dw_bias, pw_bias = (None if t is None else t.to(dtype) for t in (dw_bias, pw_bias))
        packed = None
    # Of another dtype, as in autocast, it makes a result of that.
    fits = residual is None or residual.dtype == x.dtype
    y = _separable_op(
        x,
        dw_weight,
        dw_bias,
        pw_weight,
        pw_bias,
        packed,
        *window,
        dw_activation,
        activation,
        residual if fits else None,
    )
    return y if residual is None or fits else y + residual
