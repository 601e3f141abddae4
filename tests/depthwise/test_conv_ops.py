"""The depthwise convolutions against torch's in double: results and every gradient, any layout."""

from __future__ import annotations

import itertools

import pytest
import torch
from convs import Case, gradients, laid_out, make
from devices import DEVICE, OTHER_THREADS
from lanes import slow
from tolerance import assert_accurate
from torch import Tensor
from torch.nn import functional as F

from adl_kernels.depthwise import reference as conv_reference
from adl_kernels.depthwise.reference import ACTIVATIONS

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
CHANNELS = (1, 3, 20, 24, 33, 96)
OPS = torch.ops.adl_kernels


def lines(**more):
    """Every length up to a register and one more, with channels that fit and that do not."""
    channels = itertools.cycle(CHANNELS)
    return [Case((w,), (3,), C=next(channels), **more) for w in range(1, 18)]


def images(**more):
    channels = itertools.cycle(CHANNELS)
    return [Case((5, w), (3, 3), C=next(channels), **more) for w in (*range(1, 18), 56)]


CASES = [
    *lines(),
    *lines(layout="last"),
    *images(),
    *images(layout="last"),
    *images(layout="last", dtype=BF16),
    *images(dtype=BF16, stride=2),
    *(Case((11, 13), (3, 3), C=33, dtype=d, layout=at) for d in (F64, BF16, F16)
      for at in ("first", "last", "strided")),
    *(Case((11, 13), (3, 3), C=20, layout=at, stride=s) for at in ("first", "last", "strided")
      for s in (2, 3, (1, 2))),
    # Kernels that are even, long in one dimension, as large as the image, of one tap.
    *(Case((12, 17), k, C=24, layout=at) for at in ("first", "last")
      for k in ((1, 1), (2, 2), (2, 3), (5, 5), (1, 7), (7, 1), (4, 5), (9, 9), (13, 13))),
    *(Case((35, 33), (31, 31), C=3, layout=at) for at in ("first", "last")),
    Case((35, 33), (31, 31), C=3, dtype=BF16),  # with channels last torch's never returns
    Case((35, 33), (15, 15), C=20, dtype=BF16, layout="last"),
    # Pads on one side, on none, wider than the kernel; strides that leave inputs out.
    *(Case((9, 10), (3, 4), C=20, pad=pad, layout=at) for at in ("first", "last")
      for pad in (((0, 0), (0, 0)), ((0, 3), (2, 0)), ((4, 5), (6, 4)), ((3, 0), (0, 0)))),
    *(Case((16, 19), (2, 2), C=33, stride=s, pad=((1, 0), (0, 2)), layout=at)
      for at in ("first", "last") for s in (3, (4, 5))),
    *(Case((17, 18), (3, 3), C=20, dilation=d, pad=((p, p),) * 2, layout=at, stride=s)
      for at in ("first", "last") for d, p, s in ((2, 2, 1), (5, 3, 1), (2, 4, 2), (3, 3, 3))),
    *(Case((8, 9), (3, 3), C=c, M=m, layout=at, dtype=d) for at in ("first", "last")
      for c, m, d in ((3, 2, F32), (24, 2, BF16), (5, 3, F32), (1, 33, F32))),
    *(Case((5, 7, 9), (3, 3, 3), C=c, layout=at, stride=s, dtype=d) for at in ("first", "last")
      for c, s, d in ((20, 1, F32), (3, 2, F32), (33, 1, BF16))),
    Case((4, 5, 6), (2, 1, 3), C=24, pad=((1, 0), (0, 0), (3, 1)), dilation=(1, 1, 2)),
    *(Case((40,), (k,), C=33, pad=((d * (k - 1), 0),), dilation=d, layout=at, dtype=t)
      for at in ("first", "last") for k, d, t in (
          (2, 1, F32), (3, 1, BF16), (4, 1, F32), (4, 3, F32), (31, 1, F32), (15, 2, F16))),
    Case((300,), (31,), C=24), Case((300,), (31,), C=24, layout="last", dtype=BF16),
    *(Case((9, 14), (3, 3), C=20, activation=a, residual=True, layout=at, dtype=d)
      for a, at, d in zip(ACTIVATIONS, itertools.cycle(("first", "last")),
                          itertools.cycle((F32, F32, BF16)), strict=False)),
    Case((9, 14), (3, 3), C=20, residual=True, bias=False),
    Case((9, 14), (3, 3), C=20, bias=False, layout="last"),
    *(Case((23,), (k,), C=20, documents=True, layout=at, pad=pad, dtype=t, M=m)
      for at in ("first", "last") for k, pad, t, m in (
          (4, ((3, 0),), F32, 1), (3, ((1, 1),), F64, 2), (5, ((0, 4),), BF16, 1))),
    Case((23,), (3,), C=3, documents=True, activation="silu", pad=((4, 0),), dilation=2),
    Case((0, 5), (1, 3), C=3, pad=((1, 1), (1, 1))),
    Case((1, 1), (3, 3), C=96, B=5), Case((1, 1), (3, 3), C=96, B=5, layout="last"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_and_all_gradients(case, threads):
    """Also, on the CPU, that more threads give the same bits."""
    conv = make(case)
    ours = gradients(conv, type(conv).ours)
    torchs = gradients(conv, type(conv).torchs)
    exact = gradients(conv.to(F64), type(conv).torchs)
    single: list = [None] * len(ours)
    if case.dtype == F64:
        small = conv.to(F32)
        both = small, small.to(F64)
        single = list(zip(*(gradients(c, type(c).torchs) for c in both), strict=True))
    names = ["y", *("d" + name for name in conv.names)]
    for what, mine, theirs, truth, float32 in zip(names, ours, torchs, exact, single, strict=True):
        assert_accurate(mine, theirs, truth, what, float32)
    with torch.no_grad():
        inference = conv.ours()
    assert_accurate(inference, torchs[0], exact[0], "y of inference", single[0])
    for count in OTHER_THREADS:
        threads(count)
        again = gradients(conv, type(conv).ours)
        assert all(torch.equal(a, b) for a, b in zip(again, ours, strict=True))


@pytest.mark.cpu_only
@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize(
    "size, k, more",
    [
        ((28, 28), (3, 3), {}),
        ((28, 28), (7, 7), {}),
        ((28, 28), (5, 5), {"stride": 2}),
        ((6, 14, 14), (3, 3, 3), {}),
        ((400,), (4,), {"pad": ((3, 0),)}),
        ((400,), (31,), {}),
    ],
    ids=str,
)
def test_results_do_not_depend_on_the_number_of_threads(size, k, more, dtype, layout, threads):
    conv = make(Case(size, k, C=40, B=3, dtype=dtype, layout=layout, **more))
    results = []
    for count in (1, 2, 3, 5):
        threads(count)
        results.append(gradients(conv, type(conv).ours))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


LAYOUTS = ("first", "last")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(9,), (9, 8), (5, 4, 3)], ids=str)
def test_results_lie_as_the_input_does(size, layout):
    conv = make(Case(size, (3,) * len(size), C=4, layout=layout))
    x, weight, bias = conv.tensors
    y = conv.ours()
    dx = OPS.depthwise_conv_input_grad(laid_out(y, layout), weight, x.shape, *conv.case.window)
    for t in (y, dx):
        assert t.stride() == laid_out(t, layout).stride()
    assert gradients(conv, type(conv).ours)[1].stride() == x.stride()
    pointwise = torch.randn(5, 4, *[1] * len(size), device=DEVICE)
    window = conv.case.window
    y = OPS.separable_conv(x, weight, bias, pointwise, None, None, *window)
    assert y.stride() == laid_out(y, layout).stride()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_channel_sees_no_other_and_a_row_neither(layout):
    conv = make(Case((7, 6), (3, 3), C=20, B=3, layout=layout))
    clean = conv.ours()
    conv.tensors[0][1, 7, 3, 3] = float("nan")
    dirty = conv.ours()
    spoilt = dirty.isnan()
    assert spoilt[1, 7, 2:5, 2:5].all() and spoilt.sum() == 9
    assert torch.equal(clean[~spoilt], dirty[~spoilt])


