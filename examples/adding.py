"""The adding problem (Hochreiter & Schmidhuber 1997): what LSTM and GRU learn and an RNN does not.

Each step brings a number between 0 and 1 and a mark; the target is the sum of the two numbers that
are marked, one in each half. At the end both are long ago: only a gradient that comes that far back
can teach to keep them, and gradient_flow shows how much of it does.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import adl_kernels
from adl_kernels.diagnostics import GradientFlow, gradient_flow

CELLS = {"RNN": adl_kernels.RNN, "LSTM": adl_kernels.LSTM, "GRU": adl_kernels.GRU}
COLORS = {"RNN": "#c2410c", "LSTM": "#3b6ea8", "GRU": "#4d8b57"}
BATCH, HIDDEN = 32, 32


def make_batch(length: int) -> tuple[Tensor, Tensor]:
    """x [T, B, 2], numbers and marks, and the sums [B]."""
    numbers, marks = torch.rand(length, BATCH), torch.zeros(length, BATCH)
    for half in (range(length // 2), range(length // 2, length)):
        marks[torch.randint(half.start, half.stop, (BATCH,)), torch.arange(BATCH)] = 1
    return torch.stack([numbers, marks], -1), (numbers * marks).sum(0)


class Adder(nn.Module):
    def __init__(self, cell: str, length: int) -> None:
        super().__init__()
        self.rnn = CELLS[cell](2, HIDDEN)
        self.sum = nn.Linear(HIDDEN, 1)
        if cell == "LSTM":
            self._remember(length)

    @torch.no_grad()
    def _remember(self, length: int) -> None:
        """Forget gates that let c last for 1 to T steps at the start (Tallec & Ollivier 2018)."""
        spans = torch.empty(HIDDEN).uniform_(1, length - 1).log()
        self.rnn.bias_hh_l0.zero_()
        self.rnn.bias_ih_l0.copy_(torch.cat([-spans, spans, torch.zeros(2 * HIDDEN)]))  # i f g o

    def loss(self, y: Tensor, target: Tensor) -> Tensor:
        """Mean square error of what the last state says; y [T, B, H]."""
        return F.mse_loss(self.sum(y[-1])[:, 0], target)


def learn(cell: str, steps: int, length: int) -> tuple[list[float], list[GradientFlow]]:
    """Losses, and the flow of one batch's gradient before and after training."""
    torch.manual_seed(1)
    model = Adder(cell, length)
    x, target = make_batch(length)
    torch.manual_seed(2)
    # 1e-2 takes the RNN further away from the target than it was.
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3 if cell == "RNN" else 1e-2)
    flows, losses = [gradient_flow(model.rnn, x, lambda y: model.loss(y, target))], []
    for _ in range(steps):
        some, sums = make_batch(length)
        loss = model.loss(model.rnn(some)[0], sums)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses, [*flows, gradient_flow(model.rnn, x, lambda y: model.loss(y, target))]


def draw(path: Path, found: dict[str, list[GradientFlow]], steps: int) -> None:
    """Before and after training: norms of dL/dh_t relative to dL/dh_T, and the bound of the RNN."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for k, axis in enumerate(axes):
        for cell, flows in found.items():
            layer = flows[k].layers[0]
            ts, share = range(1, flows[k].steps + 1), layer.gradient / layer.gradient[-1]
            axis.plot(ts, share, color=COLORS[cell], label=cell)
            if layer.bound is not None:
                label = f"bound of the {cell}, $(\\gamma\\lambda)^{{T-t}}$"
                axis.plot(ts, layer.bound.flip(0), ":", color=COLORS[cell], label=label)
        axis.set_title(f"after {steps} steps of training" if k else "at initialisation", loc="left")
        axis.set(yscale="log", xlabel="step t")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e5e7eb", linewidth=0.6)
    axes[0].set_ylim(top=1e15)  # the bound goes further
    axes[0].set_ylabel("$\\|\\partial L/\\partial h_t\\|\\ /\\ \\|\\partial L/\\partial h_T\\|$")
    axes[1].legend(frameon=False, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000, help="training steps of each layer")
    parser.add_argument("--length", type=int, default=200, help="steps of a sequence")
    parser.add_argument("--picture", type=Path, help="write the gradients' flow here, as PNG")
    options = parser.parse_args()
    print(f"{options.length} steps; whoever always says 1 has a mean square error of {1 / 6:.4f}")
    found = {}
    for cell in CELLS:
        losses, found[cell] = learn(cell, options.steps, options.length)
        recent = losses[-100:]
        print(f"{cell:5} mean square error of the last {len(recent)} batches "
              f"{sum(recent) / len(recent):.4f}; |dL/dh_1| / |dL/dh_T|", end="")  # fmt: skip
        for when, flow in zip(("before", "after"), found[cell], strict=True):
            gradient = flow.layers[0].gradient
            print(f"  {when} training {gradient[0] / gradient[-1]:.0e}", end="")
        print(flush=True)
    if options.picture:
        draw(options.picture, found, options.steps)
        print(f"written: {options.picture}")


if __name__ == "__main__":
    main()
