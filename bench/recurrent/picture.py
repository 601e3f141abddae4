"""The picture of a run of `rnn`: for every case the ratios, and the shares of the peak."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.goals import counts, geometric_mean
from bench.picture import COLORS, lines, logarithmic, mark, save
from bench.recurrent.cases import DTYPES
from bench.report import WORDS
from bench.store import Content, Row

MARKERS = {"infer": "o", "train": "D"}


def draw(path: Path, content: Content) -> None:
    """One column per cell: ratios above, shares of the peak below. Malloc as it is."""
    rows = [row for row in content["rows"] if counts(row)]
    rows = [row for row in rows if row["malloc"] == "plain"] or rows
    if not rows:
        raise ValueError("bench: no row to draw, all of them were wrong or disturbed")
    long = [row for row in rows if row["T"] > 1]  # a single step is far from any peak
    cells = list(dict.fromkeys(row["cell"] for row in rows))
    sizes = [len(_names(some)) for some in (rows, long)]
    figure = Figure(figsize=(10, 1.8 + 0.27 * sum(sizes)), layout="constrained")
    axes = figure.subplots(
        2,
        len(cells),
        sharex="row",
        sharey="row",
        squeeze=False,
        height_ratios=[n + 1 for n in sizes],
    )
    for (above, below), cell in zip(axes.T, cells, strict=True):
        _ratios(above, rows, cell)
        _shares(below, long, cell)
        above.set_title(cell.upper(), loc="left")
    dtypes = [dtype for dtype in DTYPES if any(row["dtype"] == dtype for row in rows)]
    legend = [mark(dtype, "o", COLORS[dtype]) for dtype in dtypes]
    for mode, fill in (("infer", "black"), ("train", "white")):
        style = {"markerfacecolor": fill, "linestyle": ""}
        legend.append(mark(f"% of the peak, {WORDS[mode]}", MARKERS[mode], **style))
    figure.legend(handles=legend, loc="outside upper center", ncols=6, frameon=False)
    save(figure, path)


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["case"] for row in rows))


def _lanes(axis: Axes, rows: Sequence[Row], cell: str) -> Iterator[tuple[float, str, list[Row]]]:
    """One line of the axis per case, and in it one lane per dtype: yields y, dtype and rows."""
    names, dtypes = _names(rows), list(DTYPES)
    lines(axis, names)
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
    logarithmic(axis)
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
