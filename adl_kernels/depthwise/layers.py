"""DepthwiseConv1d, 2d, 3d and CausalConv1d: torch.nn's convolutions of each channel by itself.

They subclass torch.nn's classes, so parameters, state_dict, repr, hooks and pickles are theirs, and
a module of torch's becomes one of these by its class alone.
"""

from __future__ import annotations

from typing import Any, overload

import torch
from torch import Tensor, nn

from .._transforms import as_leaf, is_symbolic, untraced
from . import arguments as args
from . import causal
from . import functional as convolution
from .arguments import Padding, Size


class Depthwise(nn.modules.conv._ConvNd):
    """What the three have in common."""

    # Follows the sum and its bias; may be set at any time.
    activation = "none"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Padding = 0,
        dilation: Size = 1,
        groups: int | None = None,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
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
            self.padding = padding  # type: ignore[assignment]
            kernel, strides, dilations = self.kernel_size, self.stride, self.dilation
            args.pads(name, kernel, kernel, strides, padding, dilations)  # says what is wrong
        if activation != "none":
            self.activation = activation

    def forward(self, input: Tensor) -> Tensor:
        """input [B, C, ..] or [C, ..]; see :func:`adl_kernels.functional.depthwise_conv2d`."""
        if is_symbolic(input, self):
            return as_leaf(self, input)
        return super().forward(input)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What forward of torch.nn's class calls, and what others put their own in the place of."""
        pad, n = self.padding, len(self.kernel_size)
        # As the constructor leaves them; torch takes a number or a tuple of one, set later, too.
        is_plain = type(pad) is type(self.stride) is type(self.dilation) is tuple
        is_plain = is_plain and self.padding_mode == "zeros" and all(type(p) is int for p in pad)
        is_plain = is_plain and len(pad) == len(self.stride) == len(self.dilation) == n
        # Is True: in a trace sizes are tensors, and comparing them is no branch to take.
        if is_plain and input.dim() == n + 2 and (input.shape[1] == self.groups) is True:
            if convolution.runs_ops(input, n):  # the op checks the rest
                how = (self.stride, (*pad, *pad), self.dilation, None, self.activation)
                return convolution._depthwise_op(input, weight, bias, *how)
        elif isinstance(input, Tensor) and input.dim() in (n + 1, n + 2):
            self._check_channels(input)
        window = (self.stride, pad, self.dilation, self.padding_mode)
        name = type(self).__name__
        more = (self.activation, None, None)
        return convolution.depthwise(name, n, input, weight, bias, *window, *more)

    @untraced
    def _check_channels(self, input: Tensor) -> None:
        channels = input.shape[-len(self.kernel_size) - 1]
        if channels != self.groups:
            raise RuntimeError(
                f"{type(self).__name__}: input must have {self.groups} channels, got "
                f"{channels} in {list(input.shape)}"
            )

    def _beyond_torch(self) -> list[str]:
        """What torch.nn's class does not do."""
        found = ["activation"] * (self.activation != "none")
        return found + ["such padding"] * (not _torch_knows(self.padding, self.stride))

    def extra_repr(self) -> str:
        more = f", activation={self.activation!r}" if self.activation != "none" else ""
        return super().extra_repr() + more


def _torch_knows(padding: Padding, stride: Any) -> bool:
    if isinstance(padding, str):
        strides = stride if isinstance(stride, (tuple, list)) else (stride,)
        return padding == "valid" or (padding == "same" and all(s == 1 for s in strides))
    return isinstance(padding, int) or all(isinstance(p, int) for p in padding)


class DepthwiseConv1d(Depthwise, nn.Conv1d):
    """Convolves each channel of a sequence by itself: torch.nn.Conv1d with ``groups=in_channels``.

    Args:
        in_channels: C.
        out_channels: a multiple of C; output channel o sees input channel ``o // (out / C)``.
        kernel_size, stride, dilation: an int, or one per dimension.
        padding: an int, one per dimension, a pair (before, after) per dimension, "valid", "same"
            (at any stride), or "causal" (all before the input). See
            :func:`adl_kernels.functional.depthwise_conv1d`.
        groups: C, or left out.
        bias: whether to add a bias.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        activation: applied to the result: "none", "relu", "relu6", "hardswish", "silu", "sigmoid"
            or "tanh". May be set at any time.
        device, dtype: of the parameters; float64, float32, bfloat16 or float16.

    Shapes:
        input [B, C, length] or [C, length]; output [B, out, out_length] or [out, out_length];
        weight [out, 1, k], bias [out].

    Raises:
        ValueError, TypeError, RuntimeError: an argument has a wrong value, type or shape.

    Equivalent to:
        ``activation(torch.nn.Conv1d(..., groups=in_channels)(input))`` with the same state_dict.
    """


class DepthwiseConv2d(Depthwise, nn.Conv2d):
    """Convolves each channel of an image by itself: torch.nn.Conv2d with ``groups=in_channels``.

    Args, Raises: as :class:`DepthwiseConv1d`, with two dimensions; padding cannot be "causal".

    Shapes:
        input [B, C, height, width] or [C, height, width], contiguous or in torch.channels_last;
        output [B, out, ..] or [out, ..], in the memory format of the input;
        weight [out, 1, kh, kw], bias [out].

    Equivalent to:
        ``activation(torch.nn.Conv2d(..., groups=in_channels)(input))`` with the same state_dict.
    """


class DepthwiseConv3d(Depthwise, nn.Conv3d):
    """Convolves each channel of a volume by itself: torch.nn.Conv3d with ``groups=in_channels``.

    Args, Raises: as :class:`DepthwiseConv1d`, with three dimensions; padding cannot be "causal".

    Shapes:
        input [B, C, depth, height, width] or [C, depth, height, width], contiguous or in
        torch.channels_last_3d; output [B, out, ..] or [out, ..], in the memory format of the input;
        weight [out, 1, kd, kh, kw], bias [out].

    Equivalent to:
        ``activation(torch.nn.Conv3d(..., groups=in_channels)(input))`` with the same state_dict.
    """


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
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        more: dict[str, Any] = {"bias": bias, "device": device, "dtype": dtype}
        more |= {"padding": "causal", "dilation": dilation, "activation": activation}
        super().__init__(channels, channels, kernel_size, **more)

    @overload
    def forward(
        self,
        input: Tensor,
        *,
        lengths: Tensor | None = ...,
        seq_idx: Tensor | None = ...,
        state: None = ...,
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        input: Tensor,
        *,
        lengths: Tensor | None = ...,
        seq_idx: Tensor | None = ...,
        state: Tensor,
    ) -> tuple[Tensor, Tensor]: ...
    def forward(
        self,
        input: Tensor,
        *,
        lengths: Tensor | None = None,
        seq_idx: Tensor | None = None,
        state: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        if is_symbolic(input, self):
            return as_leaf(self, input, lengths=lengths, seq_idx=seq_idx, state=state)
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
        return self.weight.detach().new_zeros(batch, self.in_channels, keep)


__all__ = ["CausalConv1d", "DepthwiseConv1d", "DepthwiseConv2d", "DepthwiseConv3d"]
