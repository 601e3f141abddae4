"""Backpropagation through time as the lectures write it, a sum of products of Jacobians.

With s_t the state after step t, (h_t, c_t) joined where there is a c, and L = sum over t of L_t:

    dL/dU = sum_t sum_{k<=t} dL_t/ds_t (prod_{j=k+1..t} ds_j/ds_{j-1}) d+s_k/dU

where d+ holds s_{k-1} constant. Nothing here recurs; the kernels' gradient must be the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from devices import DEVICE
from torch import Tensor
from torch.func import jacrev

from adl_kernels.recurrent import reference
from adl_kernels.recurrent.cell_facts import CELLS
from adl_kernels.recurrent.options import PLAIN, LayerOptions

# On matrices this small threads would only wait for each other.

T, B, I, H = 5, 2, 3, 4

CASES: list[tuple[str, LayerOptions]] = [(name, PLAIN) for name in CELLS]
CASES += [
    (name, PLAIN._replace(cell_activation=g, hidden_activation=h, peephole=True))
    for name, cell in CELLS.items()
    if cell.chooses
    for g, h in (("sigmoid", "sigmoid"), ("tanh", "identity"), ("identity", "relu"))
]


def name_of(case: tuple[str, LayerOptions]) -> str:
    cell, how = case
    return f"{cell}-{how.cell_activation}-{how.hidden_activation}" if how.peephole else cell


def random(*sizes: int, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(*sizes, dtype=torch.float64)).to(DEVICE)


def chain(jacobians: list[Tensor], k: int, t: int) -> Tensor:
    """prod_{j=k+1..t} ds_j/ds_{j-1}, the latest on the left; jacobians [T] of [B, S, S]."""
    product = torch.eye(jacobians[0].size(-1), dtype=torch.float64, device=DEVICE)
    for j in range(k + 1, t + 1):
        product = jacobians[j] @ product
    return product


def terms(
    cell: str, how: LayerOptions, x: Tensor, state: list[Tensor], w: list[Tensor], dl: Tensor
) -> Iterator[tuple[int, int, Tensor]]:
    """t, k and the term of the sum [G H, H]; dl [T, B, H] is dL_t/dh_t."""
    width = [s.size(-1) for s in state]

    def step(s: Tensor, u: Tensor, x_t: Tensor) -> Tensor:
        """s_t [S] of one sequence from s_{t-1} and U."""
        old = tuple(part[None] for part in s.split(width))
        weights = reference.Weights.of([w[0], u, *w[2:]], len(state) == 2, how)
        return torch.cat(reference.STEPS[cell](x_t[None], old[0], old, weights, how), 1)[0]

    s = torch.cat(state, -1)  # [B, S]
    by_state, by_u = [], []
    for t in range(T):
        pairs = list(zip(s, x[t], strict=True))
        by_state.append(torch.stack([jacrev(step, 0)(s_b, w[1], x_b) for s_b, x_b in pairs]))
        by_u.append(torch.stack([jacrev(step, 1)(s_b, w[1], x_b) for s_b, x_b in pairs]))
        s = torch.stack([step(s_b, w[1], x_b) for s_b, x_b in pairs])
    # L_t sees h_t only.
    row = torch.cat([dl, dl.new_zeros(T, B, sum(width[1:]))], -1)[:, :, None]  # [T, B, 1, S]
    for t in range(T):
        for k in range(t + 1):
            flow = (row[t] @ chain(by_state, k, t))[:, 0]
            yield t, k, torch.einsum("bs,bsgh->gh", flow, by_u[k])


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_kernels_compute_the_sum_of_the_lectures(case: tuple[str, LayerOptions]) -> None:
    name, how = case
    cell = CELLS[name]
    w = [random(cell.gates * H, I, scale=0.7), random(cell.gates * H, H, scale=0.7)]
    w += [random(cell.gates * H, scale=0.3), random(cell.gates * H, scale=0.3)]
    w += [random(cell.peepholes, H)] if how.peephole else []
    x, dl = random(T, B, I), random(T, B, H)
    state = [random(B, H) for _ in range(cell.states)]
    u = w[1].requires_grad_()
    y = cell.op(x, [s[None] for s in state], w, *how)[0]
    (gradient,) = torch.autograd.grad((dl * y).sum(), u)
    found = {(t, k): term.detach() for t, k, term in terms(name, how, x, state, w, dl)}
    assert len(found) == T * (T + 1) // 2
    torch.testing.assert_close(gradient, sum(found.values()), rtol=1e-11, atol=1e-12)
    # The long way back through time has a share that shows.
    assert found[T - 1, 0].abs().max() > 1e-4 * gradient.abs().max()


@pytest.mark.parametrize("name", CELLS)
def test_truncation_leaves_out_what_crosses_a_boundary(name: str) -> None:
    """bptt_steps = 2: of the terms those are left whose k and t lie in one chunk."""
    cell, how = CELLS[name], PLAIN._replace(bptt_steps=2)
    w = [random(cell.gates * H, I, scale=0.7), random(cell.gates * H, H, scale=0.7)]
    x, dl = random(T, B, I), random(T, B, H)
    state = [random(B, H) for _ in range(cell.states)]
    u = w[1].requires_grad_()
    y = cell.op(x, [s[None] for s in state], w, *how)[0]
    (gradient,) = torch.autograd.grad((dl * y).sum(), u)
    kept = [term for t, k, term in terms(name, how, x, state, w, dl) if t // 2 == k // 2]
    torch.testing.assert_close(gradient, sum(kept).detach(), rtol=1e-11, atol=1e-12)
