"""The depthwise convolutions over emulated CUDA kernels, against torch's own in double.

Small cases, because they run under many schedules, the race detector and the sanitizers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from devices import DEVICE
from lanes import slow
from tolerance import assert_accurate
from torch import Tensor
from torch.nn import functional as F

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
OPS = torch.ops.adl_kernels
CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
ACTIVATIONS = {
    "none": lambda y: y,
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


@dataclass(frozen=True)
class Conv:
    size: tuple[int, ...]  # spatial
    kernel: tuple[int, ...]
    pad: tuple[int, ...] = ()  # before each dimension, then after each
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    B: int = 2
    C: int = 3
    M: int = 1  # channels of the output for each of the input
    last: bool = False  # channels last
    documents: bool = False
    dtype: torch.dtype = F32

    def __str__(self) -> str:
        def by(numbers: tuple[int, ...]) -> str:
            return "x".join(map(str, numbers))

        return (
            f"{by(self.size)}-k{by(self.kernel)}-p{by(self.padding)}-s{by(self.strides)}"
            f"-d{by(self.dilations)}-B{self.B}C{self.C}M{self.M}-{'last' if self.last else 'first'}"
            f"{'-documents' * self.documents}-{str(self.dtype)[6:]}"
        )

    @property
    def dims(self) -> int:
        return len(self.size)

    @property
    def strides(self) -> tuple[int, ...]:
        return self.stride or (1,) * self.dims

    @property
    def dilations(self) -> tuple[int, ...]:
        return self.dilation or (1,) * self.dims

    @property
    def padding(self) -> tuple[int, ...]:
        return self.pad or tuple(k // 2 for k in self.kernel) * 2


@dataclass
class Tensors:
    x: Tensor
    weight: Tensor
    bias: Tensor
    ids: Tensor | None

    def to(self, dtype: torch.dtype) -> Tensors:
        return Tensors(self.x.to(dtype), self.weight.to(dtype), self.bias.to(dtype), self.ids)


def laid_out(t: Tensor, last: bool) -> Tensor:
    return t.movedim(1, -1).contiguous().movedim(-1, 1) if last else t.contiguous()


def make(conv: Conv) -> Tensors:
    def random(*size: int) -> Tensor:
        return torch.randn(size, dtype=F64).to(DEVICE, conv.dtype)

    ids = None
    if conv.documents:  # an id never comes back
        ids = (torch.rand(conv.B, conv.size[0]) < 0.2).cumsum(1).to(DEVICE, torch.int32)
    x = laid_out(random(conv.B, conv.C, *conv.size), conv.last)
    return Tensors(x, random(conv.C * conv.M, 1, *conv.kernel), random(conv.C * conv.M), ids)


def defined(conv: Conv, x: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor | None):
    """By torch's convolution, or tap by tap where documents lie in a row."""
    before, after = conv.padding[: conv.dims], conv.padding[conv.dims :]
    pad = [p for pair in zip(reversed(before), reversed(after), strict=True) for p in pair]
    padded = F.pad(x, pad)
    if ids is None:
        return CONVS[conv.dims](
            padded, weight, bias, conv.strides, 0, conv.dilations, groups=conv.C
        )
    around = F.pad(ids.double(), pad, value=-1)
    taps = []
    for k in range(conv.kernel[0]):
        there = slice(k * conv.dilations[0], k * conv.dilations[0] + conv.size[0])
        same = (around[:, there] == ids).unsqueeze(1).to(x.dtype)
        seen = (padded[:, :, there] * same).repeat_interleave(conv.M, 1)
        taps.append(seen * weight[:, 0, k].unsqueeze(-1))
    y = torch.stack(taps).sum(0)
    return y if bias is None else y + bias.unsqueeze(-1)


def gradients(conv: Conv, tensors: Tensors, cotangent: Tensor) -> list[Tensor]:
    """y, dx, dweight and dbias by the definition."""
    inputs = [t.clone().requires_grad_() for t in (tensors.x, tensors.weight, tensors.bias)]
    y = defined(conv, *inputs, tensors.ids)
    return [y.detach(), *torch.autograd.grad(y, inputs, cotangent.to(y.dtype))]


def arguments(conv: Conv) -> tuple:
    return conv.strides, conv.padding, conv.dilations


def ours(conv: Conv, tensors: Tensors, cotangent: Tensor) -> list[Tensor]:
    ids, dy = tensors.ids, laid_out(cotangent, conv.last)
    y = OPS.depthwise_conv(tensors.x, tensors.weight, tensors.bias, *arguments(conv), ids)
    dx = OPS.depthwise_conv_input_grad(dy, tensors.weight, tensors.x.shape, *arguments(conv), ids)
    dw, db = OPS.depthwise_conv_weight_grad(
        dy, tensors.x, conv.kernel, *arguments(conv), ids, bias=True
    )
    for t in (y, dx):
        assert laid_out(t, conv.last).data_ptr() == t.data_ptr(), "not laid out as x"
    return [y, dx, dw, db]


