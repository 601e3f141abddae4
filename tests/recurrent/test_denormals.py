"""Numbers below the smallest normal one are numbers like others."""

from __future__ import annotations

import pytest
import torch
from layers import Case, make
from tolerance import assert_accurate

from adl_kernels.recurrent.cell_facts import CELLS

pytestmark = pytest.mark.cpu_only

SCALE = 1e-40


def results(layer, run, cotangents):
    tensors = [t.detach().clone().requires_grad_() for t in layer.tensors]
    outputs = run(layer.with_tensors(tensors))
    return [*outputs, *torch.autograd.grad(outputs, tensors, cotangents)]


@pytest.mark.parametrize("B", [2, 20], ids=["few_rows", "rows"])
@pytest.mark.parametrize("small", ["x and state", "weights", "gradients"])
@pytest.mark.parametrize("cell", CELLS)
def test_outputs_and_all_gradients(cell, small, B):
    layer = make(Case(cell, 4, B, 20, 40, bias=False))
    states = 1 + len(layer.hx)
    scales = [SCALE if small == "x and state" else 1] * states
    scales += [SCALE if small == "weights" else 1] * len(layer.weights)
    pairs = zip(layer.tensors, scales, strict=True)
    layer = layer.with_tensors([t * scale for t, scale in pairs])
    cotangents = [torch.randn_like(t) for t in layer.ours()]
    if small == "gradients":
        cotangents = [c * SCALE for c in cotangents]
    wide = layer.with_tensors([t.double() for t in layer.tensors])
    exact = results(wide, type(layer).reference, [c.double() for c in cotangents])
    torchs = results(layer, type(layer).torchs, cotangents)
    ours = results(layer, type(layer).ours, cotangents)
    labels = ["y", "h_n", "c_n"][:states] + [f"d{name}" for name in layer.names]
    for label, *three in zip(labels, ours, torchs, exact, strict=True):
        assert_accurate(*three, label)
    assert any(0 < t.abs().max().item() < 1e-38 for t in ours)
