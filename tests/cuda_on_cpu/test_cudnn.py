"""The tier that is torch's own cuDNN layer; cudnn_on_cpu.h stands in for it, and is as strict."""

from __future__ import annotations

import copy

import pytest
import torch
from layers import Case, assert_layer_is_accurate, make
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import adl_kernels
from adl_kernels import _C, functional
from adl_kernels.recurrent.cell_facts import CELLS

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
OF_TORCH = [name for name in CELLS if hasattr(torch._VF, name)]
RAGGED = (4, 4, 3, 1, 1)
KINDS = {
    "LSTM": (nn.LSTM, {}),
    "LSTM-projection": (nn.LSTM, {"proj_size": 5}),
    "GRU": (nn.GRU, {}),
    "RNN": (nn.RNN, {"nonlinearity": "relu"}),
}
every_kind = pytest.mark.parametrize("kind", KINDS)

CASES = [
    *(Case(cell, 3, 2, 4, 7, dtype) for cell in OF_TORCH for dtype in (F64, F32, BF16, F16)),
    *(Case(cell, 4, 5, 3, 7, F32, D=2, lengths=RAGGED) for cell in OF_TORCH),
    *(Case(cell, 2, 3, 3, 7, F32, bias=False) for cell in OF_TORCH),
    Case("lstm", 3, 4, 5, 9, F32, D=2, P=4),
    Case("lstm", 3, 4, 5, 9, F32, P=4, bias=False),
]


@pytest.fixture
def there(monkeypatch):
    monkeypatch.setenv("ADL_EMULATED_CUDNN", "1")


@pytest.fixture
def forced(there, monkeypatch):
    monkeypatch.setenv("ADL_CUDA_TIER", "cudnn")


class Calls(torch.utils._python_dispatch.TorchDispatchMode):
    """Our ops that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.namespace == "adl_kernels":
            self.names.append(op._opname)
        return op(*args, **(kwargs or {}))


def pair(kind: str, **options):
    cls, own = KINDS[kind]
    torchs = cls(6, 10, 2, bidirectional=True, **own, **options)
    ours = getattr(adl_kernels, cls.__name__)(6, 10, 2, bidirectional=True, **own, **options)
    ours.load_state_dict(torchs.state_dict())
    return ours, torchs


def trained(module, x, hx=None):
    y, state = module(x, hx)
    data = y.data if isinstance(y, PackedSequence) else y
    states = state if isinstance(state, tuple) else (state,)
    loss = sum(
        (t.float() * torch.arange(t.numel()).reshape(t.shape).sin()).sum() for t in (data, *states)
    )
    return [data, *states, *torch.autograd.grad(loss, list(module.parameters()))]


def assert_close(ours, expected, **tolerance):
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_layers(case, forced):
    with Calls() as calls:
        make(case).ours()
    assert calls.names == ["cudnn"]
    assert_layer_is_accurate(case)


@every_kind
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_stack_is_one_call(kind, packed, batch_first, forced):
    ours, torchs = pair(kind, batch_first=batch_first)
    x = torch.randn(4, 5, 6)
    if packed:
        lengths = torch.tensor(RAGGED if not batch_first else RAGGED[:4])
        x = pack_padded_sequence(x if batch_first else torch.randn(4, 5, 6), lengths, batch_first)
    with Calls() as calls:
        found = trained(ours, x)
    assert calls.names == ["cudnn_forward", "cudnn_backward"]
    assert_close(found, trained(torchs, x), rtol=1e-4, atol=1e-5)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode, Calls() as calls:
            y = ours(x)[0]
        assert calls.names == ["cudnn"]
        assert torch.equal(y.data if packed else y, found[0])


def test_dropout_between_layers_is_torchs(forced):
    ours, torchs = pair("GRU", dropout=0.5)
    x = torch.randn(4, 3, 6)
    results = []
    for module in (ours, torchs):
        torch.manual_seed(3)
        results.append(trained(module, x))
    assert_close(*results, rtol=1e-4, atol=1e-5)
    assert_close(trained(ours.eval(), x), trained(torchs.eval(), x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 2])
def test_backward_again(layers, forced):
    """cuDNN's reserve serves one backward: another runs forward once more."""
    module = adl_kernels.LSTM(5, 7, layers)
    y = module(torch.randn(3, 2, 5))[0]
    parameters = list(module.parameters())
    first = torch.autograd.grad(y.sum(), parameters, retain_graph=True)
    second = torch.autograd.grad(y.sum(), parameters)
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("layers", [1, 2])
def test_saved_tensors_may_be_copied(layers, forced):
    module, x = adl_kernels.GRU(5, 7, layers), torch.randn(3, 2, 5)
    expected = trained(module, x)
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone):
        y, h_n = module(x)
    loss = sum((t * torch.arange(t.numel()).reshape(t.shape).sin()).sum() for t in (y, h_n))
    found = torch.autograd.grad(loss, list(module.parameters()))
    assert all(map(torch.equal, found, expected[2:]))