@pytest.mark.parametrize("B, C", [(0, 3), (2, 0), (0, 0)])
def test_empty_batches_and_no_channels(B, C):
    x = torch.randn(B, C, 5, 6, device=DEVICE, requires_grad=True)
    weight = torch.randn(C, 1, 3, 3, device=DEVICE, requires_grad=True)
    bias = torch.randn(C, device=DEVICE, requires_grad=True)
    y = OPS.depthwise_conv(x, weight, bias, [1, 1], [1] * 4, [1, 1])
    assert y.shape == (B, C, 5, 6)
    for grad in torch.autograd.grad(y.sum(), (x, weight, bias)):
        assert (grad == 0).all()


# Documents


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("k, pad, dilation", [(4, (3, 0), 1), (3, (1, 1), 1), (3, (4, 0), 2)])
def test_each_document_is_convolved_alone(layout, k, pad, dilation):
    case = Case((30,), (k,), C=5, layout=layout, pad=(pad,), dilation=dilation, documents=True)
    conv = make(case)
    parts = conv.leaves()
    x, weight, bias = parts.tensors
    rows = []
    for row, ids in zip(x, conv.seq_idx, strict=True):
        lengths = ids.unique_consecutive(return_counts=True)[1].tolist()
        alone = (F.pad(part, pad) for part in row.split(lengths, 1))
        rows.append(
            torch.cat([F.conv1d(p, weight, bias, dilation=dilation, groups=5) for p in alone], 1)
        )
    y = torch.stack(rows)
    expected = [y, *torch.autograd.grad(y, parts.tensors, conv.dy)]
    found = gradients(conv, type(conv).ours)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b.detach())


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_ids_are_any_integers(dtype):
    conv = make(Case((20,), (3,), documents=True))
    expected = conv.ours()
    conv.seq_idx = (conv.seq_idx * 1000 - 7).to(dtype)
    assert torch.equal(conv.ours(), expected)


