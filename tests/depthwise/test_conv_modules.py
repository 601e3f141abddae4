"""DepthwiseConv, CausalConv1d, SeparableConv and kernels that are a product, against torch.nn."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from devices import DEVICE
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

import adl_kernels as adl

MODES = ("zeros", "reflect", "replicate", "circular")
PAIRS = {1: (nn.Conv1d, adl.DepthwiseConv1d), 2: (nn.Conv2d, adl.DepthwiseConv2d)}
PAIRS[3] = (nn.Conv3d, adl.DepthwiseConv3d)
SIZES = {1: (11,), 2: (9, 8), 3: (5, 6, 7)}


def randn(*shape: int, **options) -> Tensor:
    return torch.randn(shape, device=DEVICE, **options)


def ops_in(run) -> list[str]:
    """Our ops that a call reaches."""
    calls = []

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            calls.append(op.name())
            return op(*args, **(kwargs or {}))

    with Record():
        run()
    return [name.removeprefix("adl_kernels::") for name in calls if "adl_kernels" in name]


# As torch.nn's

SAME = [
    {},
    {"bias": False, "stride": 2, "padding": 1},
    {"padding": "same", "dilation": 2},
    {"padding": "valid"},
    *({"padding": 2, "padding_mode": mode} for mode in MODES[1:]),
    {"padding": "same", "padding_mode": "reflect"},
]


@pytest.mark.parametrize("n", PAIRS)
@pytest.mark.parametrize("options", SAME, ids=str)
@pytest.mark.parametrize("multiplier", [1, 2])
def test_the_same_as_torchs_from_the_same_seed(n, options, multiplier):
    modules = []
    for cls in PAIRS[n]:
        torch.manual_seed(1)
        modules.append(cls(4, 4 * multiplier, 3, groups=4, device=DEVICE, **options))
    theirs, ours = modules
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert repr(ours) == repr(theirs).replace("Conv", "DepthwiseConv")
    assert isinstance(ours, PAIRS[n][0])
    x = randn(2, 4, *SIZES[n])
    results = []
    for module in modules:
        leaf = x.clone().requires_grad_()
        y = module(leaf)
        results.append([y, *torch.autograd.grad(y.square().sum(), [leaf, *module.parameters()])])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours(x[0]), theirs(x[0]))


@pytest.mark.parametrize("n", PAIRS)
def test_a_module_of_torchs_becomes_ours_by_its_class(n):
    theirs, cls = PAIRS[n][0](4, 4, 3, groups=4, device=DEVICE), PAIRS[n][1]
    calls, x = [], randn(2, 4, *SIZES[n])
    theirs.register_forward_hook(lambda *_: calls.append(1))
    expected = theirs(x)
    theirs.__class__ = cls
    torch.testing.assert_close(theirs(x), expected)
    assert len(calls) == 2 and "depthwise_conv" in ops_in(lambda: theirs(x))


BEYOND = [
    (adl.DepthwiseConv1d, {"padding": "causal"}, (11,), lambda x: F.pad(x, (2, 0))),
    (adl.DepthwiseConv1d, {"padding": ((0, 3),)}, (11,), lambda x: F.pad(x, (0, 3))),
    (adl.DepthwiseConv2d, {"padding": ((1, 0), (2, 3))}, (9, 8), lambda x: F.pad(x, (2, 3, 1, 0))),
    (adl.DepthwiseConv2d, {"padding": (1, (2, 0))}, (9, 8), lambda x: F.pad(x, (2, 0, 1, 1))),
    (adl.DepthwiseConv2d, {"stride": 2, "padding": "same"}, (9, 8),
     lambda x: F.pad(x, (0, 1, 1, 1))),
]  # fmt: skip


@pytest.mark.parametrize("cls, options, size, pad", BEYOND, ids=[str(b[1]) for b in BEYOND])
@pytest.mark.parametrize("activation", adl.depthwise.reference.ACTIVATIONS)
def test_what_torchs_have_not(cls, options, size, pad, activation):
    ours = cls(4, 4, 3, activation=activation, device=DEVICE, **options)
    x, conv = randn(2, 4, *size), {1: F.conv1d, 2: F.conv2d}[len(size)]
    expected = conv(pad(x), ours.weight, ours.bias, options.get("stride", 1), groups=4)
    expected = adl.depthwise.reference.ACTIVATIONS[activation](expected)
    torch.testing.assert_close(ours(x), expected)
    assert (f"activation='{activation}'" in repr(ours)) == (activation != "none")


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize("k, dilation", [(1, 1), (2, 1), (3, 1), (4, 1), (3, 2)])
def test_same_gives_as_many_outputs_as_strides_fit(size, stride, k, dilation):
    x, weight = randn(1, 2, size), randn(2, 1, k)
    y = adl.functional.depthwise_conv1d(x, weight, None, stride, "same", dilation)
    assert y.shape[2] == -(-size // stride)
    if stride == 1:
        theirs = F.conv1d(x, weight, None, 1, "same", dilation, groups=2)
        torch.testing.assert_close(y, theirs)


# Causal


def test_parts_and_steps_give_the_same_as_the_whole():
    conv = adl.CausalConv1d(4, 3, 2, activation="silu", device=DEVICE)
    x = randn(2, 4, 15)
    whole = conv(x)
    torch.testing.assert_close(
        whole, F.silu(F.conv1d(F.pad(x, (4, 0)), conv.weight, conv.bias, dilation=2, groups=4))
    )
    state, parts = conv.init_state(2), []
    for part in x.split((1, 2, 7, 5), 2):
        y, state = conv(part, state=state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 2), whole)
    stepped, steps = conv.init_state(2), []
    for x_t in x.unbind(2):
        y, stepped = conv.step(x_t, stepped)
        steps.append(y)
    torch.testing.assert_close(torch.stack(steps, 2), whole)
    assert torch.equal(state, stepped) and torch.equal(state, x[..., -4:])


def test_lengths_end_sequences_and_their_states():
    conv = adl.CausalConv1d(4, 4, device=DEVICE)
    x, lengths = randn(4, 4, 9), torch.tensor([9, 1, 0, 5])
    before = randn(4, 4, 3)
    x_nan = x.clone()
    for row, length in zip(x_nan, lengths, strict=True):
        row[:, length:] = float("nan")
    x_nan.requires_grad_()
    y, state = conv(x_nan, lengths=lengths, state=before)
    for b, length in enumerate(lengths.tolist()):
        alone, after = conv(x[b : b + 1, :, :length], state=before[b : b + 1]) if length else (
            y[b : b + 1, :, :0], before[b : b + 1])  # fmt: skip
        torch.testing.assert_close(y[b : b + 1, :, :length], alone)
        torch.testing.assert_close(state[b : b + 1], after)
        assert (y[b, :, length:] == 0).all()
    (y.sum() + state.sum()).backward()
    assert x_nan.grad.isfinite().all() and conv.weight.grad.isfinite().all()


def test_documents_and_the_state_after_the_last():
    conv = adl.CausalConv1d(4, 4, device=DEVICE)
    x = randn(1, 4, 9)
    ids = torch.tensor([[0] * 7 + [1] * 2], device=DEVICE)
    before = randn(1, 4, 3)
    y, state = conv(x, seq_idx=ids, state=before)
    first, _ = conv(x[..., :7], state=before)
    second, after = conv(x[..., 7:], state=conv.init_state(1))
    torch.testing.assert_close(y, torch.cat([first, second], 2))
    torch.testing.assert_close(state, after)


# Separable


def trained(module: nn.Module, x: Tensor) -> nn.Module:
    """With running statistics and affine parameters that are not the first ones."""
    for m in module.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, 0.0, 0.2)
    with torch.no_grad():
        for _ in range(3):
            module(x * 2 + 1)
    return module.eval()


BLOCKS = [
    {},
    {"bias": False, "dw_norm": True, "norm": True, "dw_activation": "relu", "activation": "relu6"},
    {"norm": True, "activation": "silu", "stride": 2},
    {"dw_norm": True, "residual": True, "padding": "same", "kernel_size": 5},
    {"depth_multiplier": 3, "padding_mode": "circular", "dw_activation": "hardswish"},
]


@pytest.mark.parametrize("options", BLOCKS, ids=str)
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_op_in_eval_with_the_statistics_folded(options, n, dtype):
    options = {"kernel_size": 3, "padding": 1, "device": DEVICE, "dtype": dtype} | options
    block = {1: adl.SeparableConv1d, 2: adl.SeparableConv2d}[n](6, 6, **options)
    x = randn(4, 6, *SIZES[n], dtype=dtype)
    trained(block, x)
    expected = block(x)  # with gradients: module by module
    assert expected.requires_grad
    with torch.no_grad():
        found = block(x)
        tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {}
        torch.testing.assert_close(found, expected, **tolerance)
        assert ops_in(lambda: block(x)) == ["separable_conv"]
        torch.testing.assert_close(block(x[0]), found[0])


def block_and_input():
    block = adl.SeparableConv2d(
        6, 8, 3, padding=1, bias=False, dw_norm=True, norm=True, dw_activation="relu", device=DEVICE
    )
    x = randn(2, 6, 7, 7)
    return trained(block, x), x


def replace_data(block):
    block.pointwise.weight.data = block.pointwise.weight.data * 2


def load(block):
    block.load_state_dict({k: v + 1 for k, v in block.state_dict().items()})


def step(block):
    optimizer = torch.optim.SGD(block.parameters(), lr=0.5)
    with torch.enable_grad():
        block(randn(2, 6, 7, 7)).sum().backward()
    optimizer.step()


def train(block):
    block.train()
    block(randn(2, 6, 7, 7) * 3)
    block.eval()


def train_norms_alone(block):
    block.norm.train()
    block(randn(2, 6, 7, 7) * 3)
    block.norm.eval()


CHANGES = [
    lambda b: b.depthwise.weight.mul_(2),
    lambda b: b.dw_norm.running_var.add_(1),
    lambda b: nn.init.constant_(b.norm.bias, 3.0),
    lambda b: setattr(b, "norm", nn.Identity()),
    lambda b: setattr(b.pointwise, "weight", nn.Parameter(b.pointwise.weight + 1)),
    lambda b: nn.utils.parametrizations.weight_norm(b.pointwise),
    lambda b: b.double(),
    replace_data,
    load,
    step,
    train,
    train_norms_alone,
]


@pytest.mark.parametrize("change", range(len(CHANGES)))
def test_folded_weights_are_kept_until_something_changes(change):
    block, x = block_and_input()
    with torch.no_grad():
        block(x)
        kept = block._folder.kept
        block(x)
        assert block._folder.kept is kept
        CHANGES[change](block)
        x = x.to(block.depthwise.weight.dtype)
        found = block(x)
    torch.testing.assert_close(found, block(x).detach(), rtol=1e-4, atol=1e-4)


def test_hooks_transforms_and_other_norms_see_all_modules():
    block, x = block_and_input()
    seen = []
    handle = block.pointwise.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        block(x)
        assert len(seen) == 1
        handle.remove()
        torch.testing.assert_close(torch.func.vmap(block)(x[:, None])[:, 0], block(x))
    other = adl.SeparableConv2d(6, 6, 3, norm=nn.GroupNorm(2, 6), device=DEVICE).eval()
    with torch.no_grad():
        other(x)
        assert ops_in(lambda: other(x)) == ["depthwise_conv"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grad", [False, True])
def test_autocast(dtype, grad):
    block, x = block_and_input()
    with torch.set_grad_enabled(grad), torch.autocast(DEVICE, dtype):
        y = block(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), block(x), rtol=0.1, atol=0.1)


def test_autocast_adds_the_input_as_torch_does():
    block = adl.SeparableConv2d(4, 4, 3, padding=1, residual=True, device=DEVICE).eval()
    x = torch.randn(2, 4, 6, 6, device=DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        expected = block(x)
        with torch.no_grad():
            y = block(x)
    assert y.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(y, expected, rtol=0.02, atol=0.02)


def lying(name):
    """Inputs of four channels that a model may come to."""
    rows, last = torch.randn(3, 7, 4).transpose(1, 2), torch.channels_last
    return {
        "a sequence as a column": rows.unsqueeze(-1),
        "a sequence as a row": rows.unsqueeze(2),
        "turned": torch.randn(3, 4, 6, 1).to(memory_format=last).transpose(2, 3),
        "pooled": torch.randn(3, 4, 5, 5).to(memory_format=last).mean((2, 3), keepdim=True),
        "pooled by a layer": nn.AdaptiveAvgPool2d(1)(
            torch.randn(3, 4, 5, 5).to(memory_format=last)
        ),
        "one place": torch.randn(3, 4, 1, 1),
        "a part": torch.randn(3, 8, 6, 5).to(memory_format=last)[:, :4],
        "expanded": torch.randn(3, 1, 6, 5).expand(3, 4, 6, 5),
    }[name]


@pytest.mark.parametrize(
    "name",
    ["a sequence as a column", "a sequence as a row", "turned", "pooled", "pooled by a layer",
     "one place", "a part", "expanded"],
)  # fmt: skip
@pytest.mark.cpu_only
def test_results_lie_as_torchs_do(name):
    """As a view of the result has to be possible where it is one of torch's."""
    torchs, x = nn.Conv2d(4, 4, 3, padding=2, groups=4), lying(name)
    model = nn.Sequential(copy.deepcopy(torchs))
    adl.convert(model)
    expected, y = torchs(x), model(x)
    assert y.stride() == expected.stride()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert model(mode.from_tensor(x)).stride() == expected.stride()