@every_kind
def test_gradients_that_are_not_wanted_or_not_given(kind, forced):
    ours, torchs = pair(kind)
    x = torch.randn(4, 3, 6, requires_grad=True)
    results = []
    for module in (ours, torchs):
        for p in module.parameters():
            p.requires_grad_(False)
        module.weight_hh_l1.requires_grad_()
        state = module(x)[1]
        h_n = state[0] if isinstance(state, tuple) else state
        results.append(torch.autograd.grad(h_n.sin().sum(), [x, module.weight_hh_l1]))
    assert_close(*results, rtol=1e-4, atol=1e-5)


@every_kind
def test_second_derivatives(kind, forced):
    cls, own = KINDS[kind]
    for layers in (1, 2):
        module = getattr(adl_kernels, cls.__name__)(2, 6, layers, **own, dtype=F64)
        parameters = list(module.parameters())
        x = torch.randn(2, 2, 2, dtype=F64, requires_grad=True)

        def run(x, *_, module=module):
            return module(x)[0]

        assert torch.autograd.gradgradcheck(run, (x,))
        y = module(x)[0]
        first = torch.autograd.grad(y.square().sum(), parameters, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), parameters)
        assert all(g.isfinite().all() for g in second)


@pytest.mark.parametrize("layers", [1, 2])
def test_batched_gradients(layers, forced):
    module, x = adl_kernels.LSTM(3, 5, layers), torch.randn(3, 2, 3, requires_grad=True)
    y = module(x)[0]
    given = torch.randn(4, *y.shape)
    (batched,) = torch.autograd.grad(y, x, given, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(y, x, g, retain_graph=True)[0] for g in given]
    torch.testing.assert_close(batched, torch.stack(each), rtol=1e-4, atol=1e-5)


@every_kind
def test_compiled(kind, forced):
    """A traced graph has an op per layer, each of which is cuDNN's."""
    ours, torchs = pair(kind)
    graphs = []

    def backend(graph, example_inputs):
        from torch._dynamo.backends.common import aot_autograd
        from torch._inductor.compile_fx import compile_fx

        def note(inner, inputs):
            graphs.append([str(node.target) for node in inner.graph.nodes])
            return inner.forward

        aot_autograd(fw_compiler=note, bw_compiler=note)(graph, example_inputs)
        return compile_fx(graph, example_inputs)

    x = torch.randn(4, 3, 6)
    compiled = torch.compile(ours, backend=backend, fullgraph=True)
    found = trained(compiled, x)
    assert_close(found, trained(torchs, x), rtol=1e-4, atol=1e-5)
    ops = [name for name in graphs[0] if "adl_kernels" in name]
    assert ops == ["adl_kernels.cudnn_forward.default"] * 2
    assert_close(
        trained(compiled, torch.randn(4, 3, 6))[-1:], trained(ours, x)[-1:], rtol=9, atol=9
    )


