"""Depthwise convolutions on a GPU: torch's accuracy, the same bits every time, large tensors."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator

import pytest
import torch
from cuda_on_cpu.test_conv import OPS, Conv, assert_as_defined, assert_separable, both
from devices import DEVICE

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16

SQUARES = [(3, 1), (3, 2), (5, 1), (5, 2), (7, 1), (7, 2)]
CASES = both(
    *(
        Conv((56, 56), (k, k), stride=(s, s), B=4, C=96, dtype=t)
        for k, s in SQUARES
        for t in (F32, BF16, F16)
    ),
    *(Conv((14, 14), (k, k), stride=(s, s), B=8, C=320, dtype=BF16) for k, s in SQUARES),
    *(Conv((2048,), (k,), (k - 1, 0), C=256, dtype=t) for k in (2, 4, 7) for t in (F32, BF16)),
    *(Conv((1000,), (4,), (3, 0), C=64, documents=True, dtype=t) for t in (F32, BF16)),
    Conv((33, 47), (31, 31), C=20),
    Conv((28, 28), (3, 3), (2, 2, 2, 2), dilation=(2, 2), C=64, M=2),
    Conv((9, 20, 21), (3, 3, 3), C=24, dtype=BF16),
    Conv((40, 41), (3, 5), stride=(2, 3), C=20, dtype=F64),
    Conv((5, 4), (3, 3), B=300, C=250, dtype=F32),  # more than 16 bits of planes
)
SEPARABLE = both(
    *(Conv((56, 56), (3, 3), B=4, C=64, dtype=t) for t in (F64, F32, BF16, F16)),
    Conv((14, 14), (5, 5), stride=(2, 2), B=8, C=320, dtype=BF16),
    Conv((1000,), (4,), (3, 0), C=96, dtype=BF16),
)


@pytest.mark.parametrize("conv", CASES, ids=str)
def test_numbers(conv: Conv) -> None:
    assert_as_defined(conv)


@pytest.mark.parametrize("conv", SEPARABLE, ids=str)
@pytest.mark.parametrize("N", [24, 256])
def test_separable(conv: Conv, N: int) -> None:
    assert_separable(conv, N, ("relu6", "silu"), residual=True)


@pytest.fixture
def much_memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Of pytest's workers one at a time, if 20 GiB are free then."""
    # Workers have folders of their own, side by side in that of the run.
    common = tmp_path_factory.getbasetemp()
    common = common.parent if "PYTEST_XDIST_WORKER" in os.environ else common
    with open(common / "much-memory", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0]
        if free < 20 * 2**30:
            pytest.skip(f"needs 20 GiB of the GPU's memory, {free >> 30} are free")
        yield
        torch.cuda.empty_cache()  # for the next worker


@pytest.mark.large
@pytest.mark.usefixtures("much_memory")
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kernel", [3, 9])
def test_more_than_31_bits_of_numbers(kernel: int, last: bool) -> None:
    """The last image of a batch is as it is alone."""
    assert_the_last_image_is_as_alone(35, 64, 1000, kernel, last)  # 2.2e9 numbers


def assert_the_last_image_is_as_alone(B: int, C: int, size: int, kernel: int, last: bool) -> None:
    x = torch.zeros(B, size, size, C, dtype=BF16, device=DEVICE).movedim(-1, 1)
    x = x if last else x.contiguous()
    x[-1] = torch.randn(C, size, size, device=DEVICE).to(BF16)
    weight = torch.randn(C, 1, kernel, kernel, device=DEVICE).to(BF16)
    window = ((1, 1), (kernel // 2,) * 4, (1, 1))
    y, alone = (OPS.depthwise_conv(t, weight, None, *window) for t in (x, x[-1:].clone()))
    assert torch.equal(y[-1:], alone) and not y[0].any()
    dx = OPS.depthwise_conv_input_grad(y, weight, x.shape, *window)
    one = OPS.depthwise_conv_input_grad(alone, weight, alone.shape, *window)
    assert torch.equal(dx[-1:], one)
