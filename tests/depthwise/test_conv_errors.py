"""Wrong calls of the convolutions: which function and argument, what was expected, what came."""

from __future__ import annotations

import pytest
import torch
from devices import DEVICE

import adl_kernels as adl

F = adl.functional


def zeros(*shape: int, **options) -> torch.Tensor:
    return torch.zeros(shape, **{"device": DEVICE} | options)


x1, w1, b = zeros(2, 4, 9), zeros(4, 1, 3), zeros(4)
x2, w2 = zeros(2, 4, 9, 8), zeros(4, 1, 3, 3)
x3, w3 = zeros(2, 4, 5, 6, 7), zeros(4, 1, 3, 3, 3)
pw = zeros(5, 4, 1, 1)
ids = torch.zeros(2, 9, dtype=torch.long, device=DEVICE)


def dw2(*args, **options):
    return lambda: F.depthwise_conv2d(*args, **options)


def dw1(*args, **options):
    return lambda: F.depthwise_conv1d(*args, **options)


def sep(*args, **options):
    return lambda: F.separable_conv2d(*args, **options)


def causal(*args, **options):
    return lambda: F.causal_conv1d(*args, **options)


def step(*args, **options):
    return lambda: F.causal_conv1d_step(*args, **options)


# What is called, the exception, what the sentence says.
WRONG = {
    "x-none": (dw2(None, w2), TypeError, "x must be a Tensor, got None"),
    "x-list": (dw2([1.0], w2), TypeError, "x must be a Tensor, got list"),
    "x-dims": (dw2(zeros(2, 4), w2), RuntimeError, r"or \[C, height, width\], got \[2, 4\]"),
    "x-dims-3": (lambda: F.depthwise_conv3d(x1, w3), RuntimeError, r"depth, height, width\], got"),
    "x-int": (dw2(x2.long(), w2), TypeError, "floating-point dtype, got torch.int64"),
    "weight-none": (dw2(x2, None), TypeError, "weight must be a Tensor, got None"),
    "weight-str": (dw2(x2, "w"), TypeError, "weight must be a Tensor, got str"),
    "weight-dims": (dw2(x2, w1), RuntimeError, r"\[4 M, 1, 2 kernel sizes\].*got \[4, 1, 3\]"),
    "weight-groups": (dw2(x2, zeros(4, 2, 3, 3)), RuntimeError, r"got \[4, 2, 3, 3\]"),
    "weight-multiple": (dw2(x2, zeros(6, 1, 3, 3)), RuntimeError, r"got \[6, 1, 3, 3\]"),
    "weight-dtype": (dw2(x2, w2.double()), RuntimeError, "float32, got torch.float64"),
    "weight-device": (dw2(x2, w2.to("meta")), RuntimeError, "weight must be on .*, got meta"),
    "bias": (dw2(x2, w2, zeros(3)), RuntimeError, r"bias must be \[4\] \(channels.*got \[3\]"),
    "bias-dtype": (dw2(x2, w2, b.half()), RuntimeError, "bias must have the dtype of x"),
    "residual": (dw2(x2, w2, residual=x2), RuntimeError, r"must be \[2, 4, 7, 6\] \(as the re"),
    "stride-0": (dw2(x2, w2, b, 0), RuntimeError, "stride must be positive, got 0"),
    "stride-3": (dw2(x2, w2, b, (1, 1, 1)), RuntimeError, r"stride must be an int or a tuple of 2"),
    "stride-float": (dw2(x2, w2, b, 1.5), TypeError, "stride must be an int .* got 1.5"),
    "stride-bool": (dw2(x2, w2, b, True), TypeError, "stride must be an int .* got True"),
    "dilation": (dw2(x2, w2, dilation=(1, 0)), RuntimeError, "dilation must be positive"),
    "padding": (dw2(x2, w2, padding=-1), RuntimeError, "padding must not be negative, got -1"),
    "padding-3": (
        dw2(x2, w2, padding=(1, 1, 1)),
        RuntimeError,
        r"or as many pairs \(before, after\)",
    ),
    "padding-pair": (dw1(x1, w1, padding=(1, 2)), RuntimeError, r"pairs .*, got \(1, 2\)"),
    "padding-triple": (dw1(x1, w1, padding=((1, 2, 3),)), TypeError, "pairs"),
    "padding-name": (dw2(x2, w2, padding="full"), ValueError, "'valid' or 'same'.* got 'full'"),
    "padding-causal": (dw2(x2, w2, padding="causal"), ValueError, "in one dimension, got 'causal'"),
    "mode": (dw2(x2, w2, padding_mode="wrap"), ValueError, "one of zeros, reflect.* got 'wrap'"),
    "reflect": (
        dw2(x2, w2, padding=9, padding_mode="reflect"),
        RuntimeError,
        "'reflect' must not put more than 8 around a dimension of 9, got 9",
    ),
    "circular": (
        dw1(x1, w1, padding=10, padding_mode="circular"),
        RuntimeError,
        "'circular' must not put more than 9 around a dimension of 9, got 10",
    ),
    "activation": (dw2(x2, w2, activation="gelu"), ValueError, "one of none, relu.*got 'gelu'"),
    "activation-none": (dw2(x2, w2, activation=None), ValueError, "got None"),
    "kernel": (dw2(x2, zeros(4, 1, 3, 9)), RuntimeError, "reaches over 9 where there are 8"),
    "kernel-dilated": (dw2(x2, w2, dilation=5), RuntimeError, "reaches over 11 where there are 9"),
    "ids-float": (dw1(x1, w1, padding=1, seq_idx=ids.float()), RuntimeError, "got torch.float32"),
    "ids-size": (dw1(x1, w1, padding=1, seq_idx=ids[:1]), RuntimeError, r"int64 \[2, 9\] \(batch"),
    "ids-shorter": (dw1(x1, w1, seq_idx=ids), RuntimeError, "7 outputs for 9 inputs"),
    "ids-stride": (dw1(x1, w1, None, 2, 1, seq_idx=ids), RuntimeError, "needs stride 1"),
    "ids-device": (dw1(x1, w1, padding=1, seq_idx=ids.to("meta")), RuntimeError, "got meta"),
    "pw": (sep(x2, w2, zeros(5, 3, 1, 1)), RuntimeError, r"pw_weight must be \[5, 4, 1, 1\]"),
    "pw-none": (sep(x2, w2, None), TypeError, "pw_weight must be a Tensor, got None"),
    "pw-kernel": (sep(x2, w2, zeros(5, 4, 3, 3)), RuntimeError, r"got \[5, 4, 3, 3\]"),
    "pw-bias": (sep(x2, w2, pw, b, b), RuntimeError, r"pw_bias must be \[5\]"),
    "dw-bias": (sep(x2, w2, pw, zeros(5)), RuntimeError, r"dw_bias must be \[4\]"),
    "dw-weight": (sep(x2, w1, pw), RuntimeError, r"dw_weight must be \[4 M, 1, 2 kernel"),
    "dw-activation": (sep(x2, w2, pw, dw_activation="x"), ValueError, "dw_activation must be one"),
    "sep-residual": (sep(x2, w2, pw, residual=x2), RuntimeError, r"must be \[2, 5, 7, 6\]"),
    "state": (
        causal(x1, w1, initial_state=zeros(2, 4, 3)),
        RuntimeError,
        r"\[2, 4, 2\] \(batch, c",
    ),
    "state-dtype": (
        causal(x1, w1, initial_state=zeros(2, 4, 2).double()),
        RuntimeError,
        "initial_state must have the dtype of x",
    ),
    "lengths": (causal(x1, w1, lengths=[9, 9]), TypeError, "lengths must be a Tensor, got list"),
    "lengths-size": (
        causal(x1, w1, lengths=torch.ones(2)),
        RuntimeError,
        r"integers \[2\] \(batch",
    ),
    "lengths-values": (
        causal(x1, w1, lengths=torch.tensor([3, 10])),
        ValueError,
        "between 0 and 9, got 3 to 10",
    ),
    "causal-dilation": (causal(x1, w1, dilation=0), RuntimeError, "dilation must be positive"),
    "causal-dims": (causal(x2, w1), RuntimeError, r"x must be \[B, C, length\]"),
    "step-x": (step(x1, zeros(2, 4, 2), w1), RuntimeError, r"x must be a Tensor \[B, C\], got \[2"),
    "step-state": (step(x1[..., 0], zeros(2, 4, 1), w1), RuntimeError, r"must be \[2, 4, 2\]"),
    "step-none": (step(x1[..., 0], None, w1), TypeError, r"Tensor \[2, 4, 2\], got None"),
}