def test_compiled_with_sizes_that_change(forced):
    ours, torchs = pair("LSTM")
    compiled = torch.compile(ours, fullgraph=True, dynamic=True)
    for T, B in ((4, 3), (6, 2), (9, 5)):
        x = torch.randn(T, B, 6)
        assert_close(trained(compiled, x), trained(torchs, x), rtol=1e-4, atol=1e-5)


def test_autocast(forced):
    ours, torchs = pair("LSTM")
    x = torch.randn(4, 3, 6)
    with torch.autocast("cpu", dtype=BF16), Calls() as calls:
        found = trained(ours, x)
    assert "cudnn_forward" in calls.names
    assert found[0].dtype == BF16 and found[-1].dtype == F32
    assert_close([t.float() for t in found], trained(torchs, x), rtol=0.2, atol=0.2)


def test_weights_in_one_buffer_are_used_as_they_lie(forced):
    """As flatten_parameters() leaves them: the stand-in complains of what we wrote between them."""
    case = Case("lstm", 3, 2, 4, 6, F32)
    layer = make(case)
    layer.ours()  # from here on the places are known
    flat = torch.zeros(8 + sum(w.numel() + 8 for w in layer.weights))
    at, views = 8, []
    for w in layer.weights:  # both matrices, then both biases
        view = flat[at : at + w.numel()].view(w.shape)
        view.copy_(w)
        views.append(view)
        at += w.numel() + 8
    expected = layer.ours()
    layer.weights = views
    assert all(map(torch.equal, layer.ours(), expected))
    flat[0] = 1
    with pytest.raises(RuntimeError, match="does not hold the weights"):
        layer.ours()
    layer.weights = [views[0], views[1], views[3], views[2]]  # in another order: copied
    layer.ours()


def test_arguments_that_do_not_fit_are_told_by_the_layer(forced):
    module = adl_kernels.LSTM(5, 7, 2)
    weights = list(module.parameters())
    with pytest.raises(RuntimeError, match="h_0"):
        module(torch.randn(3, 2, 5), (torch.zeros(2, 3, 7), torch.zeros(2, 3, 7)))
    with pytest.raises(RuntimeError, match="lstm: h_0 must be"):
        functional.lstm(torch.randn(3, 2, 5), (torch.zeros(3, 2, 7),) * 2, weights, num_layers=2)
    wrong = [torch.randn(28, 6), *weights[1:]]
    with pytest.raises(RuntimeError, match=r"lstm: weight_ih must be \[28, 5\]"):
        functional.lstm(torch.randn(3, 2, 5), (torch.zeros(2, 2, 7),) * 2, wrong, num_layers=2)


@pytest.mark.parametrize(
    "sizes, got",
    [
        (torch.tensor([[2], [1]]), "2-D Long on cpu"),
        (torch.tensor([2, 1], dtype=torch.int32), "1-D Int on cpu"),
        (torch.tensor(2), "0-D Long on cpu"),
    ],
    ids=["2-D", "int32", "0-D"],
)
@pytest.mark.parametrize("layers", [1, 2])
def test_batch_sizes_are_checked_before_they_are_read(sizes, got, layers, forced):
    module = adl_kernels.GRU(5, 7, layers)
    call = torch.randn(3, 5), torch.zeros(layers, 2, 7), list(module.parameters())
    with pytest.raises(RuntimeError, match=f"gru: batch_sizes must be a 1-D int64.* got {got}"):
        functional.gru(*call, num_layers=layers, batch_sizes=sizes)


@pytest.mark.parametrize(
    "cell, directions, message",
    [
        (99, 1, "cell must be between 0 and"),
        (-1, 1, "cell must be between 0 and"),
        (CELLS["lstm_general"].index, 1, "torch.nn has no lstm_general"),
        (CELLS["gru"].index, 3, "directions must be 1 or 2, got 3"),
        (CELLS["gru"].index, 2, "gru: weights must hold equally many|gru: h_0 must be"),
    ],
)
def test_arguments_of_the_ops_themselves(cell, directions, message, forced):
    weights = list(adl_kernels.GRU(5, 7).parameters())
    arguments = torch.randn(3, 2, 5), [torch.zeros(1, 2, 7)], weights, None
    with pytest.raises(RuntimeError, match=message), torch._C._AutoDispatchBelowAutograd():
        torch.ops.adl_kernels.cudnn(cell, directions, *arguments)


