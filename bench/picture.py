"""What pictures of benchmarks have in common: a line per case, and a logarithmic axis of times."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

COLORS = {"f32": "#c2410c", "bf16": "#3b6ea8", "f16": "#4d8b57", "f64": "#6b7280"}
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def lines(axis: Axes, names: Sequence[str], **style: Any) -> None:
    """One line of the axis per name, the first on top."""
    axis.set_yticks(range(len(names)), names, **style)
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.grid(axis="x", color="#e5e7eb", linewidth=0.6)
    axis.set_axisbelow(True)


def logarithmic(axis: Axes) -> None:
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(TICKS))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def mark(label: str, marker: str = "", color: str = "black", **style: Any) -> Line2D:
    """Of a legend: a marker, or a line if there is none."""
    return Line2D([], [], color=color, marker=marker, label=label, **style)


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    print(f"written: {path}")
