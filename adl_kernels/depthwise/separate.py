"""Kernels that are the product of a column and a row: found, and run as two convolutions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from . import arguments as args
from .arguments import Padding, Size
from .layers import DepthwiseConv2d


def separate_kernel(kernel: Tensor, tolerance: float | None = None) -> tuple[Tensor, Tensor]:
    """column [kh] and row [kw] with ``outer(column, row) == kernel``.

    A kernel of whole numbers has factors of whole numbers, such as Sobel's [1 2 1] and [-1 0 1];
    those of any other are of equal norm.

    Args:
        kernel: [kh, kw].
        tolerance: how large the second singular value may be, relative to the first; by default a
            few roundings of the dtype.

    Raises:
        ValueError: the kernel is not of rank 1; says how far it is from it.
    """
    if not isinstance(kernel, Tensor) or kernel.dim() != 2 or not kernel.numel():
        got = list(kernel.shape) if isinstance(kernel, Tensor) else type(kernel).__name__
        raise ValueError(f"separate_kernel: kernel must be a Tensor [height, width], got {got}")
    exact = kernel.detach().cpu().double()
    u, s, v = torch.linalg.svd(exact, full_matrices=False)
    if tolerance is None:
        eps = torch.finfo(kernel.dtype if kernel.is_floating_point() else torch.float64).eps
        tolerance = 8 * eps
    if len(s) > 1 and s[1] > tolerance * s[0]:
        off = float(s[1:].norm() / s.norm())
        raise ValueError(
            f"separate_kernel: kernel must be a product of a column and a row (rank 1), but its "
            f"second singular value is {float(s[1] / s[0]):.3g} of the first; the nearest such "
            f"kernel is off by {off:.3g} of the norm"
        )
    pair = _whole(exact) if torch.equal(exact, exact.round()) else None
    if pair is None:
        root = s[0].sqrt()
        pair = u[:, 0] * root, v[0] * root
        if pair[0].sum() < 0:
            pair = -pair[0], -pair[1]
    column, row = (t.to(kernel.device, kernel.dtype) for t in pair)
    return column, row


def _whole(kernel: Tensor) -> tuple[Tensor, Tensor] | None:
    """Factors of a kernel of whole numbers, the row without a common divisor; None if not exact."""
    rows = [[int(value) for value in row] for row in kernel.tolist()]
    first = next((row for row in rows if any(row)), None)
    if first is None:
        return kernel.sum(1), kernel.sum(0)
    divisor = math.gcd(*first)
    row = kernel.new_tensor([value // divisor for value in first])
    at = int(row.abs().argmax())
    column = kernel[:, at] / row[at]
    return (column, row) if torch.equal(torch.outer(column, row), kernel) else None


class SpatiallySeparableConv2d(nn.Module):
    """A depthwise convolution with a kernel that is a column times a row, as two passes.

    kh + kw multiplications a place instead of kh kw.

    Args:
        channels: C. kernel_size: k or (kh, kw). stride, padding, dilation, padding_mode, bias,
            activation, device, dtype: as in :class:`DepthwiseConv2d`; bias and activation follow
            the second pass.

    Shapes:
        input [B, C, height, width] or [C, height, width]; output with as many channels.

    Submodules: column, with weight [C, 1, kh, 1]; row, with weight [C, 1, 1, kw].

    Raises:
        ValueError, TypeError: an argument has a wrong value, or is of a wrong type.

    Equivalent to:
        ``DepthwiseConv2d`` with ``weight = column.weight * row.weight``.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Padding = 0,
        dilation: Size = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        activation: str = "none",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        kh, kw = args.each(name, "kernel_size", kernel_size, 2)
        sh, sw = args.each(name, "stride", stride, 2)
        dh, dw = args.each(name, "dilation", dilation, 2)
        down, along = (padding, padding) if isinstance(padding, str) else _sides(name, padding)
        same: dict[str, Any] = {"padding_mode": padding_mode, "device": device, "dtype": dtype}
        self.column = DepthwiseConv2d(
            channels, channels, (kh, 1), (sh, 1), down, (dh, 1), bias=False, **same
        )
        same |= {"bias": bias, "activation": activation}
        self.row = DepthwiseConv2d(channels, channels, (1, kw), (1, sw), along, (1, dw), **same)

    @classmethod
    def from_kernel(
        cls, kernel: Tensor, channels: int = 1, tolerance: float | None = None, **options: Any
    ) -> SpatiallySeparableConv2d:
        """The same kernel [kh, kw] for every channel; ValueError if it is not of rank 1.

        options: of the constructor; bias is False and dtype the kernel's unless they say otherwise.
        """
        column, row = separate_kernel(kernel, tolerance)
        if kernel.is_floating_point():
            options = {"dtype": kernel.dtype, "device": kernel.device} | options
        conv = cls(channels, tuple(kernel.shape), **({"bias": False} | options))
        with torch.no_grad():
            conv.column.weight.copy_(column[:, None])
            conv.row.weight.copy_(row)
            if conv.row.bias is not None:
                conv.row.bias.zero_()
        return conv

    def forward(self, input: Tensor) -> Tensor:
        return self.row(self.column(input))


def _sides(name: str, padding: Any) -> tuple[Any, Any]:
    lows_highs = args.pads(name, (1, 1), (1, 1), (1, 1), padding, (1, 1))
    (top, left), (bottom, right) = lows_highs[:2], lows_highs[2:]
    return _plain((top, bottom), (0, 0)), _plain((0, 0), (left, right))


def _plain(down: tuple[int, int], along: tuple[int, int]) -> Any:
    """Numbers that torch knows too, where both sides are alike."""
    if down[0] == down[1] and along[0] == along[1]:
        return down[0], along[0]
    return down, along


__all__ = ["SpatiallySeparableConv2d", "separate_kernel"]
