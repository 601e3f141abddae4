"""The demo's picture: both loss curves of every cell and, below, how far they are apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

TORCH, OURS, CONTROL = "#9aa5b1", "#c2410c", "#3b6ea8"
# Losses that agree to the last bit have no place on a logarithmic axis; they lie on its floor.
FLOOR = 5e-8


def draw(path: Path, cells: Sequence[dict[str, Any]]) -> None:
    """One column per cell: losses above, differences below."""
    size = {"figsize": (4.6 * len(cells), 5.2), "height_ratios": (2, 1)}
    figure, axes = plt.subplots(
        2, len(cells), sharex="col", sharey="row", squeeze=False, layout="constrained", **size
    )
    for column, cell in enumerate(cells):
        _losses(axes[0, column], cell)
        _differences(axes[1, column], cell)
    axes[1, 0].legend(frameon=False, fontsize="small", loc="lower right")
    axes[0, 0].set_ylabel("training loss, nats per character")
    axes[1, 0].set_ylabel("difference from\ntorch.nn, nats")
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.01)
        axis.grid(axis="y", color="#e5e7eb", linewidth=0.6)
        axis.set_axisbelow(True)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _losses(axis: Axes, cell: dict[str, Any]) -> None:
    theirs, ours = cell["sides"]["torch.nn"], cell["sides"]["adl_kernels"]
    steps = range(1, len(theirs["losses"]) + 1)
    for side, name, color, width in (
        (theirs, "torch.nn", TORCH, 4.0),
        (ours, "adl_kernels", OURS, 1.0),
    ):
        speed = f"{side['characters_per_second'] / 1000:.0f}k characters/s"
        axis.plot(steps, side["losses"], color=color, linewidth=width, label=f"{name}, {speed}")
    axis.set_title(f"{cell['cell'].upper()}: {cell['speedup']:.2f} times as fast", loc="left")
    axis.legend(frameon=False)


def _differences(axis: Axes, cell: dict[str, Any]) -> None:
    theirs = cell["sides"]["torch.nn"]["losses"]
    for losses, name, color in (
        (cell["sides"]["adl_kernels"]["losses"], "adl_kernels", OURS),
        (cell["control_losses"], "torch.nn, weights moved by one ulp", CONTROL),
    ):
        apart = [max(abs(a - b), FLOOR) for a, b in zip(losses, theirs, strict=False)]
        axis.plot(range(1, len(apart) + 1), apart, color=color, linewidth=1.0, label=name)
    axis.set_yscale("log")
    axis.set_xlabel("training step")