def assert_as_defined(conv: Conv) -> None:
    tensors = make(conv)
    y = OPS.depthwise_conv(tensors.x, tensors.weight, None, *arguments(conv), tensors.ids)
    cotangent = torch.randn(y.shape, dtype=F64).to(DEVICE, conv.dtype)
    found = ours(conv, tensors, cotangent)
    exact = gradients(conv, tensors.to(F64), cotangent)
    # In double torch's error does not show.
    rough = conv.dtype if conv.dtype is not F64 else F32
    torchs = gradients(conv, tensors.to(rough), cotangent)
    for k, what in enumerate(("y", "dx", "dweight", "dbias")):
        float32 = None
        if conv.dtype is F64:
            narrow = gradients(conv, tensors.to(F32).to(F64), cotangent.to(F32))
            float32, torchs[k] = (torchs[k], narrow[k]), torchs[k].double()
        assert_accurate(found[k], torchs[k], exact[k], what, float32)
    for a, b in zip(found, ours(conv, tensors, cotangent), strict=True):
        assert torch.equal(a, b), "differs from run to run"


def both(*convs: Conv) -> list[Conv]:
    return [replace(conv, last=last) for conv in convs for last in (False, True)]


ANY = both(
    *(Conv((7, 5), (4, 2), dtype=t) for t in (F64, F32, BF16, F16)),
    Conv((9,), (1,), C=1),
    Conv((13,), (9,), (8, 0), C=20),
    Conv((11,), (3,), (5, 7), dilation=(3,), stride=(2,), C=3, M=2, dtype=F64),
    Conv((9, 10), (2, 3), (3, 0, 1, 4), stride=(4, 5), C=3, M=3),  # gaps between the windows
    Conv((8, 9), (3, 2), (4, 2, 0, 3), stride=(2, 3), dilation=(4, 2), C=2, B=1, M=2),
    Conv((8, 8), (3, 3), (1, 1, 1, 1), stride=(4, 6), dilation=(2, 4), C=2),
    Conv((4, 5, 6), (3, 2, 3), (1, 1, 2, 1, 0, 2), stride=(1, 2, 3), C=3, M=2),
    Conv((3, 4, 5), (2, 3, 1), dilation=(1, 2, 3), C=33, B=1, dtype=BF16),
    Conv((3, 2), (5, 5), (4, 4, 2, 2), C=20),
    Conv((5, 6), (13, 11), C=1, dtype=F64),
    Conv((14,), (9,), documents=True, C=3, M=2),
    Conv((14,), (3,), (4, 0), dilation=(2,), documents=True, C=4, dtype=BF16),
)


@pytest.mark.parametrize("conv", ANY, ids=str)
def test_any_size(conv):
    assert_as_defined(conv)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [F64, F32, BF16])
def test_activation_and_residual(activation, dtype, last):
    conv = Conv((5, 6), (2, 3), (0, 1, 1, 1), stride=(2, 1), M=2, last=last, dtype=dtype)
    tensors = make(conv)
    plain = defined(conv, *vars(tensors.to(F64)).values())
    residual = torch.randn(plain.shape, dtype=F64).to(dtype)
    exact = ACTIVATIONS[activation](plain) + residual.double()
    torchs = ACTIVATIONS[activation](defined(conv, *vars(tensors).values())) + residual
    y = OPS.depthwise_conv(
        tensors.x, tensors.weight, tensors.bias, *arguments(conv), None, activation, residual
    )
    assert_accurate(y, torchs, exact, activation)


@pytest.mark.parametrize("last", [False, True])
def test_empty_batch(last):
    conv = Conv((5, 6), (3, 3), B=0, last=last)
    tensors = make(conv)
    y, dx, dw, db = ours(conv, tensors, torch.empty(0, 3, 5, 6))
    assert y.shape == dx.shape == (0, 3, 5, 6)
    assert not dw.any() and not db.any()


# Tiles: square kernels of 3, 5 and 7 with stride 1 and 2, and one dimension with at most 8 taps.

