"""torch.jit.trace and torch.export of convolutions: no size of the example stays in them."""

from __future__ import annotations

import pytest
import torch
from devices import DEVICE
from torch import nn
from tracing import assert_exported, assert_traced

import adl_kernels as adl

SIZES = {
    1: [(2, 4, 8), (3, 4, 11), (1, 4, 5)],
    2: [(2, 4, 8, 10), (3, 4, 11, 9), (1, 4, 7, 12)],
    3: [(2, 4, 6, 6, 6), (1, 4, 7, 5, 8)],
}
CONVS = {1: adl.DepthwiseConv1d, 2: adl.DepthwiseConv2d, 3: adl.DepthwiseConv3d}
SAME = {"padding": "same"}
MODULES = {
    "same-stride2": (2, lambda: adl.DepthwiseConv2d(4, 8, 3, 2, **SAME)),
    "same-stride3-even": (2, lambda: adl.DepthwiseConv2d(4, 4, 4, 3, **SAME, activation="silu")),
    "same-kernel-below-stride": (2, lambda: adl.DepthwiseConv2d(4, 4, 1, 3, **SAME)),
    "same-strides": (2, lambda: adl.DepthwiseConv2d(4, 4, (5, 3), (1, 2), **SAME, dilation=2)),
    "same-stride1": (2, lambda: adl.DepthwiseConv2d(4, 4, 4, **SAME)),
    "pairs": (2, lambda: adl.DepthwiseConv2d(4, 4, 3, 2, ((0, 2), (1, 0)))),
    "plain": (2, lambda: adl.DepthwiseConv2d(4, 4, 3, 2, 1)),
    "same-1d": (1, lambda: adl.DepthwiseConv1d(4, 4, 4, 2, **SAME)),
    "causal-1d": (1, lambda: adl.DepthwiseConv1d(4, 4, 4, 2, "causal")),
    "same-3d": (3, lambda: adl.DepthwiseConv3d(4, 4, 3, 2, **SAME)),
    "causal": (1, lambda: adl.CausalConv1d(4, 4, dilation=2, activation="silu")),
    "two-passes": (2, lambda: adl.SpatiallySeparableConv2d(4, 3, 2, **SAME)),
    "function": (2, lambda: Separable(2, "same")),
    "block": (2, lambda: adl.SeparableConv2d(4, 6, 3, 2, **SAME, dw_activation="relu")),
    "block-norms": (2, lambda: adl.SeparableConv2d(4, 6, 3, 2, **SAME, dw_norm=True, norm=True)),
    "block-residual": (2, lambda: adl.SeparableConv2d(4, 4, 3, **SAME, residual=True)),
    "block-1d": (1, lambda: adl.SeparableConv1d(4, 6, 3, 2, "causal", norm=True)),
}
REFLECT = {"padding_mode": "reflect"}
PADDED = {
    "same-reflect": (2, lambda: adl.DepthwiseConv2d(4, 4, 3, 2, **SAME, **REFLECT)),
    "circular": (1, lambda: adl.DepthwiseConv1d(4, 4, 3, padding=1, padding_mode="circular")),
}
# What a torch.export with open sizes cannot show of the first: that reflect has numbers enough.
EXPORTED = MODULES | {"circular": PADDED["circular"]}


class Separable(nn.Module):
    def __init__(self, stride, padding):
        super().__init__()
        self.dw, self.pw = (nn.Parameter(torch.randn(s)) for s in ((4, 1, 3, 3), (6, 4, 1, 1)))
        self.how = (stride, padding)

    def forward(self, x):
        how = {"activation": "relu"}
        return adl.functional.separable_conv2d(x, self.dw, self.pw, None, None, *self.how, **how)


def randn(*size):
    return torch.randn(size, device=DEVICE)


def make(*size):
    return (randn(*size),)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", [*MODULES, *PADDED])
def test_trace_runs_at_other_sizes(name, training):
    n, module = (MODULES | PADDED)[name]
    module = module().to(DEVICE).train(training)
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.momentum = 0.0  # two runs in training see the same statistics
    assert_traced(module, make, SIZES[n])
    if "norm" not in name and "1d" not in name:
        assert_traced(module, make, [size[1:] for size in SIZES[n]])


@pytest.mark.parametrize("how", ["plain", "lengths", "state", "both", "step", "seq_idx"])
def test_traced_causal_convolution(how):
    class Stream(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = adl.CausalConv1d(4, 4, device=DEVICE)

        def forward(self, x, lengths):
            state = self.conv.init_state(x.shape[0])
            if how == "step":
                return self.conv.step(x[..., 0], state)
            given = {"lengths": lengths} if how in ("lengths", "both") else {}
            given |= {"state": state} if how in ("state", "both") else {}
            if how == "seq_idx":
                ids = torch.arange(x.shape[2], device=x.device) // 3
                given["seq_idx"] = ids.expand(x.shape[0], -1)
            return self.conv(x, **given)

    def make(batch, channels, steps):
        return randn(batch, channels, steps), torch.arange(batch) % steps + 1

    assert_traced(Stream(), make, SIZES[1])


@pytest.mark.parametrize("name", EXPORTED)
def test_export_with_dynamic_sizes(name):
    n, module = EXPORTED[name]
    module = module().to(DEVICE).eval()
    names = ("batch", None, "length") if n == 1 else ("batch", None, "depth", "height", "width")
    names = (*names[:2], *names[-n:])
    # More than one place in the result: torch.export holds what has one for another program.
    dims = {k: torch.export.Dim(d, min=5 if k else 1, max=64) for k, d in enumerate(names) if d}
    assert_exported(module, make, SIZES[n], (dims,))


def test_wrong_arguments_are_found_while_tracing():
    conv = adl.DepthwiseConv2d(4, 4, 3, 2, **SAME, device=DEVICE)
    with pytest.raises(RuntimeError, match=r"must have 4 channels, got 3 in \[2, 3, 8, 8\]"):
        torch.jit.trace(conv, randn(2, 3, 8, 8))
    conv = adl.DepthwiseConv2d(4, 4, 5, padding=((0, 0), (1, 0)), device=DEVICE)
    with pytest.raises(RuntimeError, match="reaches over 5 where there are 4"):
        torch.jit.trace(conv, randn(2, 4, 8, 3))
    assert torch._C._get_tracing_state() is None
