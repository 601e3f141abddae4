"""Calls of an op with what torch.nn's layers have not, and the definition they are held to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from devices import DEVICE
from torch import Tensor

from adl_kernels.recurrent import reference
from adl_kernels.recurrent.cell_facts import CELLS
from adl_kernels.recurrent.options import LayerOptions

SHORT = {torch.float64: "f64", torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
F64 = torch.float64


@dataclass(frozen=True)
class Asked:
    """A layer's sizes, as in layers.Case, and the extras of a call."""

    cell: str
    T: int = 5
    B: int = 3
    I: int = 4
    H: int = 7
    dtype: torch.dtype = F64
    D: int = 1
    P: int = 0
    bias: bool = True
    packed: bool = False
    lengths: bool = False
    reset: bool = False
    mask: bool = False
    zoneout: str = ""  # "masks" or "shares"
    activations: tuple[str, str] = ("tanh", "tanh")
    peephole: bool = False
    layer_norm: bool = False
    all_states: bool = False
    bptt_steps: int = 0

    def __str__(self) -> str:
        parts = [self.cell, f"T{self.T}", f"B{self.B}", f"H{self.H}", SHORT[self.dtype]]
        parts += ["bidirectional"] * (self.D == 2) + [f"P{self.P}"] * (self.P > 0)
        parts += ["nobias"] * (not self.bias) + [self.zoneout and f"zoneout-{self.zoneout}"]
        flags = ("packed", "lengths", "reset", "mask", "peephole", "layer_norm", "all_states")
        parts += [flag for flag in flags if getattr(self, flag)]
        parts += ["-".join(self.activations)] * (self.activations != ("tanh", "tanh"))
        parts += [f"bptt{self.bptt_steps}"] * (self.bptt_steps > 0)
        return "-".join(part for part in parts if part)

    def with_dtype(self, dtype: torch.dtype) -> Asked:
        return replace(self, dtype=dtype)


@dataclass
class Call:
    """The arguments of an op; `tensors` are those with a gradient: x, hx, weights."""

    asked: Asked
    tensors: list[Tensor]
    extras: LayerOptions

    @property
    def names(self) -> list[str]:
        asked, has_c = self.asked, CELLS[self.asked.cell].has_c
        per = ["weight_ih", "weight_hh"] + ["bias_ih", "bias_hh"] * asked.bias
        per += ["weight_hr"] * (asked.P > 0) + ["weight_ch"] * asked.peephole
        norms = ["weight_ln_ih", "weight_ln_hh"] + ["weight_ln_c", "bias_ln_c"] * has_c
        return ["x", "h_0", "c_0"][: 2 + has_c] + (per + norms * asked.layer_norm) * asked.D

    def run(self, op: Any, dtype: torch.dtype | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """Outputs and gradients of a loss that reaches all of them."""
        dtype = dtype or self.asked.dtype
        tensors = [t.detach().to(dtype).requires_grad_() for t in self.tensors]
        states = CELLS[self.asked.cell].states
        extras = self.extras
        if extras.recurrent_mask is not None:
            extras = extras._replace(recurrent_mask=extras.recurrent_mask.to(dtype))
        hx, weights = tensors[1 : 1 + states], tensors[1 + states :]
        outputs = op(tensors[0], hx, weights, *extras)
        generator = torch.Generator().manual_seed(5)
        cotangents = [
            torch.randn(t.shape, generator=generator, dtype=F64).round(decimals=1).to(t)
            for t in outputs
        ]
        grads = torch.autograd.grad(outputs, tensors, cotangents, allow_unused=True)
        grads = [
            torch.zeros_like(t) if g is None else g for t, g in zip(tensors, grads, strict=True)
        ]
        return [t.detach() for t in outputs], grads

    def ours(self) -> tuple[list[Tensor], list[Tensor]]:
        return self.run(CELLS[self.asked.cell].op)

    def definition(self, dtype: torch.dtype = F64) -> tuple[list[Tensor], list[Tensor]]:
        name = self.asked.cell
        return self.run(lambda *args: reference.layer(name, *args), dtype)


def make(asked: Asked) -> Call:
    """Random arguments, from a fixed seed; no stride is trivial."""
    cell, width = CELLS[asked.cell], asked.P or asked.H
    generator = torch.Generator().manual_seed(3)
    G, H, T, B = cell.gates, asked.H, asked.T, asked.B

    def tensor(*shape: int, scale: float = 1.0) -> Tensor:
        wide = torch.randn(*shape[:-1], shape[-1] + 3, dtype=F64, generator=generator) * scale
        return wide.to(DEVICE, asked.dtype)[..., 2 : 2 + shape[-1]]

    def coin(*shape: int, p: float = 0.4) -> Tensor:
        return (torch.rand(shape, generator=generator) < p).to(DEVICE)

    batch_sizes = lengths = None
    rows: tuple[int, ...] = (T, B)
    if asked.packed:
        ends = torch.linspace(1, T, B).round()
        batch_sizes = (ends > torch.arange(T)[:, None]).sum(1)
        rows = (int(batch_sizes.sum()),)
    if asked.lengths:
        lengths = torch.randint(0, T + 1, (B,), generator=generator)
        lengths[B // 2] = T
        lengths = lengths.to(DEVICE)
    weights = []
    for _ in range(asked.D):
        bound = H**-0.5
        weights += [tensor(G * H, asked.I, scale=bound), tensor(G * H, width, scale=bound)]
        weights += [tensor(G * H, scale=bound) for _ in range(2 * asked.bias)]
        weights += [tensor(asked.P, H, scale=bound)] * (asked.P > 0)
        weights += [tensor(cell.peepholes, H)] * asked.peephole
        if asked.layer_norm:
            weights += [1 + tensor(G * H, scale=0.3), 1 + tensor(G * H, scale=0.3)]
            weights += [1 + tensor(H, scale=0.3), tensor(H, scale=0.3)] * cell.has_c
    hx = [tensor(asked.D, B, width)] + [tensor(asked.D, B, H)] * cell.has_c
    masks: list[Tensor | None] = [None, None]
    if asked.zoneout == "masks":
        masks[0] = coin(asked.D, *rows, width).to(torch.uint8)
        masks[1] = coin(asked.D, *rows, H).to(torch.uint8) if cell.has_c else None
    mask = coin(asked.D, B, width, p=0.7) / 0.7 if asked.mask else None
    extras = LayerOptions(
        batch_sizes,
        lengths,
        coin(T, B, p=0.3) if asked.reset else None,
        None if mask is None else mask.to(asked.dtype),
        *masks,
        (0.25, 0.4)[: cell.states] if asked.zoneout == "shares" else (),
        *asked.activations,
        asked.peephole,
        asked.layer_norm,
        asked.all_states,
        asked.bptt_steps,
    )
    return Call(asked, [tensor(*rows, asked.I), *hx, *weights], extras)
