"""convert of depthwise convolutions and whole chains: same keys and results, honest reports."""

from __future__ import annotations

import copy
import pickle
import types

import pytest
import torch
from test_conv_modules import ops_in, trained
from torch import nn
from torch.nn import functional as F

import adl_kernels as adl
from adl_kernels.depthwise.fuse import FusedSequential

pytestmark = pytest.mark.cpu_only


def layers(i, o, k=3, stride=1, groups=1, act=nn.ReLU6):
    conv = nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(o), *([act()] if act else [])]


class Inverted(nn.Module):
    """As in MobileNetV2: the convolutions in an nn.Sequential, the addition around it."""

    def __init__(self, i, o, stride):
        super().__init__()
        self.adds, h = stride == 1 and i == o, 2 * i
        self.conv = nn.Sequential(
            nn.Sequential(*layers(i, h, 1)),
            nn.Sequential(*layers(h, h, 3, stride, h)),
            *layers(h, o, 1, act=None),
        )

    def forward(self, x):
        return x + self.conv(x) if self.adds else self.conv(x)


class Timm(nn.Module):
    """Names and order of timm's; activations are functions, one path is dropped out."""

    def __init__(self, c):
        super().__init__()
        self.conv_dw, self.bn1 = nn.Conv2d(c, c, 5, padding=2, groups=c), nn.BatchNorm2d(c)
        self.se, self.drop_path = nn.Identity(), nn.Dropout(0.1)
        self.conv_pw, self.bn2 = nn.Conv2d(c, c, 1), nn.BatchNorm2d(c)

    def forward(self, x):
        y = self.se(F.silu(self.bn1(self.conv_dw(x))))
        return self.drop_path(self.bn2(self.conv_pw(y))) + x


class Deciding(nn.Module):
    """A decision by numbers, which no trace could follow."""

    def __init__(self, c):
        super().__init__()
        self.body = nn.Sequential(*layers(c, c, 3, 1, c, nn.Hardswish), *layers(c, c, 1, act=None))

    def forward(self, x):
        y = self.body(x)
        return y if y.sum() > 1e9 else y * 2


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(*layers(3, 8, stride=2))
        self.flat = nn.Sequential(*layers(8, 8, 3, 1, 8, nn.ReLU), *layers(8, 16, 1, act=nn.ReLU),
                                  *layers(16, 16, 3, 2, 16), *layers(16, 16, 1))  # fmt: skip
        self.inverted = nn.Sequential(Inverted(16, 16, 1), Inverted(16, 24, 2))
        self.timm, self.odd = Timm(24), Deciding(24)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        y = self.odd(self.timm(self.inverted(self.flat(self.stem(x)))))
        return self.head(y.mean((2, 3)))


@pytest.fixture
def net():
    return trained(Net(), torch.randn(4, 3, 32, 32))


X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
CHAINS = {
    "flat.0": "depthwise + batch norm + relu + 1x1 + batch norm + relu",
    "flat.6": "depthwise + batch norm + relu6 + 1x1 + batch norm + relu6",
    "inverted.0.conv.1.0": "depthwise + batch norm + relu6 + 1x1 + batch norm",
    "inverted.1.conv.1.0": "depthwise + batch norm + relu6 + 1x1 + batch norm",
    "odd.body.0": "depthwise + batch norm + hardswish + 1x1 + batch norm",
}


