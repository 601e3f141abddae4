"""The picture of a run of `rnn`: for every case the ratios, and the shares of the peak."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bench.cases import DTYPES
from bench.goals import WORDS, Content, Row, geometric_mean

COLORS = {"f32": "#c2410c", "bf16": "#3b6ea8", "f16": "#4d8b57", "f64": "#6b7280"}
MARKERS = {"infer": "o", "train": "D"}
TICKS = (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)


def draw(path: Path, content: Content) -> None:
    """One column per cell: ratios above, shares of the peak below. Malloc as it is."""
    rows = [row for row in content["rows"] if row["status"] == "ok" and not row["disturbed"]]
    rows = [row for row in rows if row["malloc"] == "plain"] or rows
    if not rows:
        raise ValueError("bench: no row to draw, all of them were wrong or disturbed")
    long = [row for row in rows if row["T"] > 1]  # a single step is far from any peak
    cells = list(dict.fromkeys(row["cell"] for row in rows))
    counts = [len(_names(some)) for some in (rows, long)]
    size = {"figsize": (10, 1.8 + 0.27 * sum(counts)), "height_ratios": [n + 1 for n in counts]}
    figure, axes = plt.subplots(
        2, len(cells), sharex="row", sharey="row", squeeze=False, layout="constrained", **size
    )
    for column, cell in enumerate(cells):
        _ratios(axes[0, column], rows, cell)
        _shares(axes[1, column], long, cell)
        axes[0, column].set_title(cell.upper(), loc="left")
    dtypes = [dtype for dtype in DTYPES if any(row["dtype"] == dtype for row in rows)]
    figure.legend(handles=_legend(dtypes), loc="outside upper center", ncols=6, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["case"] for row in rows))


def _lanes(axis: Axes, rows: Sequence[Row], cell: str) -> Iterator[tuple[float, str, list[Row]]]:
    """One line of the axis per case, and in it one lane per dtype: yields y, dtype and rows."""
    names, dtypes = _names(rows), list(DTYPES)
    axis.set_yticks(range(len(names)), names)
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.grid(axis="x", color="#e5e7eb", linewidth=0.6)
    axis.set_axisbelow(True)
    for y in range(0, len(names), 2):
        axis.axhspan(y - 0.5, y + 0.5, color="#f8fafc", zorder=0)
    for y, name in enumerate(names):
        for lane, dtype in enumerate(dtypes):
            key = (cell, dtype, name)
            found = [row for row in rows if (row["cell"], row["dtype"], row["case"]) == key]
            if found:
                yield y + 0.2 * (lane - (len(dtypes) - 1) / 2), dtype, found


def _ratios(axis: Axes, rows: Sequence[Row], cell: str) -> None:
    """The range over modes and threads, with a dot at the geometric mean."""
    for y, dtype, found in _lanes(axis, rows, cell):
        ratios = [row["ratio"] for row in found]
        axis.plot([min(ratios), max(ratios)], [y, y], color=COLORS[dtype], linewidth=1.2)
        axis.plot(geometric_mean(ratios), y, "o", color=COLORS[dtype], markersize=3.5)
    axis.axvline(1, color="black", linewidth=1)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(TICKS))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}"))
    axis.set_xlabel("time of torch.nn / ours: mean, least\nand most over modes and threads")


def _shares(axis: Axes, rows: Sequence[Row], cell: str) -> None:
    """With most threads: forward and training."""
    for y, dtype, found in _lanes(axis, rows, cell):
        threads = max(row["threads"] for row in found)
        for row in found:
            if row["threads"] == threads:
                share = 100 * row["ours"]["share_of_peak"]
                fill = COLORS[dtype] if row["mode"] == "infer" else "white"
                style = {"color": COLORS[dtype], "markerfacecolor": fill, "markersize": 3.5}
                axis.plot(share, y, MARKERS[row["mode"]], **style)
    axis.set_xlim(0, 100)
    axis.set_xlabel("% of the peak of multiply-adds,\nmost threads")


def _legend(dtypes: Sequence[str]) -> list[Line2D]:
    lines = [Line2D([], [], color=COLORS[dtype], marker="o", label=dtype) for dtype in dtypes]
    for mode, fill in (("infer", "black"), ("train", "white")):
        style = {"color": "black", "markerfacecolor": fill, "linestyle": ""}
        label = f"% of the peak, {WORDS[mode]}"
        lines.append(Line2D([], [], marker=MARKERS[mode], label=label, **style))
    return lines
