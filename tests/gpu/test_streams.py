"""How a GPU is driven: streams, graphs, several devices, and never waiting for the host."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from devices import DEVICE
from pairs import KINDS
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

T, B, I = 20, 8, 24
LENGTHS = torch.tensor([20, 17, 17, 9, 4, 2, 1, 1])
SIZES = pack_padded_sequence(torch.empty(T, B, 1), LENGTHS).batch_sizes

every_kind = pytest.mark.parametrize("kind", KINDS)
# Hidden sizes that each tier serves.
TIERS = {"block": 64, "cluster": 200, "grid": 768, "streaming": 200, "cudnn": 200}
CLUSTERS = torch.cuda.get_device_capability() >= (9, 0) if torch.cuda.is_available() else False


@pytest.fixture
def H(request: pytest.FixtureRequest, tf32: bool, monkeypatch: pytest.MonkeyPatch) -> int:
    """Of the tier that is the fixture's parameter, in which the test's layers then run; float32 as
    tf32, in which every tier has it."""
    if request.param == "cluster" and not CLUSTERS:
        pytest.skip("this GPU has no clusters")
    monkeypatch.setenv("ADL_CUDA_TIER", request.param)
    return TIERS[request.param]


every_size = pytest.mark.parametrize("H", TIERS, indirect=True)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
every_form = pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])


def make(kind: str, H: int, dtype: torch.dtype, device: str = DEVICE) -> nn.RNNBase:
    _, cls, options = KINDS[kind]
    return cls(I, H, 2, bidirectional=True, **options, dtype=dtype, device=device)


def inputs(count: int, dtype: torch.dtype, packed: bool, device: str = DEVICE) -> list[Tensor]:
    """Of shape [T, B, I], or the data of a PackedSequence."""
    shape = (int(LENGTHS.sum()), I) if packed else (T, B, I)
    return [torch.randn(shape, dtype=dtype, device=device) for _ in range(count)]


def as_input(x: Tensor, packed: bool) -> Any:
    return PackedSequence(x, SIZES) if packed else x


def infer(module: nn.RNNBase, x: Tensor, packed: bool) -> list[Tensor]:
    with torch.no_grad():
        y, hx = module(as_input(x, packed))
    return [y.data if packed else y, *(hx if isinstance(hx, tuple) else [hx])]


def train(module: nn.RNNBase, x: Tensor, packed: bool) -> list[Tensor]:
    y = module(as_input(x, packed))[0]
    y = y.data if packed else y
    return [y, *torch.autograd.grad(y.float().square().sum(), list(module.parameters()))]


every_mode = pytest.mark.parametrize("run", [infer, train], ids=lambda run: run.__name__)


def assert_same(ours: list[Tensor], expected: list[Tensor]) -> None:
    assert all(map(torch.equal, ours, expected)) and len(ours) == len(expected)


# Graphs


@every_kind
@every_size
@every_dtype
@every_form
@every_mode
def test_a_captured_call_is_replayed_on_other_numbers(
    kind: str, H: int, dtype: torch.dtype, packed: bool, run: Any
) -> None:
    """Whatever would wait for the host, or work on another stream, is an error while capturing."""
    module = make(kind, H, dtype)
    first, second = inputs(2, dtype, packed)
    expected = run(module, second, packed)
    x = first.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(module, x, packed)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run(module, x, packed)
    for _ in range(2):
        x.copy_(second)
        graph.replay()
        assert_same(outputs, expected)


@every_kind
@every_size
def test_make_graphed_callables(kind: str, H: int) -> None:
    class Output(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = make(kind, H, torch.float32)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)[0]

    module = Output()
    sample, x = (x.requires_grad_() for x in inputs(2, torch.float32, False))
    y = module(x)
    expected = [y, *torch.autograd.grad(y.sin().sum(), [x, *module.parameters()])]
    expected = [t.detach().clone() for t in expected]
    graphed = torch.cuda.make_graphed_callables(module, (sample,))
    y = graphed(x)
    found = [y, *torch.autograd.grad(y.sin().sum(), [x, *module.parameters()])]
    assert_same(found, expected)


# Streams


@every_kind
@every_size
@every_form
@every_mode
def test_work_is_queued_on_the_current_stream(kind: str, H: int, packed: bool, run: Any) -> None:
    module = make(kind, H, torch.float32)
    (source,) = inputs(1, torch.float32, packed)
    expected = run(module, source, packed)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # some 25 ms: what ran elsewhere would find x unwritten
        x = torch.empty_like(source).copy_(source)
        outputs = run(module, x, packed)
    stream.synchronize()
    assert_same(outputs, expected)


@every_kind
@every_size
def test_scratch_memory_is_not_given_to_another_stream_too_early(kind: str, H: int) -> None:
    module = make(kind, H, torch.float32)
    xs = inputs(4, torch.float32, False)
    expected = [train(module, x, False) for x in xs]
    streams = [torch.cuda.Stream() for _ in xs]
    torch.cuda.synchronize()
    found = []
    for _ in range(3):
        found.clear()
        for x, stream in zip(xs, streams, strict=True):
            with torch.cuda.stream(stream):
                torch.cuda._sleep(2_000_000)
                found.append(train(module, x, False))
            torch.full((4 << 20,), float("nan"), device=DEVICE)  # takes whatever is free
        torch.cuda.synchronize()
        for ours, theirs in zip(found, expected, strict=True):
            assert_same(ours, theirs)


@every_kind
def test_backward_runs_on_the_stream_of_forward(kind: str) -> None:
    module = make(kind, 64, torch.float32)
    (x,) = inputs(1, torch.float32, False)
    expected = train(module, x, False)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        y = module(x)[0]
        loss = y.square().sum()
    found = [y, *torch.autograd.grad(loss, list(module.parameters()))]  # outside
    torch.cuda.synchronize()
    assert_same(found, expected)


# The host


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_kind
@every_size
@every_dtype
@every_form
@every_mode
def test_the_host_never_waits(
    kind: str, H: int, dtype: torch.dtype, packed: bool, run: Any
) -> None:
    module = make(kind, H, dtype)
    (x,) = inputs(1, dtype, packed)
    run(module, x, packed)
    with no_waiting():
        run(module, x, packed)


@every_kind
def test_the_host_is_far_ahead(kind: str) -> None:
    """A call returns while the GPU is still busy with what came before."""
    module = make(kind, 64, torch.float32)
    (x,) = inputs(1, torch.float32, False)
    train(module, x, False)
    torch.cuda.synchronize()
    torch.cuda._sleep(400_000_000)  # some 200 ms
    before = torch.cuda.Event()
    before.record()
    train(module, x, False)
    assert not before.query()
    torch.cuda.synchronize()


# Two GPUs

two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@two_gpus
@every_kind
@every_size
def test_a_layer_on_a_device_that_is_not_the_current_one(kind: str, H: int) -> None:
    module = make(kind, H, torch.float32)
    (x,) = inputs(1, torch.float32, False)
    expected = train(module, x, False)
    module.to("cuda:1")
    assert torch.cuda.current_device() == 0
    found = train(module, x.to("cuda:1"), False)
    assert torch.cuda.current_device() == 0
    assert all(t.device == torch.device("cuda:1") for t in found)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.to(DEVICE), b, rtol=1e-5, atol=1e-5)