def test_every_depthwise_convolution_is_replaced(net):
    expected, keys = net(X), list(net.state_dict())
    report = adl.convert(net)
    assert sorted(path for path, *_ in report.replaced) == sorted([*CHAINS, "timm.conv_dw"])
    assert list(net.state_dict()) == keys and isinstance(net.flat[0], adl.DepthwiseConv2d)
    assert type(net.stem[0]) is nn.Conv2d and type(net.flat[3]) is nn.Conv2d
    torch.testing.assert_close(net(X), expected, rtol=1e-4, atol=1e-5)
    assert "-> adl_kernels.DepthwiseConv2d: 3x3 depthwise kernel on cpu" in str(report)
    assert len(adl.revert(net).replaced) == 6 and type(net.flat[0]) is nn.Conv2d
    assert torch.equal(net(X), expected)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("cls", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_padding_modes_and_dimensions(cls, mode):
    conv, n = cls(4, 8, 3, padding=1, groups=4, padding_mode=mode), int(cls.__name__[4])
    model, x = nn.Sequential(conv), torch.randn(2, 4, *[6] * n)
    expected = model(x)
    report = adl.convert(model)
    assert isinstance(conv, getattr(adl, f"DepthwiseConv{n}d"))
    assert f"after torch pads ({mode})" in str(report)
    torch.testing.assert_close(model(x), expected)


def test_whole_chains_are_one_op(net):
    with torch.no_grad():
        expected, keys = net(X), list(net.state_dict())
        report = adl.convert(net, fuse="inference", verify=X)
        assert {path: text for path, text, _ in report.fused} == CHAINS
        assert "6 replaced, 0 left, 5 fused" in str(report)
        assert report.not_fused == [
            ("timm.conv_dw", "is not in an nn.Sequential, whose order is known")
        ]
        assert list(net.state_dict()) == keys
        torch.testing.assert_close(net(X), expected, rtol=1e-4, atol=1e-4)
        assert sorted(ops_in(lambda: net(X))) == ["depthwise_conv", *["separable_conv"] * 5]
        assert ops_in(lambda: net.flat[:3](torch.randn(1, 8, 5, 5))) == ["depthwise_conv"]


def test_training_goes_on_and_eval_sees_what_was_learnt(net):
    other = copy.deepcopy(net)
    adl.convert(net, fuse="inference")
    with torch.no_grad():
        net(X)
    for model in (net, other):
        torch.manual_seed(3)
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            model(X).square().sum().backward()
            optimizer.step()
        model.eval()
    with torch.no_grad():
        torch.testing.assert_close(net(X), other(X), rtol=1e-3, atol=1e-3)
        assert len(ops_in(lambda: net(X))) == 6


def test_gradients_in_eval_take_the_modules_one_by_one(net):
    expected = net(X)
    adl.convert(net, fuse="inference")
    y = net(X)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    y.sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_revert_undoes_it(net):
    classes = [type(m) for m in net.modules()]
    adl.convert(net, fuse="inference")
    assert sum(isinstance(m, FusedSequential) for m in net.modules()) == 4
    with torch.no_grad():
        net(X)
    adl.revert(net)
    assert [type(m) for m in net.modules()] == classes
    assert not any("_folders" in vars(m) for m in net.modules())


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copied", "pickled"]
)
def test_copies_are_fused_and_independent(net, way):
    adl.convert(net, fuse="inference")
    with torch.no_grad():
        expected = net(X)
        other = way(net)
        torch.testing.assert_close(other(X), expected)
        assert len(ops_in(lambda: other(X))) == 6
        other.flat[0].weight.zero_()
        assert torch.equal(net(X), expected) and not torch.equal(other(X), expected)


def test_compile_and_export_of_a_fused_model():
    torch._dynamo.reset()
    net = trained(nn.Sequential(Inverted(8, 8, 1), Inverted(8, 9, 2)), torch.randn(4, 8, 9, 9))
    adl.convert(net, fuse="inference")
    x = torch.randn(2, 8, 9, 9)
    with torch.no_grad():
        expected = net(x)
        compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), expected)
        program = torch.export.export(net, (x,))
        torch.testing.assert_close(program.module()(x), expected)
    # torch's own operators, which Inductor fuses, and which run where this package is not installed
    assert not any("adl_kernels" in str(node.target) for node in program.graph.nodes)


def test_hooks_and_exchanged_modules_are_respected(net):
    adl.convert(net, fuse="inference")
    seen = []
    with torch.no_grad():
        handle = net.flat[1].register_forward_hook(lambda *_: seen.append(1))
        net(X)
        assert seen == [1]
        handle.remove()
        net.flat[2] = nn.Sigmoid()
        y = net(X)
        adl.revert(net)
        torch.testing.assert_close(net(X), y, rtol=1e-4, atol=1e-4)


def test_what_is_no_chain_is_left():
    class Reads(nn.Module):  # what lies between is needed elsewhere
        def __init__(self):
            super().__init__()
            self.dw, self.pw = nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            y = self.dw(x)
            return self.pw(y) + y

    body = [nn.Conv2d(4, 4, 3, groups=4), nn.GELU(), nn.Conv2d(4, 4, 1)]
    grouped = [nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 1, groups=2)]
    norm = [nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4, track_running_stats=False)]
    norm.append(nn.Conv2d(4, 4, 1))
    for model in (Reads(), *(nn.Sequential(*parts) for parts in (body, grouped, norm))):
        report = adl.convert(model.eval(), fuse="inference")
        assert not report.fused and len(report.replaced) == 1