def copied(module):
    return copy.deepcopy(module)


def pickled(module):
    return pickle.loads(pickle.dumps(module))


def saved(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("way", [copied, pickled, saved])
def test_copies_and_pickles(way):
    block, x = block_and_input()
    conv = adl.CausalConv1d(6, 3, activation="relu", device=DEVICE)
    with torch.no_grad():
        expected = block(x)  # now there are folded weights
        again = way(block)
        torch.testing.assert_close(again(x), expected)
        again.norm.bias.add_(1)
        assert torch.equal(block(x), expected) and not torch.equal(again(x), expected)
    torch.testing.assert_close(way(conv)(x[:, :, 0]), conv(x[:, :, 0]))


STYLES = {
    "timm": ["conv_dw", "bn1", "conv_pw", "bn2"],
    "mmcv": [f"{a}_conv.{b}" for a in ("depthwise", "pointwise") for b in ("conv", "bn")],
    "sequential": ["0", "1", "3", "4"],
    "nested": ["0.0", "0.1", "1.0", "1.1"],
}  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("norms", [True, False])
def test_state_dicts_of_others(style, norms):
    names = ("depthwise", "dw_norm", "pointwise", "norm")
    block = adl.SeparableConv2d(4, 5, 3, dw_norm=norms, norm=norms, device=DEVICE)
    model = nn.Sequential(nn.Identity(), block)
    theirs = {}
    for key, value in model.state_dict().items():
        prefix, name, parameter = key.split(".")
        theirs[f"{prefix}.{STYLES[style][names.index(name)]}.{parameter}"] = value + 1
    own = {key: value + 1 for key, value in model.state_dict().items()}
    model.load_state_dict(theirs)
    for key, value in model.state_dict().items():
        assert torch.equal(value, own[key]), key
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict(theirs | {"1.other": torch.ones(1)})


def test_kernels_of_keras():
    block = adl.SeparableConv2d(3, 4, (2, 3), depth_multiplier=2, device=DEVICE)
    dw, pw, bias = randn(2, 3, 3, 2), randn(1, 1, 6, 4), randn(4)
    block.load_state_dict({"depthwise_kernel": dw, "pointwise_kernel": pw, "bias": bias})
    x = randn(1, 3, 5, 6)
    y = torch.zeros(1, 4, 4, 4, device=DEVICE)
    for i in range(4):  # the definition in tf.nn.separable_conv2d
        for j in range(4):
            patch = x[0, :, i : i + 2, j : j + 3]
            mid = torch.einsum("chw,hwcm->cm", patch, dw).flatten()
            y[0, :, i, j] = mid @ pw[0, 0] + bias
    torch.testing.assert_close(block(x), y)


@pytest.mark.parametrize("k, N", [(3, 64), (5, 7), (7, 100)])
def test_cost_is_that_of_the_textbook(k, N):
    block = adl.SeparableConv2d(16, N, k, padding=k // 2, bias=False)
    cost = block.cost((14, 10))
    assert cost.full_multiplications == 140 * 16 * N * k * k
    assert cost.full_parameters == nn.Conv2d(16, N, k, bias=False).weight.numel()
    assert cost.parameters == sum(p.numel() for p in block.parameters())
    assert cost.ratio == pytest.approx(1 / N + 1 / k**2)
    assert cost.parameter_ratio == pytest.approx(1 / N + 1 / k**2)
    with_biases = adl.SeparableConv2d(16, N, k, 2, padding=k // 2)
    assert with_biases.cost(14).multiplications == 49 * (16 * k * k + 16 * N)
    assert with_biases.cost(14).parameters == sum(p.numel() for p in with_biases.parameters())


# Products of a column and a row

SOBEL = torch.tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
GAUSS = torch.tensor([[1, 4, 6, 4, 1]]).t() * torch.tensor([[1, 4, 6, 4, 1]])


def test_kernels_that_are_products():
    column, row = adl.functional.separate_kernel(SOBEL)
    assert column.tolist() == [1, 2, 1] and row.tolist() == [-1, 0, 1]
    column, row = adl.functional.separate_kernel(GAUSS.float())
    assert column.tolist() == row.tolist() == [1, 4, 6, 4, 1]
    for kernel in (GAUSS / 256, torch.outer(torch.randn(5), torch.randn(3)), SOBEL * 0):
        column, row = adl.functional.separate_kernel(kernel)
        torch.testing.assert_close(torch.outer(column, row), kernel)
        assert column.dtype == kernel.dtype
    laplace = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])
    with pytest.raises(ValueError, match=r"second singular value is 0\.101 of the first.*0\.101"):
        adl.functional.separate_kernel(laplace)
    close = SOBEL + torch.eye(3) * 1e-4
    with pytest.raises(ValueError, match="rank 1"):
        adl.functional.separate_kernel(close)
    column, row = adl.functional.separate_kernel(close, tolerance=1e-3)
    torch.testing.assert_close(torch.outer(column, row), close, rtol=0, atol=2e-4)


def test_two_passes_are_the_whole_kernel():
    x = randn(2, 4, 9, 8)
    for options in ({}, {"padding": 1, "stride": 2}, {"padding": "same"}, {"padding": ((0, 2), 1)}):
        conv = adl.SpatiallySeparableConv2d.from_kernel(SOBEL, 4, device=DEVICE, **options)
        weight = SOBEL.float().to(DEVICE).expand(4, 1, 3, 3)
        whole = adl.functional.depthwise_conv2d(x, weight, None, **options)
        torch.testing.assert_close(conv(x), whole, rtol=1e-4, atol=1e-5)
    conv = adl.SpatiallySeparableConv2d(4, (3, 5), padding=(1, 2), activation="relu", device=DEVICE)
    weight = conv.column.weight * conv.row.weight
    whole = F.relu(F.conv2d(x, weight, conv.row.bias, padding=(1, 2), groups=4))
    torch.testing.assert_close(conv(x), whole, rtol=1e-4, atol=1e-5)


# Compilers

MODULES = [
    lambda: (adl.DepthwiseConv2d(4, 4, 3, padding=1, activation="relu"), (2, 4, 9, 8)),
    lambda: (adl.DepthwiseConv2d(4, 8, 3, 2, "same"), (2, 4, 9, 8)),
    lambda: (adl.DepthwiseConv1d(4, 4, 3, padding="causal", padding_mode="reflect"), (2, 4, 9)),
    lambda: (adl.CausalConv1d(4, 4), (2, 4, 9)),
    lambda: (adl.SeparableConv2d(4, 4, 3, padding=1, norm=True, residual=True), (2, 4, 9, 8)),
    lambda: (adl.SpatiallySeparableConv2d(4, 3, padding=1), (2, 4, 9, 8)),
]


@pytest.mark.parametrize("make", MODULES)
@pytest.mark.parametrize("training", [True, False])
def test_compile_and_export(make, training):
    torch._dynamo.reset()
    module, shape = make()
    module, x = module.to(DEVICE).train(training), randn(*shape)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    with torch.set_grad_enabled(training):
        found, expected = compiled(x), copy.deepcopy(module)(x)
        torch.testing.assert_close(found, expected)
        if training:
            found.sum().backward()
            assert all(p.grad is not None for p in module.parameters())
            return
    with torch.no_grad():
        dims = {0: torch.export.Dim("B", min=2)}
        program = torch.export.export(module, (x,), dynamic_shapes=(dims,))
        torch.testing.assert_close(program.module()(x), expected)


def test_meta_tensors_have_the_layout_of_the_result():
    conv = adl.DepthwiseConv2d(4, 8, 3, 2, 1, device="meta")
    x = torch.empty(2, 4, 9, 8, device="meta").to(memory_format=torch.channels_last)
    y = conv(x)
    assert y.shape == (2, 8, 5, 4) and y.is_contiguous(memory_format=torch.channels_last)
    y.sum().backward()
    assert conv.weight.grad.shape == conv.weight.shape


def test_a_tuple_of_one_stands_for_all_dimensions():
    for how in ({"stride": (2,)}, {"padding": (1,)}, {"dilation": (2,)}):
        conv, x = nn.Conv2d(4, 4, 3, groups=4, device=DEVICE), randn(2, 4, 9, 8)
        for name, value in how.items():
            setattr(conv, name, value)
        expected = conv(x)
        torch.testing.assert_close(F.conv2d(x, conv.weight, conv.bias, groups=4, **how), expected)
        adl.convert(conv)
        torch.testing.assert_close(conv(x), expected)
        ours = adl.functional.depthwise_conv2d(x, conv.weight, conv.bias, **how)
        torch.testing.assert_close(ours, expected)


def test_silu_of_the_least_numbers_is_zero():
    """As its limit; torch has NaN at minus infinity."""
    info = torch.finfo(torch.float32)
    x = torch.tensor(
        [info.min, -1e38, -1e30, -1e4, -torch.inf, -100.0, 0.0, info.max], device=DEVICE
    )
    one = torch.ones(1, 1, 1, device=DEVICE)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        given = x.to(dtype)
        y = adl.functional.depthwise_conv1d(given[None, None], one.to(dtype), activation="silu")
        expected = F.silu(given).nan_to_num(0.0, posinf=torch.inf)
        torch.testing.assert_close(y[0, 0], expected, rtol=1e-2, atol=1e-30)


@pytest.mark.parametrize("training", [False, True])
def test_a_residual_is_of_the_size_of_the_output(training):
    block = adl.SeparableConv2d(4, 4, 3, residual=True, device=DEVICE).train(training)
    with (
        torch.no_grad(),
        pytest.raises(RuntimeError, match=r"residual (needs|must).*\[2, 4, 3, 3\]"),
    ):
        block(randn(2, 4, 3, 3))


# Layouts


# Not in three dimensions in double, where torch's own kernel forgets the layout.
LAID_OUT = [(2, k, t) for k in (1, 3) for t in (torch.float32, torch.float64, torch.bfloat16)]
LAID_OUT += [(3, 3, torch.float32), (3, 3, torch.bfloat16)]


@pytest.mark.parametrize("n, kernel, dtype", LAID_OUT)
@pytest.mark.parametrize("put", ["x", "weight", "both", "neither"])
def test_results_lie_as_torchs(put, kernel, n, dtype):
    """Channels last where the input or the weight is, for the fake op too."""
    last = {2: torch.channels_last, 3: torch.channels_last_3d}[n]
    theirs = {2: nn.Conv2d, 3: nn.Conv3d}[n](8, 8, kernel, groups=8, device=DEVICE, dtype=dtype)
    x = randn(2, 8, *[6] * n).to(dtype)
    if put in ("weight", "both"):
        theirs = theirs.to(memory_format=last)
    if put in ("x", "both"):
        x = x.to(memory_format=last)
    ours = copy.deepcopy(theirs)
    adl.convert(ours)
    expected, found = theirs(x), ours(x)
    is_last = [t.is_contiguous(memory_format=last) for t in (found, expected)]
    assert is_last[0] == is_last[1]
    fake = copy.deepcopy(ours)
    with torch._subclasses.FakeTensorMode() as mode:
        for name, p in ours.named_parameters():
            fake._parameters[name] = mode.from_tensor(p)
        assert fake(mode.from_tensor(x)).stride() == found.stride()


def test_separable_blocks_lie_as_torchs():
    block, x = block_and_input()
    parts = nn.Sequential(*block.children())
    with torch.no_grad():
        for where in (lambda t: t, lambda t: t.to(memory_format=torch.channels_last)):
            for given in (x, x.to(memory_format=torch.channels_last)):
                block, parts = where(block), where(parts)
                assert block(given).stride() == parts(given).stride()