@pytest.mark.parametrize("layers", [1, 2])
def test_traced_by_jit(layers, forced):
    """The trace has an op per layer, which calls cuDNN when it runs."""
    module = adl_kernels.LSTM(5, 7, layers)
    traced = torch.jit.trace(module, (torch.randn(3, 2, 5),))
    x = torch.randn(4, 3, 5)
    with Calls() as calls:
        y = traced(x)[0]
    assert "cudnn" in calls.names or "cudnn_forward" in calls.names
    torch.testing.assert_close(y, module(x)[0], rtol=1e-4, atol=1e-5)


def test_an_empty_batch(forced):
    module = adl_kernels.GRU(5, 7, 2)
    y, h_n = module(torch.zeros(3, 0, 5))
    assert y.shape == (3, 0, 7) and h_n.shape == (2, 0, 7)
    y.sum().backward()


@pytest.mark.parametrize(
    "cell, more",
    [
        ("lstm", {"lengths": torch.tensor([2, 3])}),
        ("lstm", {"peephole": True}),
        ("gru", {"bptt_steps": 2}),
    ],
    ids=["lengths", "peephole", "bptt"],
)
def test_what_torch_does_not_have_is_not_cudnns(cell, more, there):
    kinds = {"lstm": adl_kernels.LSTM, "gru": adl_kernels.GRU}
    lengths = more.pop("lengths", None)
    module = kinds[cell](5, 7, **more)
    with Calls() as calls, torch.no_grad():
        module(torch.randn(3, 2, 5), lengths=lengths) if lengths is not None else module(
            torch.randn(3, 2, 5)
        )
    assert "cudnn" not in calls.names


def prefers(T: int, B: int, H: int, training: bool, dtype=BF16, layers: int = 1) -> bool:
    return _C.prefers_cudnn(
        CELLS["lstm"].index,
        1,
        torch.empty(T, B, H, dtype=dtype, requires_grad=training),
        [torch.empty(layers, B, H, dtype=dtype)] * 2,
        [torch.empty(4 * H, H, dtype=dtype)] * (4 * layers),
        None,
        dtype,
    )


def test_the_model_chooses(there, monkeypatch):
    """On an H100: few units by our kernels, exact float32 by cuDNN, a few steps by neither."""
    monkeypatch.setenv("ADL_EMULATED_SMS", "132")
    assert not prefers(100, 16, 256, True)
    assert prefers(100, 16, 768, False, F32) and prefers(100, 16, 768, True, F32)
    assert prefers(100, 16, 768, True, F64)
    assert not prefers(1, 16, 768, False, F32) and not prefers(3, 16, 768, True, F32)
    assert prefers(100, 256, 2048, True)
    monkeypatch.setenv("ADL_EMULATED_TF32", "1")
    assert not prefers(100, 16, 512, True, F32)
    monkeypatch.setenv("ADL_EMULATED_CUDNN", "0")
    assert not prefers(100, 256, 2048, True)
    monkeypatch.setenv("ADL_EMULATED_CUDNN", "1")
    monkeypatch.setenv("ADL_CUDA_TIER", "streaming")
    assert not prefers(100, 256, 2048, True)


def test_without_torchs_layer_the_tier_says_so(forced):
    with pytest.raises(RuntimeError, match="ADL_CUDA_TIER=cudnn does not serve hidden size"):
        make(Case("lstm_general", 2, 2, 2, 9, F32)).ours()


def test_a_copied_module_is_the_same(forced):
    module, x = adl_kernels.LSTM(5, 7, 2), torch.randn(3, 2, 5)
    assert torch.equal(module(x)[0], copy.deepcopy(module)(x)[0])
