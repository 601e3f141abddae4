"""A depthwise convolution, a 1x1 convolution and the batch norms after them as one op.

In eval a batch norm is a multiplication and an addition per channel, which the convolution before
it can do: its weights and bias are folded. That reads the modules' tensors instead of calling the
modules, so it is done only where a call would do nothing else.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook
from torch.overrides import _get_current_function_mode_stack as modes
from torch.utils._device import DeviceContext

from .. import _C
from .._devices import has_kernels
from .._transforms import needs_reference_path
from . import functional as convolution
from .layers import Depthwise, DepthwiseConv1d, DepthwiseConv2d

Weights = tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor | None]

DEPTHWISE = (nn.Conv1d, nn.Conv2d, DepthwiseConv1d, DepthwiseConv2d)
POINTWISE = (nn.Conv1d, nn.Conv2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Hardswish: "hardswish",
    nn.SiLU: "silu",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
}
PLAIN_TENSORS = (nn.Parameter, Tensor)
NOTHING_IN_EVAL = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)


def _methods(cls: Any) -> tuple[Any, ...]:
    """What a call runs: whoever puts something else there, or on an object, wants it to run."""
    conv_forward = getattr(cls, "_conv_forward", None)
    return cls.forward, conv_forward, cls.__call__, cls._call_impl


def _functions() -> tuple[Any, ...]:
    """Those of torch that counters of operations, for one, put their own in the place of."""
    return F.conv1d, F.conv2d, F.batch_norm


_KNOWN = {cls: _methods(cls) for cls in (*DEPTHWISE, *NORMS, *ACTIVATIONS, *NOTHING_IN_EVAL)}
_FUNCTIONS = _functions()


class Chain(NamedTuple):
    """dw -[norm]-[activation]- 1x1 -[norm]-[activation]."""

    depthwise: Any
    dw_norm: Any
    dw_activation: str
    pointwise: Any
    norm: Any
    activation: str

    @property
    def own_activation(self) -> str:
        """Of the depthwise convolution itself, before its norm."""
        own = self.depthwise.__dict__.get("activation", "none")
        return own if isinstance(self.depthwise, Depthwise) else "none"

    def __str__(self) -> str:
        dw_norm, norm = ("batch norm" if n else "none" for n in (self.dw_norm, self.norm))
        parts = ("depthwise", self.own_activation, dw_norm, self.dw_activation)
        return " + ".join(p for p in (*parts, "1x1", norm, self.activation) if p != "none")


class Folder:
    """Folds the weights of a chain, once for as long as the numbers they come from are the same.

    No version counter sees every change of a tensor (``.data``, shared memory, NumPy's views); a
    checksum of the numbers does, for one read of them.
    """

    def __init__(self) -> None:
        self.kept: tuple[Any, Weights] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"kept": None}  # copies and pickles fold anew

    def weights(self, chain: Chain) -> Weights:
        """dw_weight, dw_bias, pw_weight, pw_bias and pw_weight packed for the op, if it is kept."""
        if chain.depthwise.weight.device.type != "cpu":
            return (*_fold(_sources(chain)), None)
        sources = _sources(chain)
        kept = self.kept
        if kept is not None and kept[0] == _key(sources):
            return kept[1]
        if torch._C._len_torch_dispatch_stack():  # a mode may make other tensors, fake ones
            return (*_fold(sources), None)
        with torch.no_grad(), torch.inference_mode(False):
            # Of copies, as other threads and processes may write meanwhile.
            copies = [t.detach().clone() if isinstance(t, Tensor) else t for t in sources]
            folded = _fold(copies)
            packed = torch.ops.adl_kernels.pack_pointwise(folded[2])
        weights = (*folded, packed)
        self.kept = _key(copies), weights
        return weights

    def run(self, name: str, chain: Chain, x: Tensor, residual: Tensor | None = None) -> Tensor:
        dw = chain.depthwise
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
            chain.dw_activation if chain.own_activation == "none" else chain.own_activation,
            chain.activation,
            residual,
            packed,
        )


def is_plain(module: nn.Module) -> bool:
    """Whether a call runs the forward of one of the classes known here, and nothing else."""
    known = _KNOWN.get(type(module))
    return known is not None and known == _methods(type(module)) and is_untouched(module)


def is_untouched(module: nn.Module) -> bool:
    """Whether a call runs what the class has: no hooks, and no method put on the object."""
    own = module.__dict__
    return not (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or own.get("_compiled_call_impl") is not None
        or "forward" in own
        or "_conv_forward" in own
        or "_call_impl" in own
    )


def is_depthwise(module: Any) -> bool:
    return type(module) in DEPTHWISE and module.groups == module.in_channels > 1


def is_pointwise(module: Any, dims: int) -> bool:
    """Whether a module multiplies the channels of each place of so many dimensions."""
    return (
        type(module) in POINTWISE
        and len(module.kernel_size) == dims
        and all(n == 1 for n in module.kernel_size)
        and module.stride == (1,) * dims
        and module.padding in ((0,) * dims, "valid")
        and module.groups == 1
    )


def is_one_op(chain: Chain, x: Tensor) -> bool:
    """Whether one op computes for x what calls of the modules would.

    Not for who traces, transforms or differentiates the call, and not where a module is of a class
    of its own (with adapters, quantized, parametrized), has hooks, or lies on another device.
    """
    if torch.compiler.is_compiling() or torch._C._is_tracing() or needs_reference_path():
        return False
    if _has_any_global_hook() or any(type(m) is not DeviceContext for m in modes()):
        return False
    if type(x) not in PLAIN_TENSORS or x.layout != torch.strided or not has_kernels(x):
        return False
    dw, pw = chain.depthwise, chain.pointwise
    if not is_known(chain) or _functions() != _FUNCTIONS:
        return False
    if pw.weight.shape[2:] != pw.kernel_size:  # exchanged, which torch does not mind
        return False
    dtype, device, graph = x.dtype, x.device, torch.is_grad_enabled()
    for conv, norm in ((dw, chain.dw_norm), (pw, chain.norm)):
        if norm is not None and not (
            is_foldable(norm, conv, dtype) and x.dim() == conv.weight.dim()
        ):
            return False
        if conv.weight.dtype != dtype and not torch._C._is_any_autocast_enabled():
            return False
    for t in _sources(chain):
        if not isinstance(t, Tensor):
            continue
        if type(t) not in PLAIN_TENSORS or t.device != device or (graph and t.requires_grad):
            return False
    return not (graph and x.requires_grad)


def is_known(chain: Chain) -> bool:
    """Whether it is known what calls of the modules run, and one op does it."""
    dw, pw = chain.depthwise, chain.pointwise
    if not is_depthwise(dw) or not is_pointwise(pw, len(dw.kernel_size)):
        return False
    if chain.own_activation != "none" and (chain.dw_norm or chain.dw_activation != "none"):
        return False
    norms = [norm for norm in (chain.dw_norm, chain.norm) if norm is not None]
    return all(type(norm) in NORMS for norm in norms) and all(map(is_plain, (dw, pw, *norms)))


def is_foldable(norm: Any, conv: Any, dtype: torch.dtype) -> bool:
    """Whether a batch norm is in eval, with statistics of the convolution's channels."""
    if norm.training:
        return False
    mean, var = norm._buffers.get("running_mean"), norm._buffers.get("running_var")
    if mean is None or var is None or (dtype == torch.float64 and var.dtype != dtype):
        return False
    size = (conv.out_channels,)
    return all(
        t is None or (t.shape == size and t.dtype in (dtype, torch.float32))
        for t in (mean, var, norm.weight, norm.bias)
    )


def _sources(chain: Chain) -> list[Any]:
    """What is folded: weight and bias, and weight, bias, mean, variance and eps of the norm."""
    found: list[Any] = []
    for conv, norm in ((chain.depthwise, chain.dw_norm), (chain.pointwise, chain.norm)):
        found += [conv.weight, conv.bias]
        if norm is None:
            found += [None] * 5
        else:
            found += [norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps]
    return found


def _key(sources: list[Any]) -> tuple[Any, ...]:
    rest = ["a tensor" if isinstance(t, Tensor) else t for t in sources]
    return _C.checksum([t for t in sources if isinstance(t, Tensor)]), rest


def _fold(sources: list[Any]) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    return (*_folded(*sources[:7]), *_folded(*sources[7:]))


def _folded(
    weight: Tensor,
    bias: Tensor | None,
    gain: Tensor | None,
    shift: Tensor | None,
    mean: Any,
    var: Any,
    eps: float | None,
) -> tuple[Tensor, Tensor | None]:
    """(w x + b - mean) scale + shift = (scale w) x + (b - mean) scale + shift, in double."""
    if eps is None:
        return weight, bias
    scale = (var.double() + eps).rsqrt()
    if gain is not None:
        scale = scale * gain.double()
    offset = -mean.double() if bias is None else bias.double() - mean
    offset = offset * scale
    if shift is not None:
        offset = offset + shift
    folded = torch.empty_like(weight)  # lies as the weight does, which the result follows
    folded.copy_(weight.double() * scale.view(-1, *[1] * (weight.dim() - 1)))
    return folded, offset.to(weight.dtype)
