"""One convolution's arguments, made to measure, and the ways to run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from devices import DEVICE
from layers import SHORT
from torch import Tensor

from adl_kernels.depthwise import reference as conv_reference
from adl_kernels.depthwise.fakes import out_size

F64 = torch.float64
Values = list[Tensor]


@dataclass(frozen=True)
class Case:
    """A depthwise convolution; sizes as in csrc/depthwise/params.h.

    pad: (before, after) per dimension.

    layout: "first" or "last", where the channels lie, or "strided", a slice of something larger.
    """

    size: tuple[int, ...]
    k: tuple[int, ...]
    C: int = 3
    B: int = 2
    dtype: torch.dtype = torch.float32
    stride: int | tuple[int, ...] = 1
    pad: tuple[tuple[int, int], ...] = ()
    dilation: int | tuple[int, ...] = 1
    M: int = 1
    layout: str = "first"
    bias: bool = True
    residual: bool = False
    activation: str = "none"
    documents: bool = False

    @property
    def n(self) -> int:
        return len(self.size)

    @property
    def window(self) -> tuple[list[int], list[int], list[int]]:
        pad = self.pad or tuple((k // 2, k // 2) for k in self.k)
        stride, dilation = (
            [v] * self.n if isinstance(v, int) else list(v) for v in (self.stride, self.dilation)
        )
        return stride, [low for low, _ in pad] + [high for _, high in pad], dilation

    def __str__(self) -> str:
        sizes = ("x".join(map(str, v)) for v in (self.size, self.k))
        parts = [f"B{self.B}", f"C{self.C}", *sizes, SHORT[self.dtype], self.layout]
        stride, padding, dilation = self.window
        parts += [f"s{stride}"] * (set(stride) != {1}) + [f"d{dilation}"] * (set(dilation) != {1})
        parts += [f"p{padding}"] * bool(self.pad) + [f"M{self.M}"] * (self.M > 1)
        parts += ["nobias"] * (not self.bias) + ["residual"] * self.residual
        parts += [self.activation] * (self.activation != "none") + ["ids"] * self.documents
        return "-".join(parts).replace(" ", "")

    def with_dtype(self, dtype: torch.dtype) -> Case:
        return replace(self, dtype=dtype)


@dataclass
class Conv:
    """The tensors of a case; `tensors` are those with a gradient."""

    case: Case
    tensors: list[Tensor]  # x, weight, then bias and residual where there are any
    names: list[str]
    seq_idx: Tensor | None
    dy: Tensor

    def run(self, op: Callable[..., Tensor]) -> Tensor:
        given: dict[str, Any] = dict(zip(self.names, self.tensors, strict=True))
        x, weight, bias = given["x"], given["weight"], given.get("bias")
        how = (self.seq_idx, self.case.activation, given.get("residual"))
        return op(x, weight, bias, *self.case.window, *how)

    def ours(self) -> Tensor:
        return self.run(torch.ops.adl_kernels.depthwise_conv)

    def torchs(self) -> Tensor:
        """Without documents this is torch.nn.functional.conv*d, padding and what follows it."""
        return self.run(conv_reference.depthwise_conv)

    def to(self, dtype: torch.dtype) -> Conv:
        tensors = [t.to(dtype) for t in self.tensors]
        return replace(self, tensors=tensors, dy=self.dy.to(dtype))

    def leaves(self) -> Conv:
        def leaf(t: Tensor) -> Tensor:  # with the strides it has
            return t.detach().as_strided(t.shape, t.stride(), t.storage_offset()).requires_grad_()

        return replace(self, tensors=[leaf(t) for t in self.tensors])


def gradients(conv: Conv, way: Callable[[Conv], Tensor]) -> tuple[Tensor, ...]:
    """The result, and its gradients."""
    conv = conv.leaves()
    y = way(conv)
    return y.detach(), *torch.autograd.grad(y, conv.tensors, conv.dy)


def laid_out(t: Tensor, layout: str) -> Tensor:
    """The same numbers, elsewhere in memory."""
    if layout == "first":
        return t.contiguous()
    if layout == "last":
        return t.movedim(1, -1).contiguous().movedim(-1, 1)
    wide = t.new_full((*t.shape[:-1], 2 * t.shape[-1] + 1), float("nan"))
    wide[..., 1::2] = t
    return wide[..., 1::2]


def make(case: Case) -> Conv:
    """Random arguments, none with trivial strides but where the layout says so."""

    def tensor(*shape: int, layout: str = "strided", scale: float = 1.0) -> Tensor:
        t = torch.randn(shape, dtype=F64) * scale
        return laid_out(t.to(DEVICE, case.dtype), layout)

    outs, taps = case.C * case.M, torch.Size(case.k).numel()
    tensors = [
        tensor(case.B, case.C, *case.size, layout=case.layout),
        tensor(outs, 1, *case.k, scale=taps**-0.5),
    ]
    names = ["x", "weight"]
    seq_idx = None
    if case.documents:
        starts = torch.rand(case.B, *case.size, device=DEVICE) < 0.2
        seq_idx = starts.cumsum(1) * 3 - 5
    if case.bias:
        tensors.append(tensor(outs))
        names.append("bias")
    size = (case.B, outs, *out_size(case.size, case.k, *case.window))
    if case.residual:
        tensors.append(tensor(*size))
        names.append("residual")
    dy = tensor(*size, layout="strided" if case.layout == "first" else case.layout)
    return Conv(case, tensors, names, seq_idx, dy)
