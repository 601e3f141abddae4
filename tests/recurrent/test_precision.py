"""torch.set_float32_matmul_precision: "medium" lets float32 layers multiply in bfloat16."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from lanes import slow
from torch import Tensor

import adl_kernels
from adl_kernels import _C

pytestmark = pytest.mark.cpu_only

ROUNDS = _C.isa() == "avx512bf16"  # elsewhere it would not be faster
ALLOWED = 2e-2  # of the largest value: a few units of bfloat16


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def training(kind: str, dtype: torch.dtype) -> Callable[[str], list[Tensor]]:
    torch.manual_seed(0)
    layer = getattr(adl_kernels, kind)(33, 70, bidirectional=True, dtype=dtype)
    x = torch.randn(20, 9, 33, dtype=dtype, requires_grad=True)

    def run(precision: str) -> list[Tensor]:
        torch.set_float32_matmul_precision(precision)
        y, hx = layer(x)
        states = list(hx) if isinstance(hx, tuple) else [hx]
        gradients = torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])
        return [t.detach() for t in (y, *states, *gradients)]

    return run


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_medium_rounds_what_is_multiplied(kind: str) -> None:
    run = training(kind, torch.float32)
    exact, rounded = run("highest"), run("medium")
    for a, b in zip(exact, rounded, strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert torch.equal(a, b) != ROUNDS
        assert (a - b).abs().max() <= ALLOWED * a.abs().max()
    for a, b in zip(exact, run("high"), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("precision", ["medium", *slow("high")])
def test_a_switch_of_torch_for_gpus_does_no_harm(precision: str) -> None:
    """With both switches set, torch's own getter of this one raises."""
    code = (
        "import torch, adl_kernels; torch.set_float32_matmul_precision('%s'); "
        "torch.backends.cuda.matmul.allow_tf32 = False; "
        "adl_kernels.LSTM(3, 4)(torch.randn(2, 2, 3))[0].sum().backward(); "
        "adl_kernels.GRUCell(3, 4)(torch.randn(2, 3))"
    )
    subprocess.run([sys.executable, "-c", code % precision], check=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes_do_not_look_at_it(dtype: torch.dtype) -> None:
    run = training("LSTM", dtype)
    assert all(map(torch.equal, run("highest"), run("medium")))


def test_a_forward_of_one_precision_goes_with_a_backward_of_another() -> None:
    torch.manual_seed(0)
    layer = adl_kernels.LSTM(20, 30)
    x = torch.randn(15, 8, 20)
    found = []
    for backward in ("highest", "medium"):
        torch.set_float32_matmul_precision("medium")
        y = layer(x)[0]
        torch.set_float32_matmul_precision(backward)
        found.append(torch.autograd.grad(y.sum(), list(layer.parameters())))
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() <= ALLOWED * a.abs().max()