PLANES = [
    # Every kernel in every dtype, whole units and odd widths, more than one tile and plane.
    *(Conv((9, 7), (k, k), dtype=t) for k in (3, 5, 7) for t in (F32, BF16, F16)),
    *(Conv((9, 12), (k, k), stride=(2, 2), dtype=t) for k in (3, 5, 7) for t in (F32, BF16, F16)),
    *(Conv((37,), (k,), (k - 1, 0), dtype=t) for k in (3, 8) for t in (F32, BF16, F16)),
    Conv((5, 4), (3, 3), C=20, M=2),
    Conv((5, 4), (3, 3), stride=(2, 2), C=20, M=2),
    Conv((6, 70), (3, 3), B=1, C=2),
    Conv((6, 134), (5, 5), stride=(2, 2), B=1, C=2, dtype=BF16),
    Conv((40, 6), (3, 3), B=1, C=1),
    Conv((11, 14), (5, 5), (4, 0, 1, 3), C=33, B=1),
    Conv((11, 14), (7, 7), (7, 8, 9, 0)),
    Conv((10, 9), (3, 3), (0, 0, 1, 1), stride=(2, 2)),  # phases that are not as usual
    Conv((10, 9), (3, 3), (3, 1, 0, 5), stride=(2, 2)),
    Conv((10, 8), (5, 5), (0, 4, 3, 3), stride=(2, 2)),
    Conv((1, 1), (7, 7), C=150),
    *slow(Conv((2, 3), (7, 7), stride=(2, 2), C=150)),
    # Blocks that fill the shared memory that need not be asked for, without their sums.
    *(Conv((4, 4), (k, k), C=130) for k in (5, 7)),
    Conv((3, 2), (5, 5), C=130),
    Conv((8, 8), (7, 7), stride=(2, 2), C=70, B=1),
    Conv((1100,), (4,), (3, 0), B=1, C=1),
    *(Conv((16,), (k,), (p, k - 1 - p)) for k, p in ((4, 0), (4, 1), (4, 2), (2, 1), (8, 5))),
    Conv((9,), (1,), (0, 0), C=5),
    Conv((17,), (2,), (5, 6), C=1, M=3),
    Conv((23,), (4,), (3, 0), documents=True, dtype=BF16),
    Conv((24,), (7,), documents=True),
    Conv((24,), (5,), (1, 3), documents=True, M=2),
]
PIXELS = [
    *(Conv((9, 7), (k, k), C=6, dtype=t) for k in (3, 5, 7) for t in (F32, BF16, F16)),
    *(
        Conv((9, 12), (k, k), stride=(2, 2), C=6, dtype=t)
        for k in (3, 5, 7)
        for t in (F32, BF16, F16)
    ),
    *(Conv((37,), (k,), (k - 1, 0), C=4, dtype=t) for k in (3, 8) for t in (F32, BF16, F16)),
    Conv((5, 4), (3, 3), C=20, B=3),
    Conv((5, 4), (3, 3), C=70, B=1),
    Conv((70, 6), (3, 3), C=128, B=1, dtype=BF16),
    Conv((3, 70), (3, 3), C=32, B=1),
    Conv((40, 9), (3, 3), C=64, B=13, dtype=BF16),  # tiles one below the other for each thread
    Conv((11, 14), (7, 7), (7, 8, 9, 0), C=2),
    Conv((11, 14), (5, 5), (4, 0, 1, 3), C=34, B=1),
    Conv((10, 9), (3, 3), (3, 1, 0, 5), stride=(2, 2), C=4),
    Conv((10, 8), (5, 5), (0, 4, 3, 3), stride=(2, 2), C=4),
    Conv((1, 1), (7, 7), C=150),
    Conv((9,), (1,), (0, 0), C=6),
    Conv((17,), (2,), (5, 6), C=2),
    Conv((23,), (4,), (3, 0), documents=True, C=4, dtype=BF16),
    Conv((24,), (7,), documents=True, C=4),
]


@pytest.mark.parametrize("conv", [*PLANES, *(replace(c, last=True) for c in PIXELS)], ids=str)
def test_tiles(conv):
    assert_as_defined(conv)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kernel", [(3, 3), (4,)])
@pytest.mark.parametrize("offset", [0, 1, 2])
def test_tensors_that_begin_anywhere(offset, kernel, last):
    """Within a larger one, so that what is read at once does not lie as it should."""
    conv = Conv((8, 8)[: len(kernel)], kernel, (1,) * 2 * len(kernel), C=4, last=last, dtype=BF16)
    tensors = make(conv)
    within = torch.zeros(tensors.x.numel() + 4, dtype=BF16)
    moved = within[offset : offset + tensors.x.numel()]
    lying = tensors.x.movedim(1, -1) if last else tensors.x
    moved = moved.view(lying.shape).copy_(lying)
    x = moved.movedim(-1, 1) if last else moved
    y = OPS.depthwise_conv(tensors.x, tensors.weight, tensors.bias, *arguments(conv))
    assert torch.equal(OPS.depthwise_conv(x, tensors.weight, tensors.bias, *arguments(conv)), y)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("size, kernel", [((6, 8), (3, 3)), ((7, 5), (5, 5)), ((19,), (4,))])
