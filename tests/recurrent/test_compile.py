"""torch.compile and torch.export: one node per layer, no recompilation, any T and B."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
from devices import DEVICE
from torch import nn
from torch._inductor.utils import fresh_inductor_cache

import adl_kernels as adl

LAYERS = [
    pytest.param(adl.LSTM, {}, id="lstm"),
    pytest.param(adl.LSTM, {"num_layers": 2, "bidirectional": True, "proj_size": 3}, id="lstm-all"),
    pytest.param(adl.GRU, {"num_layers": 2, "batch_first": True}, id="gru"),
    pytest.param(adl.RNN, {"bidirectional": True, "nonlinearity": "relu"}, id="rnn"),
]
VARIANTS = [
    pytest.param(adl.LSTM, {"forget_gate": "coupled", "peephole": True}, id="coupled"),
    pytest.param(adl.LSTM, {"layer_norm": True, "return_all_states": True}, id="layer-norm"),
    pytest.param(adl.GRU, {"reset_after": False, "num_layers": 2}, id="reset-before"),
    pytest.param(adl.RNN, {"nonlinearity": "sigmoid", "bptt_steps": 2}, id="sigmoid"),
    pytest.param(adl.LSTM, {"zoneout": 0.1, "recurrent_dropout": 0.2}, id="masks"),
]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()


class Graphs:
    """A backend that keeps the graphs it is given and runs them as they are."""

    def __init__(self):
        self.graphs = []

    def __call__(self, graph, inputs):
        self.graphs.append(graph)
        return graph


def nodes(graph):
    """The names of our ops in a graph."""
    targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    return [name.removesuffix(".default") for name in targets if "adl_kernels" in name]


def make_input(module, T=5, B=3):
    shape = (B, T, module.input_size) if module.batch_first else (T, B, module.input_size)
    return torch.randn(shape, device=DEVICE)


@pytest.mark.parametrize("cls, options", LAYERS)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_fullgraph_has_one_node_per_layer(cls, options, training):
    module = cls(6, 8, **options, device=DEVICE).train(training)
    backend = Graphs()
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    x = make_input(module)
    output, _ = compiled(x)
    torch.testing.assert_close(output, module(x)[0])
    (graph,) = backend.graphs
    assert nodes(graph) == [f"adl_kernels.{module.mode.lower()}"] * module.num_layers


@pytest.mark.parametrize("cls, options", LAYERS)
def test_compiled_training_gives_the_same_gradients(cls, options):
    module = cls(6, 8, **options, device=DEVICE)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    x = make_input(module)
    hx_shape = (module.num_layers * (2 if module.bidirectional else 1), 3)
    h_0 = torch.randn(*hx_shape, module.proj_size or 8, device=DEVICE, requires_grad=True)
    hx = (h_0, torch.randn(*hx_shape, 8, device=DEVICE)) if module.mode == "LSTM" else h_0
    grads = []
    for run in (module, compiled):
        module.zero_grad()
        output, hidden = run(x, hx)
        final = hidden[0] if isinstance(hidden, tuple) else hidden
        (output.square().sum() + final.sum()).backward()
        grads.append([p.grad.clone() for p in module.parameters()])
    for eager, other in zip(*grads, strict=True):
        torch.testing.assert_close(eager, other)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_no_recompilation_for_another_length_or_batch(training):
    module = adl.LSTM(6, 8, 2, device=DEVICE).train(training)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, backend=counter, fullgraph=True, dynamic=True)
    compiled(make_input(module))
    compilations = counter.frame_count
    for T, B in ((9, 3), (5, 7), (100, 2), (2, 31)):
        x = make_input(module, T, B)
        output, _ = compiled(x)
        if training:
            output.sum().backward()
        torch.testing.assert_close(output, module(x)[0])
    assert counter.frame_count == compilations


def test_the_graph_does_not_grow_with_the_length():
    """What is compiled, and so the time it takes, is the same for 3 and for 3000 steps."""
    sizes = []
    for T in (3, 3000):
        torch._dynamo.reset()
        backend = Graphs()
        module = adl.GRU(6, 8, device=DEVICE)
        torch.compile(module, backend=backend, fullgraph=True)(make_input(module, T))
        sizes.append(len(backend.graphs[0].graph.nodes))
    assert sizes[0] == sizes[1]


@pytest.mark.slow
def test_inductor_and_a_model_around_the_layer():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(11, 6)
            self.rnn = adl.LSTM(6, 8, batch_first=True)
            self.cell = adl.GRUCell(8, 5)
            self.head = nn.Linear(5, 11)

        def forward(self, tokens):
            return self.head(self.cell(self.rnn(self.embedding(tokens))[0][:, -1]).relu())

    model, tokens = Model().to(DEVICE), torch.randint(11, (3, 7), device=DEVICE)
    grads = []
    # The cache on disk ignores the schemas of custom ops: other builds leave their graphs there.
    with fresh_inductor_cache():
        for run in (model, torch.compile(model, fullgraph=True)):
            model.zero_grad()
            run(tokens).square().sum().backward()
            grads.append([p.grad.clone() for p in model.parameters()])
    for eager, other in zip(*grads, strict=True):
        torch.testing.assert_close(eager, other)


def test_compile_under_autocast():
    module = adl.GRU(6, 8, device=DEVICE)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    x = make_input(module)
    with torch.autocast(DEVICE, torch.bfloat16):
        output, eager = compiled(x)[0], module(x)[0]
    assert output.dtype == eager.dtype == torch.bfloat16
    torch.testing.assert_close(output, eager)


@pytest.mark.parametrize("cls, options", LAYERS)
def test_export_keeps_the_op_with_dynamic_length_and_batch(cls, options):
    module = cls(6, 8, **options, device=DEVICE).eval()
    x = make_input(module)
    T, B = torch.export.Dim("T", min=2), torch.export.Dim("B", min=2)
    order = (B, T) if module.batch_first else (T, B)
    exported = torch.export.export(module, (x,), dynamic_shapes={"input": dict(enumerate(order))})
    for program in (exported, exported.run_decompositions()):
        ours = nodes(program.graph_module)
        assert ours == [f"adl_kernels.{module.mode.lower()}"] * module.num_layers
        for T_new, B_new in ((5, 3), (17, 4)):
            x = make_input(module, T_new, B_new)
            torch.testing.assert_close(program.module()(x)[0], module(x)[0])


def test_meta_tensors_have_the_shapes_of_the_result():
    module = adl.LSTM(6, 8, 2, bidirectional=True, proj_size=3, device="meta")
    output, (h_n, c_n) = module(torch.empty(5, 3, 6, device="meta"))
    assert (output.shape, h_n.shape, c_n.shape) == ((5, 3, 6), (4, 3, 3), (4, 3, 8))
    output.sum().backward()
    assert module.weight_hr_l1.grad.shape == (3, 8)


@pytest.mark.parametrize("cls, options", VARIANTS)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_fullgraph_of_what_torch_has_not(cls, options, training):
    module = cls(6, 8, **options, device=DEVICE).train(training)
    module.dropout_seed = torch.tensor([3])
    backend = Graphs()
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    x, lengths = make_input(module), torch.tensor([2, 5, 0], device=DEVICE)
    reset = torch.rand(5, 3, device=DEVICE) < 0.3
    found, expected = (run(x, lengths=lengths, reset=reset) for run in (compiled, module))
    torch.testing.assert_close(found, expected)
    (graph,) = backend.graphs
    assert sum(name.endswith(module._cell.name) for name in nodes(graph)) == module.num_layers


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"peephole": True, "zoneout": 0.2}])
def test_backward_under_compiled_autograd(options):
    torch.manual_seed(0)
    module = adl.LSTM(6, 8, **options, device=DEVICE).eval()
    x, wanted = torch.randn(5, 3, 6, device=DEVICE), list(module.parameters())
    expected = torch.autograd.grad(module(x)[0].sum(), wanted)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        module(x)[0].sum().backward()
    for parameter, gradient in zip(wanted, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def nodes_of(module, *args, grad=False):
    """The operators that a compiler gets."""
    found = []

    def note(graph, example):
        found.extend(str(n.target) for n in graph.graph.nodes if n.op == "call_function")
        return graph.forward

    torch._dynamo.reset()
    with torch.set_grad_enabled(grad):
        torch.compile(module, backend=note, fullgraph=True)(*args)
    return [name for name in found if "adl_kernels" in name]


@pytest.mark.cpu_only
@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_compiled_cells_are_torchs_where_these_are_faster(kind):
    cell = getattr(adl, kind)(4, 128)
    few, many = torch.randn(127, 4), torch.randn(128, 4)
    assert not nodes_of(cell, few) and not nodes_of(cell, many, grad=True)
    assert not nodes_of(cell, few[0])
    assert len(nodes_of(cell, many)) == 1
    assert len(nodes_of(cell.bfloat16(), few.bfloat16())) == 1
    cell.float()
    with torch.no_grad():
        program = torch.export.export(cell, (few,))
        assert sum("adl_kernels" in str(n.target) for n in program.graph.nodes) == 1
        for x in (few, many, few[0]):
            torch.testing.assert_close(torch.compile(cell, backend="aot_eager")(x), cell(x))
