"""SeparableConv1d and 2d: a depthwise and a 1x1 convolution, with norms and activations."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._transforms import untraced
from . import arguments as args
from . import keys as _conv_keys
from .arguments import Padding, Size
from .fakes import out_size
from .fold import Chain, Folder, is_one_op
from .layers import DepthwiseConv1d, DepthwiseConv2d
from .reference import ACTIVATIONS


class Cost(NamedTuple):
    """Of one input, beside the full convolution with the same inputs and outputs."""

    multiplications: int
    parameters: int
    full_multiplications: int
    full_parameters: int

    @property
    def ratio(self) -> float:
        """Of the multiplications: 1/N + 1/k^2 for N outputs and a multiplier of 1."""
        return self.multiplications / max(self.full_multiplications, 1)

    @property
    def parameter_ratio(self) -> float:
        return self.parameters / self.full_parameters


class Separable(nn.Module):
    """What the two have in common."""

    _n: int
    _depthwise: type[nn.Module]
    _pointwise: type[nn.Module]
    _batch_norm: type[nn.Module]

    dw_norm: Any  # a module or None
    norm: Any

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Padding = 0,
        dilation: Size = 1,
        *,
        depth_multiplier: int = 1,
        bias: bool = True,
        dw_norm: bool | nn.Module | None = None,
        norm: bool | nn.Module | None = None,
        dw_activation: str = "none",
        activation: str = "none",
        residual: bool = False,
        padding_mode: str = "zeros",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        args.check_activation(name, dw_activation, "dw_activation")
        args.check_activation(name, activation)
        if isinstance(depth_multiplier, bool) or depth_multiplier < 1:
            raise ValueError(
                f"{name}: depth_multiplier must be a positive int, got {depth_multiplier!r}"
            )
        strides = args.each(name, "stride", stride, self._n)
        if residual and (in_channels != out_channels or max(strides) > 1):
            raise ValueError(
                f"{name}: residual needs as many channels out as in and stride 1, got "
                f"{in_channels} to {out_channels} channels and stride {stride}"
            )
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        middle = in_channels * depth_multiplier
        window = (kernel_size, stride, padding, dilation)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.dw_activation, self.activation, self.residual = dw_activation, activation, residual
        self.depthwise: Any = self._depthwise(
            in_channels, middle, *window, bias=bias, padding_mode=padding_mode, **at
        )
        self.register_module("dw_norm", self._norm(dw_norm, middle, at))
        self.pointwise: Any = self._pointwise(middle, out_channels, 1, bias=bias, **at)
        self.register_module("norm", self._norm(norm, out_channels, at))
        self._folder = Folder()

    def _norm(self, given: Any, channels: int, at: dict[str, Any]) -> nn.Module | None:
        if isinstance(given, nn.Module):
            return given
        if given not in (None, False, True):
            raise TypeError(
                f"{type(self).__name__}: a norm must be True, False or a module, got {given!r}"
            )
        return self._batch_norm(channels, **at) if given else None

    def forward(self, input: Tensor) -> Tensor:
        """input [B, C, ..] or [C, ..]."""
        if isinstance(input, Tensor) and input.dim() == self._n + 1:
            return self.forward(input[None])[0]
        if not self.training:
            chain = self.chain()
            if is_one_op(chain, input):
                residual = input if self.residual else None
                return self._folder.run(type(self).__name__, chain, input, residual)
        y = self.depthwise(input)
        y = y if self.dw_norm is None else self.dw_norm(y)
        y = self.pointwise(ACTIVATIONS[self.dw_activation](y))
        y = ACTIVATIONS[self.activation](y if self.norm is None else self.norm(y))
        if self.residual:
            self._check_residual(y, input)
        return y + input if self.residual else y

    @untraced
    def _check_residual(self, y: Tensor, input: Tensor) -> None:
        if y.shape != input.shape:
            raise RuntimeError(
                f"{type(self).__name__}: residual needs an output of the sizes of the input, "
                f"{list(input.shape)}, got {list(y.shape)}; padding='same' keeps them"
            )

    def chain(self) -> Chain:
        of = self._modules  # at once: attributes of modules are found the long way
        dw = (of["depthwise"], of["dw_norm"], self.dw_activation)
        return Chain(*dw, of["pointwise"], of["norm"], self.activation)

    def cost(self, input_size: int | tuple[int, ...]) -> Cost:
        """Multiplications and parameters of the convolutions for an input of so many places.

        Args:
            input_size: the length, or (height, width); an int stands for both.
        """
        size = args.each(type(self).__name__, "input_size", input_size, self._n)
        dw, pw = self.depthwise, self.pointwise
        window = args.window(
            type(self).__name__, size, dw.kernel_size, dw.stride, dw.padding, dw.dilation
        )
        places = math.prod(out_size(size, dw.kernel_size, *window))
        weights = dw.weight.numel() + pw.weight.numel()
        full = self.in_channels * self.out_channels * math.prod(dw.kernel_size)
        biased = pw.bias is not None
        biases = biased * (dw.out_channels + self.out_channels)
        return Cost(
            places * weights, weights + biases, places * full, full + biased * self.out_channels
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        _conv_keys.rename(state_dict, prefix, self.depthwise.bias is not None)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        names = ("dw_activation", "activation")
        found = [f"{n}={getattr(self, n)!r}" for n in names if getattr(self, n) != "none"]
        return ", ".join(found + ["residual=True"] * self.residual)


class SeparableConv1d(Separable):
    """A depthwise and a 1x1 convolution of a sequence, with norms and activations.

    Args, Submodules, Raises: as :class:`SeparableConv2d`, with one dimension; padding may also be
    "causal".

    Shapes:
        input [B, C, length] or [C, length]; output [B, N, out_length] or [N, out_length].

    Equivalent to:
        ``nn.Sequential(nn.Conv1d(C, C M, k, groups=C), nn.Conv1d(C M, N, 1))``, with the norms and
        activations asked for after each.
    """

    _n, _depthwise, _pointwise, _batch_norm = 1, DepthwiseConv1d, nn.Conv1d, nn.BatchNorm1d


class SeparableConv2d(Separable):
    """A depthwise and a 1x1 convolution of an image, with norms and activations.

    depthwise, [dw_norm], [dw_activation], pointwise, [norm], [activation], [+ input] (Sifre 2014;
    Howard et al. 2017). In eval without gradients all of it is one operator: the running
    statistics of batch norms are folded into the weights, and what lies between the convolutions
    stays in the cache. Where a submodule is not of torch's or this package's own class (with an
    adapter, quantized), has hooks, or lies on another device, each is called by itself.

    Args:
        in_channels, out_channels: C and N.
        kernel_size, stride, padding, dilation, padding_mode: of the depthwise convolution, as in
            :class:`DepthwiseConv2d`.
        depth_multiplier: M; between the convolutions there are C M channels.
        bias: whether both convolutions have one.
        dw_norm, norm: True for a batch norm after the first and second convolution, or a module.
        dw_activation, activation: of :class:`DepthwiseConv2d`, after each.
        residual: whether to add the input in the end.
        device, dtype: of the parameters.

    Shapes:
        input [B, C, height, width] or [C, height, width]; output [B, N, ..] or [N, ..], in the
        memory format of the input.

    Submodules: depthwise, dw_norm, pointwise, norm. load_state_dict also takes the names of timm's,
    mmcv's and Keras's blocks, and of an nn.Sequential.

    Raises:
        ValueError, TypeError: an argument has a wrong value, or is of a wrong type.

    Equivalent to:
        ``nn.Sequential(nn.Conv2d(C, C M, k, groups=C), nn.Conv2d(C M, N, 1))``, with the norms and
        activations asked for after each.
    """

    _n, _depthwise, _pointwise, _batch_norm = 2, DepthwiseConv2d, nn.Conv2d, nn.BatchNorm2d


__all__ = ["Cost", "SeparableConv1d", "SeparableConv2d"]