def test_keep_keeps_from_being_fused(net):
    with torch.no_grad():
        classes, expected = [type(m) for m in net.flat.modules()], net(X)
        report = adl.convert(net, fuse="inference", keep=["flat"])
        assert [type(m) for m in net.flat.modules()] == classes
        assert {path for path, *_ in report.fused} == {p for p in CHAINS if "flat" not in p}
        assert ("flat.0", "is in an nn.Sequential with a chain to be kept") in report.not_fused
        adl.revert(net)
        report = adl.convert(net, fuse="inference", keep=["flat.1", "odd.body.4", nn.LSTM])
        assert {path for path, *_ in report.fused} == {p for p in CHAINS if "inv" in p}
        assert not adl.convert(Net().eval(), fuse="inference", keep=nn.BatchNorm2d).fused
        torch.testing.assert_close(net(X), expected, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_one_op_is_not_said_to_be_fused(net):
    net.flat[3].register_forward_hook(lambda *_: None)
    net.flat[7].forward = net.flat[7].forward
    own = nn.Sequential(adl.DepthwiseConv2d(4, 4, 3, activation="relu"), nn.BatchNorm2d(4))
    own.append(nn.Conv2d(4, 4, 1))
    for model, paths in ((net, ["flat.0", "flat.6"]), (own.eval(), ["0"])):
        report = adl.convert(model, fuse="inference")
        assert not {path for path, *_ in report.fused} & set(paths)
        why = "has hooks, methods or an activation of its own in its chain"
        assert {(path, why) for path in paths} <= set(report.not_fused)


def test_converting_twice_changes_nothing(net):
    first = adl.convert(net, fuse="inference")
    report = adl.convert(net, fuse="inference")
    assert not report.replaced and report.fused == first.fused


@pytest.mark.parametrize("n", [1, 2, 3])
def test_converted_layers_call_what_is_put_on_them(n):
    """As it is done for images without seams, and where channels are pruned."""

    def around(self, x, weight, bias):
        x = F.pad(x, (1,) * (2 * n), "circular")
        return getattr(F, f"conv{n}d")(x, weight, bias, self.stride, 0, groups=self.groups)

    model = nn.Sequential(getattr(nn, f"Conv{n}d")(4, 4, 3, padding=1, groups=4))
    other, x = copy.deepcopy(model), torch.randn(2, 4, *[6] * n)
    adl.convert(model)
    for conv in (model[0], other[0]):
        conv._conv_forward = types.MethodType(around, conv)
    torch.testing.assert_close(model(x), other(x))
    for conv in (model[0], other[0]):
        del conv._conv_forward
        conv.weight, conv.bias = nn.Parameter(conv.weight[:3] * 2), nn.Parameter(conv.bias[:3])
        conv.groups = 3
    torch.testing.assert_close(model(x[:, :3]), other(x[:, :3]))


def test_wrong_calls():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4))
    with pytest.raises(ValueError, match=r"fuse must be 'none' or 'inference', got 'all'"):
        adl.convert(model, fuse="all")
    with pytest.raises(ValueError, match=r"needs a model in eval; call model.eval\(\) first"):
        adl.convert(model, fuse="inference")
    assert type(model[0]) is nn.Conv2d


def test_verify_undoes_fusion(net, monkeypatch):
    honest = adl.depthwise.fold._folded
    monkeypatch.setattr(
        adl.depthwise.fold, "_folded", lambda *a: (honest(*a)[0] * 1.5, honest(*a)[1])
    )
    classes = [type(m) for m in net.modules()]
    with pytest.raises(RuntimeError, match="output 0 differs by"):
        adl.convert(net, fuse="inference", verify=X)
    assert [type(m) for m in net.modules()] == classes


def test_others_are_left_and_reported():
    class Mine(nn.Conv2d):
        def _conv_forward(self, input, weight, bias):
            return super()._conv_forward(input, weight - weight.mean(), bias)

    model = nn.Sequential(Mine(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3), nn.Conv2d(1, 1, 3))
    report = adl.convert(model)
    assert not report.replaced and [path for path, *_ in report.left] == ["0"]
    ours = nn.Sequential(adl.DepthwiseConv2d(4, 4, 3, activation="relu"), adl.CausalConv1d(4, 3))
    report = adl.revert(ours)
    assert not report.replaced and [path for path, *_ in report.left] == ["0", "1"]
    assert "torch.nn has no activation" in str(report) and "such padding" in str(report)
