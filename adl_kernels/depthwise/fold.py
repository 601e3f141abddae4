"""A depthwise convolution, a 1x1 convolution and the batch norms after them as one op.

In eval a batch norm is a multiplication and an addition per channel, which the convolution before
it can do: its weights and bias are folded. They are kept until a tensor they come from changes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .._devices import has_kernels
from .._transforms import needs_reference_path
from . import functional as convolution

Weights = tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor | None]


class Chain(NamedTuple):
    """dw -[norm]-[activation]- 1x1 -[norm]-[activation]."""

    depthwise: nn.Module
    dw_norm: nn.Module | None
    dw_activation: str
    pointwise: nn.Module
    norm: nn.Module | None
    activation: str

    @property
    def modules(self) -> list[nn.Module]:
        found = (self.depthwise, self.dw_norm, self.pointwise, self.norm)
        return [m for m in found if m is not None]


class _Kept(NamedTuple):
    sources: list[Tensor | None]  # aliases: while they are held, no other tensor lies there
    versions: list[int]
    weights: Weights


class Folder:
    """Folds the weights of a chain, once for as long as they stay what they are."""

    def __init__(self) -> None:
        self.kept: _Kept | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"kept": None}  # copies and pickles fold anew

    def weights(self, chain: Chain) -> Weights:
        """dw_weight, dw_bias, pw_weight, pw_bias and pw_weight packed for the op."""
        if torch.compiler.is_compiling():
            return (*_fold(chain), None)
        sources = _sources(chain)
        present = [t for t in sources if t is not None]
        norms = [n for n in (chain.dw_norm, chain.norm) if n is not None]
        uncounted = any(n.num_batches_tracked is None for n in norms)
        if uncounted or any(t.is_inference() for t in present):
            return (*_fold(chain), None)
        kept = self.kept
        if kept is None or not _same(kept, sources):
            with torch.no_grad(), torch.inference_mode(False):
                folded = _fold(chain)
                packed = torch.ops.adl_kernels.pack_pointwise(folded[2])
            held = [None if t is None else t.detach() for t in sources]
            kept = _Kept(held, [t._version for t in present], (*folded, packed))
            self.kept = kept
        return kept.weights

    def run(self, name: str, chain: Chain, x: Tensor, residual: Tensor | None) -> Tensor:
        dw: Any = chain.depthwise
        dw_weight, dw_bias, pw_weight, pw_bias, packed = self.weights(chain)
        return convolution.separable(
            name,
            len(dw.kernel_size),
            x,
            dw_weight,
            pw_weight,
            dw_bias,
            pw_bias,
            dw.stride,
            dw.padding,
            dw.dilation,
            dw.padding_mode,
            chain.dw_activation,
            chain.activation,
            residual,
            packed,
        )


def fusion_blocker(chain: Chain, x: Tensor) -> str | None:
    """What stands against running the chain as one op on x, or None."""
    if needs_reference_path() or not has_kernels(x):
        return "a transform, or a device or dtype without kernels"
    for norm in (chain.dw_norm, chain.norm):
        if norm is not None and not foldable(norm):
            return f"{type(norm).__name__} has no running statistics to fold"
        if norm is not None and norm.training:
            return "a batch norm is in training"
    if any(_has_hooks(m) for m in chain.modules):
        return "a hook wants to see what lies between"
    if torch.is_grad_enabled():
        wanted = (t is not None and t.requires_grad for t in (x, *_sources(chain)))
        if any(wanted):
            return "gradients are wanted"
    return None


def foldable(norm: nn.Module) -> bool:
    return isinstance(norm, _BatchNorm) and norm.running_mean is not None


def is_pointwise(conv: Any) -> bool:
    """Whether a convolution multiplies the channels of each place, and does nothing else."""
    ones = all(k == 1 for k in (*conv.kernel_size, *conv.stride))
    none = conv.padding == "valid" or all(p == 0 for p in conv.padding)
    return ones and none and conv.groups == 1


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _sources(chain: Chain) -> list[Tensor | None]:
    found: list[Tensor | None] = []
    for conv, norm in ((chain.depthwise, chain.dw_norm), (chain.pointwise, chain.norm)):
        found += [conv.weight, conv.bias]  # type: ignore[list-item]
        if norm is not None:
            # In training torch changes the statistics without counting that; but it counts batches.
            names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
            found += [getattr(norm, name) for name in names]
    return found


def _same(kept: _Kept, sources: list[Tensor | None]) -> bool:
    if len(kept.sources) != len(sources):
        return False
    versions = iter(kept.versions)
    for old, new in zip(kept.sources, sources, strict=True):
        if old is None or new is None:
            if old is not new:
                return False
        elif (
            old.data_ptr() != new.data_ptr()
            or next(versions) != new._version
            or (old.dtype, old.device, old.shape) != (new.dtype, new.device, new.shape)
            or old.stride() != new.stride()
        ):
            return False
    return True


def _fold(chain: Chain) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    dw = _folded(chain.depthwise, chain.dw_norm)
    return (*dw, *_folded(chain.pointwise, chain.norm))


def _folded(conv: Any, norm: Any) -> tuple[Tensor, Tensor | None]:
    """(w x + b - mean) scale + shift = (scale w) x + (b - mean) scale + shift, in double."""
    weight, bias = conv.weight, conv.bias
    if norm is None:
        return weight, bias
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    offset = -norm.running_mean.double() if bias is None else bias.double() - norm.running_mean
    offset = offset * scale
    if norm.bias is not None:
        offset = offset + norm.bias
    wide = weight.double() * scale.view(-1, *[1] * (weight.dim() - 1))
    return wide.to(weight.dtype), offset.to(weight.dtype)
