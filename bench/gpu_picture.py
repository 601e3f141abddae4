"""The picture of a run of `gpu`: times per step, what was predicted, and what bounds them.

No kernel can be faster than its products on the tensor cores and the exchange of the state that
must come before the next step: the grey of the picture. Kernels that keep no weights on the chip
read them in every step, from L2 or from memory: two marks, which resident kernels leave behind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bench import gpu_model
from bench.cases import MODES, Case, flops
from bench.gpu_grid import WORDS, Row
from bench.picture import COLORS

COLORS_HERE = COLORS | {"tf32": "#c2410c"}
GREY = "#d1d5db"
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def draw(path: Path, content: Mapping[str, Any], calibration: Sequence[Row] = ()) -> None:
    """A line per case, forward and training side by side. `calibration`: rows of its file."""
    gpu = gpu_model.calibrated(calibration)
    rows = [row for row in content["rows"] if row["status"] == "ok"]
    if not rows:
        raise ValueError("bench: no row to draw, all of them were wrong")
    names = list(dict.fromkeys(_key(row) for row in rows))
    figure, axes = plt.subplots(
        1,
        len(MODES),
        sharey=True,
        squeeze=False,
        layout="constrained",
        figsize=(11, 1.8 + 0.26 * len(names)),
    )
    for axis, mode in zip(axes[0], MODES, strict=True):
        mine = [row for row in rows if row["mode"] == mode]
        _lanes(axis, names)
        for row in mine:
            _line(axis, names.index(_key(row)), row, bounds(row, content["ceilings"], gpu))
        _scale(axis)
        axis.set_title(WORDS[mode], loc="left")
    name = content["machine"]["gpu"] or content["machine"]["cpu"]
    figure.legend(handles=_legend(), loc="outside upper center", ncols=2, frameon=False)
    figure.supxlabel(f"µs per step, {name}", fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def bounds(row: Row, ceilings: Mapping[str, float], gpu: gpu_model.Gpu) -> dict[str, float]:
    """Microseconds per step: the floor, reading all of W_hh in every step, and the prediction."""
    scans = row["layers"] * (1 if row["mode"] == "infer" else 2)
    read = scans * gpu_model.weights(row)
    number = row["dtype"]  # of the matrix product that was measured
    peak = ceilings.get(f"matmul {number} TFLOP/s") or gpu_model.TFLOPS[gpu_model.number_bytes(row)]
    found = {
        "products": operations(row) / row["T"] / peak * 1e-6,
        "exchange": gpu_model.exchange_us(row, gpu),
        "from memory": read / ceilings["copy GB/s"] * 1e-3,
    }
    found["floor"] = found["products"] + found["exchange"]
    if gpu_model.weights(row) < 40e6:  # or else L2 does not hold them
        found["from L2"] = read / gpu_model.L2_TBS * 1e-6
    if row["dtype"] != "f32":  # the model is one of tensor cores
        found["predicted"] = gpu_model.predict(row, gpu)
    return found


def operations(row: Row) -> int:
    """Of the matrix products of one call."""
    case = Case(
        row["case"],
        row["T"],
        row["B"],
        row["I"],
        row["H"],
        row["kind"],
        row["layers"],
        row["directions"] == 2,
    )
    return flops(row["cell"], case, row["mode"])


def _key(row: Row) -> str:
    return f"{row['cell'].upper()} {row['dtype']}  {row['shape']}"


def _lanes(axis: Axes, names: Sequence[str]) -> None:
    axis.set_yticks(range(len(names)), names, fontsize="small")
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.grid(axis="x", color="#e5e7eb", linewidth=0.6)
    axis.set_axisbelow(True)


def _line(axis: Axes, y: int, row: Row, found: Mapping[str, float]) -> None:
    ours, theirs = row["ours"]["us_per_step"], row["torch"]["us_per_step"]
    color = COLORS_HERE[row["dtype"]]
    axis.barh(y, found["floor"], height=0.8, color=GREY, zorder=1)
    for name, style in (("from L2", ":"), ("from memory", "-")):
        if name in found:
            axis.plot([found[name]] * 2, [y - 0.4, y + 0.4], style, color="black", linewidth=1)
    if "predicted" in found:
        axis.plot(found["predicted"], y, "D", color=color, markerfacecolor="white", markersize=4.5)
    axis.plot([ours, theirs], [y, y], color=color, linewidth=0.8, zorder=1.5)
    axis.plot(theirs, y, "x", color="black", markersize=4.5)
    axis.plot(ours, y, "o", color=color, markersize=4.5)
    axis.annotate(
        f"{row['ratio']:.2f}x",
        (max(ours, theirs), y),
        (6, 0),
        textcoords="offset points",
        va="center",
        fontsize="x-small",
    )


def _scale(axis: Axes) -> None:
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(TICKS))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda time, _: f"{time:g}"))
    axis.margins(x=0.12)


def _legend() -> list[Line2D | Patch]:
    color = COLORS_HERE["bf16"]
    return [
        Line2D([], [], color=color, marker="o", linestyle="", label="adl_kernels"),
        Line2D([], [], color="black", marker="x", linestyle="", label="torch.nn"),
        Line2D(
            [],
            [],
            color=color,
            marker="D",
            markerfacecolor="white",
            linestyle="",
            label="predicted",
        ),
        Patch(color=GREY, label="out of reach: tensor cores at their rate, exchanges of the state"),
        Line2D([], [], color="black", linestyle=":", label="W_hh from L2 in every step"),
        Line2D([], [], color="black", label="W_hh from memory in every step"),
    ]