@pytest.mark.parametrize("activation", ["relu6", "tanh"])
def test_tiles_with_activation_and_residual(activation, size, kernel, last):
    conv = Conv(size, kernel, C=4, last=last, dtype=BF16)
    tensors = make(conv)
    plain = defined(conv, *vars(tensors.to(F64)).values())
    residual = torch.randn(plain.shape, dtype=F64).to(BF16)
    exact = ACTIVATIONS[activation](plain) + residual.double()
    torchs = ACTIVATIONS[activation](defined(conv, *vars(tensors).values())) + residual
    y = OPS.depthwise_conv(
        tensors.x, tensors.weight, tensors.bias, *arguments(conv), None, activation, residual
    )
    assert_accurate(y, torchs, exact, activation)


# Separable convolutions.


def separable(conv: Conv, tensors: Tensors, pw: Tensor, pb: Tensor | None, residual, names):
    """By torch's convolutions, what comes in between in the dtype of x."""
    between = ACTIVATIONS[names[0]](defined(conv, *vars(tensors).values()))
    full = pw.reshape(*pw.shape[:2], *[1] * conv.dims)
    y = ACTIVATIONS[names[1]](CONVS[conv.dims](between, full, pb))
    return y if residual is None else y + residual


def assert_separable(conv: Conv, N: int, names=("none", "none"), bias=True, residual=False):
    tensors = make(conv)
    K = conv.C * conv.M
    pw = (torch.randn(N, K, dtype=F64) / K**0.5).to(DEVICE, conv.dtype)
    pb = torch.randn(N, dtype=F64).to(DEVICE, conv.dtype) if bias else None
    tensors.bias = tensors.bias if bias else None
    shape = (conv.B, N, *defined(conv, *vars(tensors).values()).shape[2:])
    more = torch.randn(shape, dtype=F64).to(DEVICE, conv.dtype) if residual else None

    def ours() -> Tensor:
        return OPS.separable_conv(
            tensors.x, tensors.weight, tensors.bias, pw, pb, OPS.pack_pointwise(pw),
            *arguments(conv), *names, more,
        )  # fmt: skip

    def wide(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        return None if t is None else t.to(dtype)

    def torchs(dtype: torch.dtype) -> Tensor:
        given = Tensors(*(wide(t, dtype) for t in (tensors.x, tensors.weight, tensors.bias)), None)
        return separable(conv, given, *(wide(t, dtype) for t in (pw, pb, more)), names)

    y, exact = ours(), torchs(F64)
    assert laid_out(y, conv.last).data_ptr() == y.data_ptr()
    if conv.dtype is F64:
        assert_accurate(y, exact, exact, "y", (torchs(F32), exact))
    else:
        assert_accurate(y, torchs(conv.dtype), exact, "y")
    assert torch.equal(y, ours()), "differs from run to run"


SEPARABLE = both(
    *(Conv((7, 5), (3, 4), C=20, dtype=t) for t in (F64, F32, BF16, F16)),
    Conv((9,), (4,), (3, 0), C=33, B=3),
    Conv((9, 8), (3, 2), (0, 2, 1, 0), stride=(2, 3), dilation=(2, 1), C=3, M=2, dtype=BF16),
    Conv((3, 4, 5), (2, 3, 1), C=2, dtype=BF16),
    # By cells.
    *(
        Conv((9, 11), (k, k), stride=(s, s), C=20, dtype=t)
        for k in (3, 5, 7)
        for s in (1, 2)
        for t in (F32, BF16, F16)
    ),
    Conv((14, 14), (3, 3), C=40, B=3, dtype=BF16),
    Conv((17, 18), (3, 3), (0, 2, 4, 0), C=2, B=3),
    Conv((33, 18), (3, 3), C=6, B=2, dtype=BF16),
)


@pytest.mark.parametrize("conv", SEPARABLE, ids=str)
@pytest.mark.parametrize("N", [1, 150])
def test_separable(conv, N):
    assert_separable(conv, N)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16])
@pytest.mark.parametrize("names", [("relu", "silu"), ("hardswish", "relu6")])
def test_separable_with_activations_and_residual(names, dtype, last):
    conv = Conv((5, 6), (3, 3), C=4, last=last, dtype=dtype)
    assert_separable(conv, 7, names, residual=True)
    assert_separable(conv, 7, names, bias=False)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [F64, F32, BF16])
def test_separable_with_more_channels_than_fit(dtype, last, monkeypatch):
    for shared in (4 << 10, 12 << 10):  # with pixels for a cell, or with less
        monkeypatch.setenv("ADL_EMULATED_SHARED", str(shared))
        assert_separable(Conv((4, 5), (3, 3), C=400, last=last, dtype=dtype), 150)


def test_separable_of_nothing():
    conv = Conv((5, 6), (3, 3), B=0)
    tensors = make(conv)
    y = OPS.separable_conv(
        tensors.x, tensors.weight, None, torch.empty(7, 3), None, None, *arguments(conv)
    )
    assert y.shape == (0, 7, 5, 6)
