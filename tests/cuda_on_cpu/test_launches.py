"""Launches that fail: the error is raised or handled once, and nothing of it is left behind."""

from __future__ import annotations

import pytest
import torch
from layers import Case, assert_layer_is_accurate, make

BF16 = torch.bfloat16
OPS = torch.ops.adl_kernels


def dropout():
    return OPS.dropout(torch.ones(9), 0.5, torch.zeros((), dtype=torch.int64), 0)


def mask():
    return OPS.mask(torch.ones(9), [3, 2], 0.5, torch.zeros((), dtype=torch.int64), 0)


def convolution(last: str):
    x, weight = torch.ones(1, 2, 5), torch.ones(2, 1, 3)
    geometry = ([1], [1, 1], [1])
    if last == "depthwise_conv":
        return OPS.depthwise_conv(x, weight, None, *geometry)
    if last == "depthwise_conv_input_grad":
        return OPS.depthwise_conv_input_grad(x, weight, x.shape, *geometry, None)
    if last == "depthwise_conv_weight_grad":
        return OPS.depthwise_conv_weight_grad(x, x, [3], *geometry, None, bias=True)
    return OPS.separable_conv(x, weight, None, torch.ones(4, 2), None, None, *geometry)


def layer(case: Case):
    return lambda: make(case).ours()


OPERATIONS = {
    "dropout": dropout,
    "mask": mask,
    **{
        name: lambda name=name: convolution(name)
        for name in (
            "depthwise_conv",
            "depthwise_conv_input_grad",
            "depthwise_conv_weight_grad",
            "separable_conv",
        )
    },
    "lstm": layer(Case("lstm", 3, 2, 2, 9, torch.float32)),
    "gru": layer(Case("gru", 3, 2, 2, 9, torch.float64, lengths=(3, 1))),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_error_is_raised_once(name, monkeypatch):
    op = "dropout" if name == "mask" else name
    with monkeypatch.context() as refusing:
        refusing.setenv("ADL_EMULATOR_REFUSE", "all")
        with pytest.raises(RuntimeError, match=f"{op}: a CUDA kernel could not be launched: "):
            OPERATIONS[name]()
    OPERATIONS[name]()


@pytest.mark.parametrize("tier", ["cluster", "grid"])
def test_more_shared_memory_than_there_is(tier, monkeypatch):
    """Asking for it fails, before the launch: an error for a cluster, while a grid streams."""
    lstm = make(Case("lstm", 2, 1, 2, 1024, BF16))
    with monkeypatch.context() as lying:
        lying.setenv("ADL_CUDA_TIER", tier)
        lying.setenv("ADL_EMULATED_SMS", "16")
        lying.setenv("ADL_EMULATED_SHARED", str(4 << 20))
        if tier == "grid":
            lstm.ours()
        else:
            with pytest.raises(RuntimeError, match=r"lstm: a CUDA kernel .* invalid argument"):
                lstm.ours()
    OPERATIONS["dropout"]()


@pytest.mark.parametrize("lengths", [(), (3, 2, 1)], ids=["padded", "packed"])
def test_a_grid_that_is_refused_streams(lengths, monkeypatch):
    """Its blocks could have been under way at once; forward and backward, and what comes after."""
    monkeypatch.setenv("ADL_CUDA_TIER", "grid")
    monkeypatch.setenv("ADL_EMULATED_SMS", "16")
    monkeypatch.setenv("ADL_EMULATOR_REFUSE", "cooperative")
    assert_layer_is_accurate(Case("lstm", 3, 3, 2, 64, BF16, D=2, lengths=lengths))
    OPERATIONS["dropout"]()
    monkeypatch.delenv("ADL_CUDA_TIER")
    assert_layer_is_accurate(Case("gru", 3, 2, 2, 9, BF16))
