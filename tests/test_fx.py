"""torch.fx.symbolic_trace and torch.ao.quantization: our layers are leaves, as torch's are."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.ao import quantization
from torch.ao.quantization.quantize_fx import convert_fx, fuse_fx, prepare_fx
from torch.fx.experimental.optimization import fuse

import adl_kernels as adl

pytestmark = [pytest.mark.cpu_only, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


class Net(nn.Module):
    """Every class that convert replaces, states given and left out."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, groups=4, padding=1)
        self.bn, self.relu, self.point = nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 1)
        self.line = nn.Conv1d(8, 8, 3, groups=8, padding="same")
        self.volume = nn.Conv3d(4, 4, 1, groups=4)
        self.lstm = nn.LSTM(8, 6, 2, batch_first=True)
        self.gru = nn.GRU(6, 5, bidirectional=True, batch_first=True)
        self.rnn = nn.RNN(10, 5, batch_first=True)
        self.cells = nn.ModuleList([nn.LSTMCell(5, 5), nn.GRUCell(5, 5), nn.RNNCell(5, 5)])
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = self.volume(x.unsqueeze(2)).squeeze(2)
        y = self.line(self.point(self.relu(self.bn(self.conv(x)))).flatten(2)).transpose(1, 2)
        y, (h, _) = self.lstm(y)
        y, _ = self.gru(y, h[:, :, :5])
        y, _ = self.rnn(y)
        h, c = self.cells[0](y[:, -1])
        h, c = self.cells[0](y[:, 0], (h, c))
        return self.head(self.cells[2](self.cells[1](h, c)))


def nodes(graph):
    return [(n.op, str(n.target), str(n.args), str(n.kwargs)) for n in graph.graph.nodes]


@pytest.mark.parametrize("training", [True, False])
def test_the_graph_is_that_of_torchs_layers(training):
    net, x = Net().train(training), torch.randn(2, 4, 5, 5)
    expected = nodes(torch.fx.symbolic_trace(net))
    assert len(adl.convert(net).replaced) == 9
    graph = torch.fx.symbolic_trace(net)
    assert nodes(graph) == expected
    for run in (graph, copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        run.train(training)
        torch.testing.assert_close(run(x), net(x))
    graph(x).sum().backward()
    assert all(p.grad is not None for p in net.gru.parameters())
    assert vars(net).keys() == vars(Net()).keys()  # nothing of the trace stays on the model


def test_arguments_that_torch_has_not_are_part_of_the_node():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.causal = adl.LSTM(4, 5, num_layers=2), adl.CausalConv1d(4, 3)

        def forward(self, x, lengths, reset):
            y = self.causal(x.permute(1, 2, 0), lengths=lengths).permute(2, 0, 1)
            return self.rnn(y, lengths=lengths)[0] + self.rnn(y, reset=reset)[0]

    model = Model()
    args = (torch.randn(6, 3, 4), torch.tensor([6, 2, 4]), torch.rand(6, 3) < 0.3)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(*args), model(*args))


def test_fusers_on_graphs_leave_our_layers_alone():
    net, x = Net().eval(), torch.randn(2, 4, 5, 5)
    adl.convert(net)
    for run in (fuse, fuse_fx):
        torch.testing.assert_close(run(copy.deepcopy(net))(x), net(x))


@pytest.mark.parametrize("dynamic", [True, False])
def test_quantization_keeps_our_layers_in_float(dynamic):
    torch.use_deterministic_algorithms(False)  # of which torch's int8 kernels have none
    net, x = Net().eval(), torch.randn(2, 4, 5, 5)
    adl.convert(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mapping = quantization.get_default_qconfig_mapping("x86")
        if dynamic:
            qconfig = quantization.default_dynamic_qconfig
            mapping = quantization.QConfigMapping().set_global(qconfig)
        prepared = prepare_fx(copy.deepcopy(net), mapping, (x,))
        prepared(x)
        quantized = convert_fx(prepared)
    assert type(quantized.lstm) is adl.LSTM and type(quantized.conv) is adl.DepthwiseConv2d
    assert type(quantized.head) is not nn.Linear
    torch.testing.assert_close(quantized(x), net(x), rtol=0, atol=0.1)


def test_fuse_modules_takes_torchs_layers():
    """It looks classes up; revert gives them back."""
    net, x = Net().eval(), torch.randn(2, 4, 5, 5)
    expected = net(x)
    adl.convert(net)
    names = [["conv", "bn", "relu"]]
    with pytest.raises(AssertionError, match=r"did not find fuser.*DepthwiseConv2d"):
        quantization.fuse_modules(copy.deepcopy(net), names)
    adl.revert(net)
    fused = quantization.fuse_modules(net, names)
    assert "conv.0" in {path for path, *_ in adl.convert(fused).replaced}
    torch.testing.assert_close(fused(x), expected)


@pytest.mark.parametrize("training", [True, False])
def test_blocks_are_seen_through(training):
    block = adl.SeparableConv2d(4, 6, 3, norm=True, dw_activation="relu")
    net = nn.Sequential(block, adl.SpatiallySeparableConv2d(6, 3)).train(training)
    graph = torch.fx.symbolic_trace(net)
    called = [str(n.target) for n in graph.graph.nodes if n.op == "call_module"]
    assert called == ["0.depthwise", "0.pointwise", "0.norm", "1.column", "1.row"]
    x = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(graph(x), net(x), rtol=1e-4, atol=1e-5)