# Separable

SEPARABLE = [
    Case((9, 14), (3, 3), C=20, activation="relu"),
    Case((9, 14), (3, 3), C=20, layout="last", activation="relu6", residual=True),
    Case((9, 14), (5, 3), C=33, layout="last", dtype=BF16, stride=2, activation="hardswish"),
    Case((9, 14), (3, 3), C=24, M=2, dtype=BF16, bias=False, residual=True),
    Case((17, 19), (7, 7), C=96, dtype=F64, layout="last"),
    Case((9, 14), (3, 3), C=20, dtype=F16, activation="silu"),
    Case((40,), (4,), C=33, pad=((3, 0),), activation="silu"),
    Case((40,), (15,), C=24, layout="last", residual=True, activation="tanh"),
    Case((1, 1), (3, 3), C=3, B=1),
    Case((5, 6), (3, 3), C=3, B=0),
]


@pytest.mark.parametrize("case", SEPARABLE, ids=str)
@pytest.mark.parametrize("outs", [1, 37, 64])
@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
def test_separable(case, outs, packed, threads):
    conv = make(case)
    x, weight, *rest = conv.tensors
    bias = rest[0] if case.bias else None
    mid = weight.shape[0]
    pw = torch.randn(outs, mid, *[1] * case.n, dtype=F64).to(DEVICE, case.dtype) * mid**-0.5
    pw_bias = torch.randn(outs, dtype=F64).to(DEVICE, case.dtype) if case.bias else None
    residual = None
    if case.residual:
        size = (case.B, outs, *conv.torchs().shape[2:])
        residual = laid_out(torch.randn(size, dtype=F64).to(DEVICE, case.dtype), "strided")
    given = (x, weight, bias, pw, pw_bias)

    def exact(dtype: torch.dtype) -> Tensor:
        *wide, added = (None if t is None else t.to(dtype) for t in (*given, residual))
        return conv_reference.separable_conv(*wide, *case.window, "relu", case.activation, added)

    pack = OPS.pack_pointwise(pw) if packed else None

    def run() -> Tensor:
        return OPS.separable_conv(*given, pack, *case.window, "relu", case.activation, residual)

    ours = run()
    single = None
    if case.dtype == F64:
        wide = [None if t is None else t.float().double() for t in (*given, residual)]
        window = (*case.window, "relu", case.activation)
        truth = conv_reference.separable_conv(*wide[:5], *window, wide[5])
        single = exact(F32), truth
    assert_accurate(ours, exact(case.dtype), exact(F64), "y", single)
    for count in OTHER_THREADS:
        threads(count)
        assert torch.equal(run(), ours)


# What torch asks of an operator


def arguments(case):
    conv = make(case)
    x, weight, bias = (t.requires_grad_() for t in conv.leaves().tensors)
    return (x, weight, bias, *case.window), conv


CHECKED = [
    Case((9, 8), (3, 2), C=4, layout="last", stride=2, M=2),
    *slow(
        Case((9, 8), (3, 3), C=4),
        Case((12,), (4,), C=4, layout="last", pad=((3, 0),)),
        Case((5, 4, 3), (3, 3, 3), C=4, dtype=BF16),
    ),
]


@pytest.mark.parametrize("case", CHECKED, ids=str)
def test_opcheck(case):
    (x, weight, bias, *window), conv = arguments(case)
    check = torch.library.opcheck
    residual = conv.dy.detach().clone()
    check(OPS.depthwise_conv.default, (x, weight, bias, *window, None, "relu", residual))
    dy = laid_out(conv.dy, "last" if case.layout == "last" else "first").requires_grad_()
    check(OPS.depthwise_conv_input_grad.default, (dy, weight, list(x.shape), *window))
    for bias_too in (False, True):
        args = (dy, x, list(case.k), *window, None, bias_too)
        check(OPS.depthwise_conv_weight_grad.default, args)
    x, weight, bias = (t.detach() for t in (x, weight, bias))
    pw = torch.randn(5, weight.shape[0], *[1] * case.n, device=DEVICE).to(case.dtype)
    check(OPS.separable_conv.default, (x, weight, bias, pw, None, None, *window, "relu", "tanh"))
    check(OPS.pack_pointwise.default, (pw,))


