"""Teams of blocks on a GPU: what the emulator cannot show, at the sizes they are for."""

from __future__ import annotations

import pytest
import torch
from devices import DEVICE
from layers import Case, assert_layer_is_accurate, gradients, make

import adl_kernels
from adl_kernels.recurrent.cell_facts import CELLS

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
SERVED = [name for name in CELLS if name != "gru_reset_before"]
RAGGED = (40, 33, 33, 20, 7, 1)
CLUSTERS = torch.cuda.get_device_capability() >= (9, 0) if torch.cuda.is_available() else False
TIERS = ["cluster"] * CLUSTERS + ["grid"]
pytestmark = pytest.mark.usefixtures("tf32")  # teams multiply float32 as tf32 alone
every_tier = pytest.mark.parametrize("tier", TIERS)

CASES = {
    "cluster": [
        *(Case(cell, 50, 16, 64, 256, dtype) for cell in SERVED for dtype in (BF16, F16, F32)),
        *(Case(cell, 40, 6, 33, 200, BF16, D=2, lengths=RAGGED) for cell in SERVED),
        Case("lstm", 50, 64, 64, 512, BF16, D=2),
        Case("lstm", 20, 300, 16, 256, F16),
        Case("lstm", 20, 5, 16, 333, BF16),
    ],
    "grid": [
        *(Case(cell, 50, 16, 64, 768, dtype) for cell in SERVED for dtype in (BF16, F16, F32)),
        *(Case(cell, 40, 6, 33, 1024, BF16, D=2, lengths=RAGGED) for cell in SERVED),
        Case("lstm", 20, 64, 64, 1024, BF16),
        Case("lstm", 20, 300, 16, 512, F16, D=2),
        Case("gru", 20, 1, 16, 1536, BF16),
    ],
}


@pytest.mark.parametrize("name, case", [(t, c) for t in TIERS for c in CASES[t]], ids=str)
def test_at_most_twice_the_error_of_cudnn(
    name: str, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADL_CUDA_TIER", name)
    assert_layer_is_accurate(case, tf32=True)


@pytest.mark.parametrize("name, case", [(t, c) for t in TIERS for c in CASES[t][::5]], ids=str)
def test_the_same_bits_every_time(name: str, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADL_CUDA_TIER", name)
    layer = make(case)
    cotangents = [torch.randn_like(t) for t in layer.ours()]
    outputs, grads = gradients(layer, type(layer).ours, cotangents)
    for _ in range(20):
        again = gradients(layer, type(layer).ours, cotangents)
        assert all(map(torch.equal, [*outputs, *grads], [*again[0], *again[1]]))


def trained(module: torch.nn.Module, x: torch.Tensor, **asked: torch.Tensor) -> list[torch.Tensor]:
    y = module(x, **asked)[0]
    return [y, *torch.autograd.grad(y.float().square().mean(), list(module.parameters()))]


def assert_near(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 0.05 * b.abs().max()


# Units that need as many blocks as a tier has.
UNITS = {"cluster": 256, "grid": 768}


@every_tier
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_lengths_and_resets_as_the_streaming_kernels_have_them(
    kind: str, tier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_as_streamed(tier, monkeypatch, kind, 40, 20, UNITS[tier], extras=True)


@pytest.mark.large
@every_tier
def test_more_than_16_bits_of_steps(tier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_as_streamed(tier, monkeypatch, "LSTM", 70_000, 2, UNITS[tier])


def assert_as_streamed(
    tier: str,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    T: int,
    B: int,
    H: int,
    extras: bool = False,
) -> None:
    module = getattr(adl_kernels, kind)(16, H, bidirectional=extras, device=DEVICE, dtype=BF16)
    x = torch.randn(T, B, 16, device=DEVICE, dtype=BF16)
    asked = {}
    if extras:
        asked["lengths"] = torch.randint(0, T + 1, (B,), device=DEVICE)
        asked["reset"] = torch.rand(T, B, device=DEVICE) < 0.1
    results = []
    for name in ("streaming", tier):
        monkeypatch.setenv("ADL_CUDA_TIER", name)
        results.append(trained(module, x, **asked))
    assert_near(results[1], results[0])


# Units of which a team or two fill the GPU.
FULL = {"cluster": 512, "grid": 1024}


@every_tier
def test_several_streams_at_once(tier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grids of which each would fill the GPU must not wait for each other's places."""
    monkeypatch.setenv("ADL_CUDA_TIER", tier)
    module = adl_kernels.LSTM(64, FULL[tier], device=DEVICE, dtype=BF16)
    xs = [torch.randn(200, 16, 64, device=DEVICE, dtype=BF16) for _ in range(4)]
    expected = [trained(module, x) for x in xs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in xs]
    found = []
    for x, stream in zip(xs, streams, strict=True):
        with torch.cuda.stream(stream):
            found.append(trained(module, x))
    torch.cuda.synchronize()
    for ours, theirs in zip(found, expected, strict=True):
        assert all(map(torch.equal, ours, theirs))