@pytest.mark.parametrize("name", WRONG)
def test_functions(name):
    call, kind, says = WRONG[name]
    functions = "depthwise_conv|separable_conv|causal_conv1d"
    with pytest.raises(kind, match=rf"^({functions})(\dd|_step)?: .*{says}"):
        call()


CONSTRUCTORS = {
    "groups": (lambda: adl.DepthwiseConv2d(4, 4, 3, groups=2), "groups must be in_channels, 4.*2"),
    "multiple": (lambda: adl.DepthwiseConv2d(4, 6, 3), "multiple of in_channels, 4, got 6"),
    "activation": (lambda: adl.DepthwiseConv1d(4, 4, 3, activation="x"), "activation must be one"),
    "mode": (lambda: adl.DepthwiseConv1d(4, 4, 3, padding_mode="x"), "padding_mode must be one of"),
    "padding": (lambda: adl.DepthwiseConv2d(4, 4, 3, padding="causal"), "in one dimension"),
    "pair": (lambda: adl.DepthwiseConv2d(4, 4, 3, padding=((1, -1), 0)), "must not be negative"),
    "multiplier": (
        lambda: adl.SeparableConv2d(4, 4, 3, depth_multiplier=0),
        "depth_multiplier must be a positive int, got 0",
    ),
    "residual": (
        lambda: adl.SeparableConv2d(4, 5, 3, residual=True),
        "as many channels out as in and stride 1, got 4 to 5 channels and stride 1",
    ),
    "norm": (lambda: adl.SeparableConv2d(4, 5, 3, norm="batch"), "module, got 'batch'"),
    "kernel": (lambda: F.separate_kernel(zeros(3)), r"kernel must be a Tensor .*got \[3\]"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_constructors(name):
    make, says = CONSTRUCTORS[name]
    with pytest.raises((ValueError, TypeError, RuntimeError), match=says):
        make()


MODULES = {
    "channels": (lambda m: m(zeros(2, 2, 9, 9)), r"DepthwiseConv2d: input must have 4 channels, "),
    "unbatched": (lambda m: m(zeros(2, 9, 9)), r"4 channels, got 2 in \[2, 9, 9\]"),
    "dims": (lambda m: m(zeros(4)), r"DepthwiseConv2d: x must be \[B, C, height, width\]"),
    "small": (lambda m: m(zeros(2, 4, 1, 9)), "kernel must not be larger than the padded input"),
    "dtype": (lambda m: m(zeros(2, 4, 9, 9).double()), "dtype of x"),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_modules(name):
    call, says = MODULES[name]
    module = adl.DepthwiseConv2d(4, 4, 3, device=DEVICE)
    with pytest.raises(RuntimeError, match=says):
        call(module)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_dtypes_without_kernels_take_torchs_convolution(dtype):
    x, weight = zeros(1, 2, 5, 5, dtype=dtype), zeros(2, 1, 3, 3, dtype=dtype)
    y = F.depthwise_conv2d(x, weight, padding="same")
    assert y.shape == x.shape and y.dtype == dtype


@pytest.mark.cpu_only
def test_a_packed_weight_of_another_dtype():
    """The kernel would read past its end."""
    weight = torch.randn(64, 16)
    packed = torch.ops.adl_kernels.pack_pointwise(weight.bfloat16())
    tensors = torch.randn(1, 16, 5, 5), torch.randn(16, 1, 3, 3), None, weight, None, packed
    with pytest.raises(RuntimeError, match=r"packed must be .* of this dtype, Float, got BFloat16"):
        torch.ops.adl_kernels.separable_conv(*tensors, [1, 1], [1] * 4, [1, 1])
