"""DepthwiseConv1d, 2d, 3d and CausalConv1d: torch.nn's convolutions of each channel by itself.

They subclass torch.nn's classes, so parameters, state_dict, repr, hooks and pickles are theirs, and
a module of torch's becomes one of these by its class alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import _conv_args as args
from . import causal, convolution
from ._devices import served


class Depthwise(nn.modules.conv._ConvNd):
    """What the three have in common."""

    # Follows the sum and its bias; may be set at any time.
    activation = "none"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int | None = None,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str = "none",
    ) -> None:
        name = type(self).__name__
        groups = in_channels if groups is None else groups
        if groups != in_channels:
            raise ValueError(
                f"{name}: groups must be in_channels, {in_channels}, or left out, got {groups}"
            )
        if in_channels < 1 or out_channels < 1 or out_channels % in_channels:
            raise ValueError(
                f"{name}: out_channels must be a multiple of in_channels, {in_channels}, got "
                f"{out_channels}"
            )
        args.check_activation(name, activation)
        more = (groups, bias, padding_mode, device, dtype)
        is_torchs = _torch_knows(padding, stride)
        given = padding if is_torchs else 0
        super().__init__(in_channels, out_channels, kernel_size, stride, given, dilation, *more)  # type: ignore[arg-type]
        if not is_torchs:
            self.padding = padding
            kernel, strides, dilations = self.kernel_size, self.stride, self.dilation
            args.pads(name, kernel, kernel, strides, padding, dilations)  # says what is wrong
        if activation != "none":
            self.activation = activation

    def forward(self, input: Tensor) -> Tensor:
        """input [B, C, ..] or [C, ..]; see :func:`adl_kernels.functional.depthwise_conv2d`."""
        weight, pad, n = self.weight, self.padding, len(self.kernel_size)
        is_plain = self.padding_mode == "zeros" and all(isinstance(p, int) for p in pad)
        if is_plain and input.dim() == n + 2 and input.shape[1] == self.in_channels:
            if served(input):  # nothing is left to find out; the op checks the rest
                how = (self.stride, (*pad, *pad), self.dilation, None, self.activation)
                return convolution._depthwise_op(input, weight, self.bias, *how)
        elif isinstance(input, Tensor) and input.dim() in (n + 1, n + 2):
            channels = input.shape[-n - 1]
            if channels != self.in_channels:
                raise RuntimeError(
                    f"{type(self).__name__}: input must have {self.in_channels} channels, got "
                    f"{channels} in {list(input.shape)}"
                )
        window = (self.stride, pad, self.dilation, self.padding_mode)
        name = type(self).__name__
        more = (self.activation, None, None)
        return convolution.depthwise(name, n, input, weight, self.bias, *window, *more)

    def _beyond_torch(self) -> list[str]:
        """What torch.nn's class has not."""
        found = ["activation"] * (self.activation != "none")
        return found + ["such padding"] * (not _torch_knows(self.padding, self.stride))

    def extra_repr(self) -> str:
        more = f", activation={self.activation!r}" if self.activation != "none" else ""
        return super().extra_repr() + more


def _torch_knows(padding: Any, stride: Any) -> bool:
    if isinstance(padding, str):
        strides = stride if isinstance(stride, (tuple, list)) else (stride,)
        return padding == "valid" or (padding == "same" and all(s == 1 for s in strides))
    return isinstance(padding, int) or all(isinstance(p, int) for p in padding)


class DepthwiseConv1d(Depthwise, nn.Conv1d):
    """A :class:`torch.nn.Conv1d` of each channel by itself: ``groups`` as many as channels.

    Args: those of torch.nn.Conv1d, where `groups` may be left out, and

        padding: also a pair (before, after) per dimension, "causal" (all zeros before the input)
            and "same" at any stride: :func:`adl_kernels.functional.depthwise_conv1d`.
        activation: "none", "relu", "relu6", "hardswish", "silu", "sigmoid" or "tanh", by keyword.

    Equivalent to:
        ``torch.nn.Conv1d(..., groups=in_channels)`` with the same state_dict.
    """


class DepthwiseConv2d(Depthwise, nn.Conv2d):
    """As :class:`DepthwiseConv1d`, of images; channels lie in the result as in the input."""


class DepthwiseConv3d(Depthwise, nn.Conv3d):
    """As :class:`DepthwiseConv1d`, of volumes."""


class CausalConv1d(DepthwiseConv1d):
    """A depthwise convolution over time that sees no future, whole or in parts.

    Args:
        channels: C. kernel_size: k. dilation: distance of its taps. bias, activation, device,
            dtype: as in :class:`DepthwiseConv1d`.

    ``forward(x [B, C, length]) -> y``, with ``state`` ``-> (y, new state)``; ``step(x [B, C],
    state) -> (y [B, C], new state)``. A state is [B, C, (k - 1) dilation], the inputs before x;
    :meth:`init_state` is that of a beginning. `lengths`, `seq_idx`:
    :func:`adl_kernels.functional.causal_conv1d`.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        dilation: int = 1,
        bias: bool = True,
        activation: str = "none",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        more: dict[str, Any] = {"bias": bias, "device": device, "dtype": dtype}
        more |= {"padding": "causal", "dilation": dilation, "activation": activation}
        super().__init__(channels, channels, kernel_size, **more)

    def forward(
        self,
        input: Tensor,
        *,
        lengths: Tensor | None = None,
        seq_idx: Tensor | None = None,
        state: Tensor | None = None,
    ) -> Any:
        return causal.causal_conv1d(
            input,
            self.weight,
            self.bias,
            activation=self.activation,
            initial_state=state,
            return_final_state=state is not None,
            seq_idx=seq_idx,
            lengths=lengths,
            dilation=self.dilation[0],
        )

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The next output, and the state after it."""
        how: dict[str, Any] = {"activation": self.activation, "dilation": self.dilation[0]}
        return causal.causal_conv1d_step(x, state, self.weight, self.bias, **how)

    def init_state(self, batch: int) -> Tensor:
        """Zeros [batch, C, (k - 1) dilation]."""
        keep = (self.kernel_size[0] - 1) * self.dilation[0]
        weight = self.weight
        zeros = (batch, self.in_channels, keep)
        return torch.zeros(zeros, dtype=weight.dtype, device=weight.device)


__all__ = ["CausalConv1d", "DepthwiseConv1d", "DepthwiseConv2d", "DepthwiseConv3d"]
