"""Products of matrices on a GPU are computed as torch.backends allows.

The emulated device notes how cuBLAS would be told to compute each.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from layers import Case, gradients, make

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
NAMES = {F64: "Double", F32: "Float", BF16: "BFloat16", F16: "Half"}
SWITCH = {
    BF16: "allow_bf16_reduced_precision_reduction",
    F16: "allow_fp16_reduced_precision_reduction",
}


@pytest.fixture
def switch(monkeypatch) -> Callable[[torch.dtype, object], None]:
    """Sets the switch for products of one dtype, for a test."""
    before = {dtype: getattr(torch.backends.cuda.matmul, name) for dtype, name in SWITCH.items()}
    yield lambda dtype, value: setattr(torch.backends.cuda.matmul, SWITCH[dtype], value)
    for dtype, value in before.items():
        setattr(torch.backends.cuda.matmul, SWITCH[dtype], value)


@pytest.fixture
def products(tmp_path: Path, monkeypatch) -> Callable[[torch.dtype], set[str]]:
    """What is said of the products of a layer, forward and backward."""

    def of(dtype: torch.dtype) -> set[str]:
        notes = tmp_path / "products"
        notes.write_text("")
        monkeypatch.setenv("ADL_EMULATED_PRODUCTS", str(notes))
        monkeypatch.setenv("ADL_CUDA_TIER", "streaming")
        layer = make(Case("lstm", 3, 2, 2, 5, dtype, P=3))
        cotangents = [torch.randn_like(t) for t in layer.ours()]
        gradients(layer, type(layer).ours, cotangents)
        lines = notes.read_text().splitlines()
        assert len(lines) > 20
        return set(lines)

    return of


@pytest.mark.parametrize("dtype", NAMES)
def test_by_default_sums_may_be_reduced(dtype, products):
    assert products(dtype) == {f"{NAMES[dtype]} tf32 0 reduced 1"}


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("forbidden", SWITCH)
def test_sums_that_must_not_be_reduced(dtype, forbidden, switch, products):
    """Each switch is for its own dtype."""
    switch(forbidden, False)
    assert products(dtype) == {f"{NAMES[dtype]} tf32 0 reduced {int(dtype is not forbidden)}"}
    switch(forbidden, True)
    assert products(dtype) == {f"{NAMES[dtype]} tf32 0 reduced 1"}


@pytest.mark.parametrize("dtype", NAMES)
def test_tf32_is_for_float32(dtype, products, monkeypatch):
    monkeypatch.setenv("ADL_EMULATED_TF32", "1")
    assert products(dtype) == {f"{NAMES[dtype]} tf32 {int(dtype is F32)} reduced 1"}


@pytest.mark.parametrize("dtype", SWITCH)
def test_what_cublas_cannot_promise_is_an_error(dtype, switch, products):
    """So it is for torch's own products."""
    switch(dtype, (False, False))
    with pytest.raises(RuntimeError, match=f"allow_splitk=False of torch.*{SWITCH[dtype]} needs"):
        products(dtype)
    switch(dtype, (False, True))
    assert products(dtype) == {f"{NAMES[dtype]} tf32 0 reduced 0"}
    assert products(F64) == {"Double tf32 0 reduced 1"}
