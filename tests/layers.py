"""One layer's arguments, made to measure, and the three ways to run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from devices import DEVICE
from tolerance import ProductsInTf32, assert_accurate, assert_near_as_a_whole
from torch import Tensor

from adl_kernels.recurrent import reference
from adl_kernels.recurrent.cell_facts import CELLS

SHORT = {torch.float64: "f64", torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


@dataclass(frozen=True)
class Case:
    """A layer: sizes as in the docstrings of functional.py, P == 0 for no projection."""

    cell: str
    T: int
    B: int
    I: int
    H: int
    dtype: torch.dtype = torch.float32
    D: int = 1
    P: int = 0
    bias: bool = True
    lengths: tuple[int, ...] = ()  # of a packed batch, decreasing

    def __str__(self) -> str:
        parts = [self.cell, f"T{self.T}", f"B{self.B}", f"H{self.H}", SHORT[self.dtype]]
        parts += ["bidirectional"] * (self.D == 2) + [f"P{self.P}"] * (self.P > 0)
        parts += ["nobias"] * (not self.bias) + ["packed"] * bool(self.lengths)
        return "-".join(parts)

    def with_dtype(self, dtype: torch.dtype) -> Case:
        return replace(self, dtype=dtype)


@dataclass
class Layer:
    """The tensors of a case; `tensors` are those with a gradient: x, hx, weights."""

    case: Case
    x: Tensor
    hx: list[Tensor]
    weights: list[Tensor]
    batch_sizes: Tensor | None

    @property
    def tensors(self) -> list[Tensor]:
        return [self.x, *self.hx, *self.weights]

    @property
    def names(self) -> list[str]:
        per = ["weight_ih", "weight_hh"] + ["bias_ih", "bias_hh"] * self.case.bias
        per += ["weight_hr"] * (self.case.P > 0)
        return ["x", "h_0", "c_0"][: 1 + len(self.hx)] + per * self.case.D

    def with_tensors(self, tensors: list[Tensor]) -> Layer:
        states = len(self.hx)
        return replace(
            self, x=tensors[0], hx=tensors[1 : 1 + states], weights=tensors[1 + states :]
        )

    def ours(self) -> list[Tensor]:
        return CELLS[self.case.cell].op(self.x, self.hx, self.weights, self.batch_sizes)

    def reference(self) -> list[Tensor]:
        return reference.layer(self.case.cell, self.x, self.hx, self.weights, self.batch_sizes)

    def torchs(self) -> list[Tensor]:
        """By torch.nn's layer or, of a cell that it has not, the definition in that dtype."""
        run = getattr(torch._VF, self.case.cell, None)
        if run is None:
            return self.reference()
        hx = [h.contiguous() for h in self.hx]  # cuDNN takes no others
        hx = hx if len(hx) == 2 else hx[0]
        options = (self.case.bias, 1, 0.0, True, self.case.D == 2)
        if self.batch_sizes is None:
            return list(run(self.x, hx, self.weights, *options, False))
        return list(run(self.x, self.batch_sizes, hx, self.weights, *options))


def make(case: Case) -> Layer:
    """Random arguments; x, hx and weights are slices of larger tensors, so no stride is trivial."""
    cell = CELLS[case.cell]
    width = case.P or case.H
    bound = case.H**-0.5

    def tensor(*shape: int, scale: float = 1.0) -> Tensor:
        wide = torch.randn(*shape[:-1], shape[-1] + 3, dtype=torch.float64) * scale
        return wide.to(DEVICE, case.dtype)[..., 2 : 2 + shape[-1]]

    batch_sizes = None
    rows: tuple[int, ...] = (case.T, case.B)
    if case.lengths:
        sizes = [sum(length > t for length in case.lengths) for t in range(case.T)]
        batch_sizes, rows = torch.tensor(sizes), (sum(sizes),)
    weights = []
    for _ in range(case.D):
        shapes = [(cell.gates * case.H, case.I), (cell.gates * case.H, width)]
        shapes += [(cell.gates * case.H,)] * 2 if case.bias else []
        shapes += [(case.P, case.H)] if case.P else []
        weights += [tensor(*shape, scale=bound) for shape in shapes]
    hx = [tensor(case.D, case.B, width)] + [tensor(case.D, case.B, case.H)] * cell.has_c
    return Layer(case, tensor(*rows, case.I), hx, weights, batch_sizes)


def gradients(layer: Layer, run: Callable, cotangents: list[Tensor]) -> tuple[list, tuple]:
    """The outputs of one of the ways to run a layer, and the gradients of its tensors."""
    tensors = [t.detach().clone(memory_format=torch.preserve_format) for t in layer.tensors]
    tensors = [t.requires_grad_() for t in tensors]
    outputs = run(layer.with_tensors(tensors))
    return outputs, torch.autograd.grad(outputs, tensors, cotangents)


def gradients_in_tf32(layer: Layer, cotangents: list[Tensor]) -> tuple[list, tuple]:
    """The same by the definition, with what it multiplies rounded to tf32."""
    with ProductsInTf32():
        return gradients(layer, Layer.reference, cotangents)


def widened(layer: Layer) -> Layer:
    return layer.with_tensors([t.double() for t in layer.tensors])


def narrowed(layer: Layer) -> Layer:
    return layer.with_tensors([t.float() for t in layer.tensors])


def assert_layer_is_accurate(case, tf32=False):
    """Outputs and every gradient, and that inference gives the same outputs.

    Returns what computes outputs and gradients again, and what they were.
    """
    layer = make(case)
    names = layer.names
    with torch.no_grad():
        outputs = layer.ours()
        y, *states = layer.reference()
    # A loss that reaches the final states, through gradients with strides of their own.
    cotangents = [
        torch.randn(*t.shape[:-1], 2 * t.shape[-1], dtype=torch.float64).to(t)[..., ::2]
        for t in [y, *states]
    ]
    exact = gradients(widened(layer), Layer.reference, [c.double() for c in cotangents])
    torchs = gradients(layer, Layer.torchs, cotangents)
    ours = gradients(layer, Layer.ours, cotangents)
    rounded = gradients_in_tf32(layer, cotangents) if tf32 and case.dtype == torch.float32 else None
    # Of the long cases on a GPU, rounding turns signs before the ReLU, and not those of its peers.
    coarse = rounded is not None or case.dtype in (torch.bfloat16, torch.float16)
    long = case.T > 20 and (tf32 or DEVICE == "cuda")
    turns = coarse and case.cell == "rnn_relu" and long
    if case.dtype == torch.float64:
        small, given = narrowed(layer), [c.float() for c in cotangents]
        torchs_small = gradients(small, Layer.torchs, given)
        exact_small = gradients(widened(small), Layer.reference, [c.double() for c in given])
    for kind, labels in enumerate((["y", "h_n", "c_n"], names)):
        for k, label in enumerate(labels[: len(ours[kind])]):
            float32 = None
            if case.dtype == torch.float64:
                float32 = torchs_small[kind][k], exact_small[kind][k]
            three = ours[kind][k], torchs[kind][k], exact[kind][k]
            if turns and kind == 1:
                assert_near_as_a_whole(three[0], three[2], f"d{label}")
                continue
            peer = rounded[kind][k] if rounded else None
            assert_accurate(*three, f"{'d' * kind}{label}", float32, peer)
    for label, inference, training in zip(["y", "h_n", "c_n"], outputs, ours[0], strict=False):
        assert torch.equal(inference, training), f"{label} differs between inference and training"
    return lambda: gradients(layer, Layer.ours, cotangents), ours
