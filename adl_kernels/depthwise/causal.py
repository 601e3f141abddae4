"""Causal convolutions: states are inputs, put before the input."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.nn import functional as F

from .._transforms import untraced
from . import arguments as args
from . import functional as convolution


@overload
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    *,
    activation: str = ...,
    initial_state: Tensor | None = ...,
    return_final_state: Literal[False] = ...,
    seq_idx: Tensor | None = ...,
    lengths: Tensor | None = ...,
    dilation: int = ...,
) -> Tensor: ...
@overload
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    *,
    activation: str = ...,
    initial_state: Tensor | None = ...,
    return_final_state: Literal[True],
    seq_idx: Tensor | None = ...,
    lengths: Tensor | None = ...,
    dilation: int = ...,
) -> tuple[Tensor, Tensor]: ...
@overload
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    *,
    activation: str = ...,
    initial_state: Tensor | None = ...,
    return_final_state: bool,
    seq_idx: Tensor | None = ...,
    lengths: Tensor | None = ...,
    dilation: int = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    seq_idx: Tensor | None = None,
    lengths: Tensor | None = None,
    dilation: int = 1,
) -> Tensor | tuple[Tensor, Tensor]:
    """A depthwise convolution over time that sees no future, in parts if need be.

    ``y_t = activation(bias + sum over j of weight_j x_{t - (k - 1 - j) dilation})``

    Args:
        x: [B, C, length], or [C, length]. weight: [C M, 1, k]. bias: [C M].
        activation: as in :func:`depthwise_conv1d`.
        initial_state: [B, C, (k - 1) dilation], the inputs before x; None for zeros.
        return_final_state: whether to return what `initial_state` must be for what follows.
        seq_idx: [B, length], as in :func:`depthwise_conv1d`; a state belongs to the document at
            its end.
        lengths: [B] int: past the end of a sequence y is zero, and its final state is of its end.
        dilation: int.

    Returns:
        y [B, C M, length], or (y, final_state [B, C, (k - 1) dilation]).

    Raises: as :func:`depthwise_conv1d`.

    Equivalent to:
        ``activation(conv1d(F.pad(x, ((k - 1) * dilation, 0)), weight, bias, dilation=dilation,
        groups=C))``
    """
    name = "causal_conv1d"
    args.check_tensors(
        name, 1, x=x, weight=weight, bias=bias, initial_state=initial_state, seq_idx=seq_idx
    )
    (dilation,) = args.each(name, "dilation", dilation, 1)
    if x.dim() == 2:
        rows = (initial_state, seq_idx, lengths)
        state, seq_idx, lengths = (None if t is None else t[None] for t in rows)
        y, final = causal_conv1d(
            x[None],
            weight,
            bias,
            activation=activation,
            initial_state=state,
            return_final_state=True,
            seq_idx=seq_idx,
            lengths=lengths,
            dilation=dilation,
        )
        return (y[0], final[0]) if return_final_state else y[0]
    args.check_weight(name, 1, x, weight)
    keep = (args.kernel_size(weight)[0] - 1) * dilation
    _check_state(name, "initial_state", x, initial_state, keep)
    if lengths is not None:
        _check_lengths(name, x, lengths)
        runs = torch.arange(x.shape[2], device=x.device) < lengths.to(x.device)[:, None]
        x = torch.where(runs[:, None], x, 0)
    y = _outputs(x, weight, bias, activation, initial_state, seq_idx, dilation, keep)
    if lengths is not None:
        y = torch.where(runs[:, None], y, 0)
    if not return_final_state:
        return y
    return y, _final_state(x, initial_state, seq_idx, lengths, keep)


def causal_conv1d_step(
    x: Tensor,
    state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    dilation: int = 1,
) -> tuple[Tensor, Tensor]:
    """One step of :func:`causal_conv1d`.

    Args:
        x: [B, C]. state: [B, C, (k - 1) dilation], the inputs before x.

    Returns:
        y [B, C M] and the new state.
    """
    name = "causal_conv1d_step"
    (dilation,) = args.each(name, "dilation", dilation, 1)
    if not (isinstance(x, Tensor) and x.dim() == 2):
        got = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise RuntimeError(f"{name}: x must be a Tensor [B, C], got {got}")
    args.check_tensors(name, 1, x=x[..., None], state=state, weight=weight, bias=bias)
    args.check_weight(name, 1, x[..., None], weight)
    keep = (args.kernel_size(weight)[0] - 1) * dilation
    if state is None:
        sizes = [*x.shape, keep]
        raise TypeError(f"{name}: state must be a Tensor {sizes}, got None")
    _check_state(name, "state", x, state, keep)
    seen = torch.cat([state.to(x.dtype), x[..., None]], 2)
    how: dict[str, Any] = {"dilation": dilation, "activation": activation}
    y = convolution.depthwise_conv1d(seen, weight, bias, **how)
    return y[..., 0], seen[..., 1:]


def _outputs(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    state: Tensor | None,
    seq_idx: Tensor | None,
    dilation: int,
    keep: int,
) -> Tensor:
    how: dict[str, Any] = {"dilation": dilation, "activation": activation}
    if state is None:
        how |= {"padding": "causal", "seq_idx": seq_idx}
        return convolution.depthwise_conv1d(x, weight, bias, **how)
    x = torch.cat([state.to(x.dtype), x], 2)
    if seq_idx is None:
        return convolution.depthwise_conv1d(x, weight, bias, **how)
    # Ids are for as many outputs as inputs; the state belongs to the first document.
    ids = torch.cat([seq_idx[:, :1].expand(-1, keep), seq_idx], 1)
    y = convolution.depthwise_conv1d(x, weight, bias, padding="causal", seq_idx=ids, **how)
    return y[:, :, keep:]


def _final_state(
    x: Tensor, state: Tensor | None, seq_idx: Tensor | None, lengths: Tensor | None, keep: int
) -> Tensor:
    """The last inputs of each sequence, of its last document: [B, C, keep]."""
    seen = F.pad(x, (keep, 0)) if state is None else torch.cat([state.to(x.dtype), x], 2)
    B, C, T = x.shape
    if lengths is None and seq_idx is None:
        return seen.narrow(2, T, keep).contiguous()
    ends = torch.full((B, 1), T, device=x.device) if lengths is None else lengths.to(x.device)
    at = ends.view(B, 1) + torch.arange(keep, device=x.device)  # [B, keep] places in seen
    final = seen.gather(2, at[:, None].expand(B, C, keep))
    if seq_idx is None:
        return final
    ids = torch.cat([seq_idx[:, :1].expand(B, keep), seq_idx], 1)
    last = ids.gather(1, (ends.view(B, 1) + keep - 1).clamp(min=0))
    return torch.where((ids.gather(1, at) == last)[:, None], final, 0)


@untraced
def _check_state(name: str, what: str, x: Tensor, state: Tensor | None, keep: int) -> None:
    wanted = {what: (state, [*x.shape[:2], keep], "batch, channels, (k - 1) dilation")}
    args.check_like(name, x, wanted)


@untraced
def _check_lengths(name: str, x: Tensor, lengths: Any) -> None:
    if not isinstance(lengths, Tensor):
        raise TypeError(f"{name}: lengths must be a Tensor, got {type(lengths).__name__}")
    is_integer = not (lengths.is_floating_point() or lengths.is_complex())
    if list(lengths.shape) != [x.shape[0]] or not is_integer or lengths.dtype == torch.bool:
        raise RuntimeError(
            f"{name}: lengths must be integers [{x.shape[0]}] (batch), got {lengths.dtype} "
            f"{list(lengths.shape)}"
        )
    # Looking at numbers would make the host wait for a GPU, and a compiler break its graph.
    if lengths.device.type == "cpu" and not torch.compiler.is_compiling() and lengths.numel():
        least, most = int(lengths.min()), int(lengths.max())
        if least < 0 or most > x.shape[2]:
            raise ValueError(
                f"{name}: lengths must be between 0 and {x.shape[2]}, got {least} to {most}"
            )
