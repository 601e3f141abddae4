"""Numbers on a GPU: cuDNN's accuracy, the CPU's results, every tier, the same bits every time."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from devices import DEVICE
from layers import Case, assert_layer_is_accurate, gradients, make, widened
from pairs import KINDS
from tolerance import assert_accurate
from torch import nn

import adl_kernels
from adl_kernels.recurrent.cell_facts import CELLS

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
RAGGED = (40, 33, 33, 20, 7, 1)

ALL = (F32, BF16, F16)


def cases(
    cells: Iterable[str], dtypes: Iterable[torch.dtype], *sizes: int, **more: Any
) -> list[Case]:
    return [Case(cell, *sizes, dtype, **more) for cell in cells for dtype in dtypes]


# A layer of 128 units fits into one block, one of 160 does not.
CASES = [
    *(case for H in (32, 128, 160) for case in cases(CELLS, ALL, 64, 16, 40, H)),
    *cases(CELLS, (F32, F16), 40, 6, 33, 100, D=2, lengths=RAGGED),
    *cases(("lstm", "gru"), (F32, BF16), 40, 200, 64, 512, D=2),
    *cases(CELLS, (BF16,), 300, 1, 16, 96),
    Case("lstm", 30, 20, 64, 256, BF16, P=64, D=2),
]
SMALL = [case for H in (17, 128) for case in cases(CELLS, ALL, 33, 19, 24, H, D=2)]


# What float32 is multiplied as; torch's default for its recurrent layers is tf32.
exact_and_tf32 = pytest.mark.parametrize(
    "tf32", [False, True], ids=["exact", "tf32"], indirect=True
)


@exact_and_tf32
@pytest.mark.parametrize("case", CASES, ids=str)
def test_at_most_twice_the_error_of_cudnn(case: Case, tf32: bool) -> None:
    assert_layer_is_accurate(case, tf32)


@exact_and_tf32
@pytest.mark.parametrize("tier", ["streaming", "block"])
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_every_tier(case: Case, tier: str, tf32: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADL_CUDA_TIER", tier)
    try:
        make(case).ours()
    except RuntimeError as error:
        if "does not serve" in str(error):  # this GPU's blocks have too little shared memory
            pytest.skip(str(error))
        raise
    assert_layer_is_accurate(case, tf32)


@pytest.mark.parametrize("cell", CELLS)
def test_backward_in_another_tier_than_forward(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make(Case(cell, 20, 9, 24, 64, F32))
    cotangents = [torch.randn_like(t) for t in layer.ours()]
    exact = gradients(widened(layer), type(layer).torchs, [c.double() for c in cotangents])
    torchs = gradients(layer, type(layer).torchs, cotangents)
    for tiers in (("block", "streaming"), ("streaming", "block")):
        tensors = [t.detach().clone().requires_grad_() for t in layer.tensors]
        monkeypatch.setenv("ADL_CUDA_TIER", tiers[0])
        outputs = layer.with_tensors(tensors).ours()
        monkeypatch.setenv("ADL_CUDA_TIER", tiers[1])
        found = torch.autograd.grad(outputs, tensors, cotangents)
        for label, *three in zip(layer.names, found, torchs[1], exact[1], strict=True):
            assert_accurate(*three, f"d{label} {tiers}")


def test_a_tier_that_cannot_serve_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADL_CUDA_TIER", "block")
    with pytest.raises(RuntimeError, match="ADL_CUDA_TIER=block does not serve hidden size 2000"):
        make(Case("gru", 3, 2, 4, 2000, F32)).ours()


@pytest.mark.parametrize("tier", ["streaming", "block"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_nan_stays_in_its_sequence(cell: str, tier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADL_CUDA_TIER", tier)
    layer = make(Case(cell, 12, 37, 8, 48, BF16, D=2))
    results = []
    for poison in (False, True):
        if poison:
            layer.x[5, 7, 3] = float("nan")
        tensors = [t.detach().clone().requires_grad_() for t in layer.tensors]
        y, *states = layer.with_tensors(tensors).ours()
        results.append(
            [y, *states, *torch.autograd.grad(y.float().sum(), tensors[: 1 + len(states)])]
        )
    others = [b for b in range(37) if b != 7]
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean[:, others], dirty[:, others])
        assert dirty[:, 7].isnan().any()


@pytest.mark.parametrize("case", [*SMALL[::4], *CASES[::5]], ids=str)
def test_the_same_bits_every_time(case: Case) -> None:
    layer = make(case)
    cotangents = [torch.randn_like(t) for t in layer.ours()]
    outputs, grads = gradients(layer, type(layer).ours, cotangents)
    for _ in range(20):
        again = gradients(layer, type(layer).ours, cotangents)
        assert all(map(torch.equal, [*outputs, *grads], [*again[0], *again[1]]))


def trained(module: nn.RNNBase, x: torch.Tensor) -> list[torch.Tensor]:
    y = module(x)[0]
    return [y, *torch.autograd.grad(y.square().sum(), list(module.parameters()))]


@pytest.mark.parametrize("dtype, tolerance", [(F64, 1e-11), (F32, 1e-4)], ids=["f64", "f32"])
@pytest.mark.parametrize("kind", KINDS)
def test_cpu_and_gpu_agree(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    options = {"num_layers": 2, "bidirectional": True} | KINDS[kind][2]
    here = KINDS[kind][1](20, 50, **options, dtype=dtype)
    x = torch.randn(30, 7, 20, dtype=dtype)
    there = copy.deepcopy(here).to(DEVICE)
    for a, b in zip(trained(here, x), trained(there, x.to(DEVICE)), strict=True):
        assert (a - b.cpu()).abs().max() <= tolerance * a.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_a_module_goes_to_the_gpu_and_back(kind: str) -> None:
    module = KINDS[kind][1](20, 50, 2, **KINDS[kind][2])
    x = torch.randn(9, 3, 20)
    before = trained(module, x)
    parameters = list(module.parameters())
    module.to(DEVICE)
    away = trained(module, x.to(DEVICE))
    assert all(t.device.type == DEVICE for t in away)
    module.cpu()
    assert all(map(torch.equal, trained(module, x), before))
    assert all(map(lambda a, b: a is b, module.parameters(), parameters))


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_autocast(kind: str, dtype: torch.dtype) -> None:
    """Also with a GradScaler, as float16 is trained."""
    module = KINDS[kind][1](64, 96, 2, **KINDS[kind][2], device=DEVICE)
    x = torch.randn(25, 8, 64, device=DEVICE)
    exact = trained(copy.deepcopy(module).double(), x.double())
    with torch.autocast(DEVICE, dtype):
        y = module(x)[0]
        loss = y.float().square().sum()
    assert y.dtype == dtype
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**4)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    bound = 30 * torch.finfo(dtype).eps
    for got, true in zip([y, *(p.grad for p in module.parameters())], exact, strict=True):
        assert (got.double() - true).norm() <= bound * true.norm()


def test_tensors_on_two_devices_are_an_error() -> None:
    layer = make(Case("gru", 3, 2, 4, 5))
    with pytest.raises(RuntimeError, match="h_0 must be on the device of x, cuda:0, got cpu"):
        torch.ops.adl_kernels.gru(layer.x, [layer.hx[0].cpu()], layer.weights)
    with pytest.raises(RuntimeError, match="not at the same device"):
        adl_kernels.GRU(4, 5, device=DEVICE)(layer.x.cpu())