def test_opcheck_with_documents():
    (x, weight, bias, *window), conv = arguments(Case((12,), (3,), documents=True))
    args = (x, weight, bias, *window, conv.seq_idx)
    torch.library.opcheck(OPS.depthwise_conv.default, args)


DERIVED = [
    Case((5, 4), (3, 2), C=2, dtype=F64),
    Case((5, 4), (3, 3), C=2, dtype=F64, stride=2, layout="last", M=2),
    Case((6,), (2,), C=2, dtype=F64, pad=((2, 0),), dilation=2),
    Case((3, 3, 3), (2, 2, 2), C=1, dtype=F64),
    Case((6,), (3,), C=2, dtype=F64, documents=True),
    Case((5, 4), (3, 3), C=2, dtype=F64, activation="silu", residual=True),
]


@pytest.mark.parametrize("case", DERIVED, ids=str)
def test_derivatives_of_the_first_and_second_order(case):
    conv = make(case).leaves()

    def run(*tensors: Tensor) -> Tensor:
        conv.tensors = list(tensors)
        return conv.ours()

    inputs = tuple(conv.tensors)
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)
    assert torch.autograd.gradcheck(run, inputs, check_forward_ad=True, check_backward_ad=False)


def test_derivatives_of_the_gradients_themselves():
    conv = make(Case((5, 4), (3, 2), C=2, M=2, dtype=F64)).leaves()
    (x, weight, _), window = conv.tensors, conv.case.window
    dy = conv.dy.detach().clone().requires_grad_()

    def dx(dy: Tensor, weight: Tensor) -> Tensor:
        return OPS.depthwise_conv_input_grad(dy, weight, x.shape, *window)

    def dweight(dy: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        return OPS.depthwise_conv_weight_grad(dy, x, [3, 2], *window, None, True)

    for run, inputs in ((dx, (dy, weight)), (dweight, (dy, x))):
        assert torch.autograd.gradcheck(run, inputs)
        assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("needed", list(itertools.product([False, True], repeat=3)), ids=str)
def test_only_wanted_gradients_are_computed(needed):
    conv = make(Case((5, 6), (3, 3))).leaves()
    for tensor, need in zip(conv.tensors, needed, strict=True):
        tensor.requires_grad_(need)
    calls = []

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            calls.append(op.name())
            return op(*args, **(kwargs or {}))

    y = conv.ours()
    assert y.requires_grad == any(needed)
    if not any(needed):
        return
    with Record():
        y.backward(torch.ones_like(y))
    assert ("adl_kernels::depthwise_conv_input_grad" in calls) == needed[0]
    assert ("adl_kernels::depthwise_conv_weight_grad" in calls) == needed[1]
    for tensor, need in zip(conv.tensors, needed, strict=True):
        assert (tensor.grad is not None) == need


# Transforms


@pytest.mark.parametrize("batched", list(itertools.product([None, 0, 1], repeat=3))[1:], ids=str)
def test_vmap(batched):
    V, window = 3, ([1, 2], [1, 1, 0, 1], [1, 1])
    shapes = ((2, 3, 6, 5), (6, 1, 3, 3), (6,))
    given = []
    for shape, at in zip(shapes, batched, strict=True):
        t = torch.randn(V, *shape, device=DEVICE)
        given.append(t[0] if at is None else t.movedim(0, at).contiguous().movedim(at, 0))
    moved = [t if at is None else t.movedim(0, at) for t, at in zip(given, batched, strict=True)]

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return OPS.depthwise_conv(x, weight, bias, *window, None, "relu", None)

    def one(k: int) -> list[Tensor]:
        return [t if at is None else t[k] for t, at in zip(given, batched, strict=True)]

    expected = torch.stack([run(*one(k)) for k in range(V)])
    torch.testing.assert_close(torch.vmap(run, batched)(*moved), expected)


@pytest.mark.parametrize("batched", [(0, 0), (0, None), (None, 0)], ids=str)
def test_vmap_of_the_gradients(batched):
    V, window = 3, ([1, 2], [1, 1, 1, 1], [1, 1])
    dy, x = torch.randn(V, 2, 6, 6, 3, device=DEVICE), torch.randn(V, 2, 3, 6, 5, device=DEVICE)
    weight = torch.randn(V, 6, 1, 3, 3, device=DEVICE)

    def dx(dy: Tensor, weight: Tensor) -> Tensor:
        return OPS.depthwise_conv_input_grad(dy, weight, [2, 3, 6, 5], *window)

    def dweight(dy: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        return OPS.depthwise_conv_weight_grad(dy, x, [3, 3], *window, None, True)

    for run, pair in ((dx, (dy, weight)), (dweight, (dy, x))):
        given = [t[0] if at is None else t for t, at in zip(pair, batched, strict=True)]
        each = [
            run(*(t if at is None else t[k] for t, at in zip(given, batched, strict=True)))
            for k in range(V)
        ]
        found = torch.vmap(run, batched)(*given)
        for k, expected in enumerate(each):
            mine = found[k] if isinstance(found, Tensor) else tuple(t[k] for t in found)
            torch.testing.assert_close(mine, expected)


def test_vmap_over_documents():
    ids = torch.randint(0, 2, (3, 2, 9), device=DEVICE).sort(-1).values
    x, weight = torch.randn(2, 3, 9, device=DEVICE), torch.randn(3, 1, 3, device=DEVICE)

    def run(ids: Tensor) -> Tensor:
        return OPS.depthwise_conv(x, weight, None, [1], [2, 0], [1], ids)

    torch.testing.assert_close(torch.vmap(run)(ids), torch.stack([run(i) for i in ids]))


def test_functional_transforms():
    conv = make(Case((5, 6), (3, 3), dtype=F64, activation="silu"))

    def loss(x: Tensor, weight: Tensor, bias: Tensor, op=OPS.depthwise_conv) -> Tensor:
        return op(x, weight, bias, *conv.case.window, None, "silu", None).square().sum()

    inputs, where = tuple(conv.tensors), (0, 1, 2)

    def theirs(*tensors: Tensor) -> Tensor:
        return loss(*tensors, op=conv_reference.depthwise_conv)

    found = torch.func.grad(loss, where)(*inputs)
    torch.testing.assert_close(found, torch.func.grad(theirs, where)(*inputs))
    tangents = tuple(torch.randn_like(t) for t in inputs)
    expected = torch.func.jvp(theirs, inputs, tangents)
    torch.testing.assert_close(torch.func.jvp(loss, inputs, tangents), expected)
    # One gradient per example, and a product with the Hessian.
    each = torch.func.vmap(torch.func.grad(loss, 1), (0, None, None))
    rows = inputs[0][:, None]
    expected = torch.stack([torch.func.grad(theirs, 1)(row, *inputs[1:]) for row in rows])
    torch.testing.assert_close(each(rows, *inputs[1:]), expected)
    hvp = torch.func.jvp(torch.func.grad(loss), (inputs[0], *inputs[1:]), tangents)[1]
    expected = torch.func.jvp(torch.func.grad(theirs), (inputs[0], *inputs[1:]), tangents)[1]
    torch.testing.assert_close(hvp, expected)


def test_batched_gradients_of_autograd():
    conv = make(Case((5, 6), (3, 3), dtype=F64)).leaves()
    y = conv.ours()
    dy = torch.randn(4, *y.shape, dtype=F64, device=DEVICE)
    found = torch.autograd.grad(y, conv.tensors, dy, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(y, conv.tensors, d, retain_graph=True) for d in dy]
    for t, expected in zip(found, zip(*each, strict=True), strict=True):
        torch.testing.assert_close(t, torch.stack(expected))


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_autocast(dtype):
    conv = make(Case((9, 8), (3, 3), C=20, residual=True)).leaves()
    with torch.autocast(DEVICE, dtype):
        y = conv.ours()
    assert y.dtype == dtype
    y.backward(conv.dy.to(dtype))
    assert all(t.grad is not None and t.grad.dtype == F32 for t in conv.tensors)
    narrow = make(conv.case)
    narrow.tensors = [t.detach().to(dtype) for t in conv.tensors]
    # Without gradients the sum, activation and addition are rounded together, once.
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y.detach(), narrow.ours(), rtol=4 * eps, atol=4 * eps)


def test_backward_twice_and_in_inference_mode():
    conv = make(Case((9, 8), (3, 3))).leaves()
    y = conv.ours()
    first = torch.autograd.grad(y, conv.tensors, conv.dy, retain_graph=True)
    second = torch.autograd.grad(y, conv.tensors, conv.dy)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with torch.inference_mode():
        assert torch.equal(conv.ours(), y)
