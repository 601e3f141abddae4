"""The picture of a run of `gpu`: times per step, what was predicted, and what bounds them.

No kernel can be faster than its products on the tensor cores and the exchange of the state that
must come before the next step: the grey of the picture. Kernels that keep no weights on the chip
read them in every step, from L2 or from memory: two marks, which resident kernels leave behind.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from bench import picture
from bench.gpu import model
from bench.picture import mark
from bench.recurrent.cases import MODES, Case, flops
from bench.report import WORDS
from bench.store import Content, Row

COLORS = picture.COLORS | {"tf32": "#c2410c"}
GREY = "#d1d5db"


def draw(path: Path, content: Content) -> None:
    """A line per case, forward and training side by side. With what the calibration of the same run
    found, if it is beside the file."""
    beside = path.with_name("calibration.json")
    calibration = json.loads(beside.read_text())["calibration"] if beside.exists() else ()
    gpu = model.calibrated(calibration)
    rows = [row for row in content["rows"] if row["status"] == "ok"]
    if not rows:
        raise ValueError("bench: no row to draw, all of them were wrong")
    names = list(dict.fromkeys(_key(row) for row in rows))
    figure = Figure(figsize=(11, 1.8 + 0.26 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(MODES), sharey=True)
    for axis, mode in zip(axes, MODES, strict=True):
        picture.lines(axis, names, fontsize="small")
        for row in rows:
            if row["mode"] == mode:
                _line(axis, names.index(_key(row)), row, bounds(row, content["ceilings"], gpu))
        picture.logarithmic(axis)
        axis.margins(x=0.12)
        axis.set_title(WORDS[mode], loc="left")
    name = content["machine"]["gpu"] or content["machine"]["cpu"]
    figure.legend(handles=_legend(), loc="outside upper center", ncols=2, frameon=False)
    figure.supxlabel(f"µs per step, {name}", fontsize="medium")
    picture.save(figure, path)


def bounds(row: Row, ceilings: Mapping[str, float], gpu: model.Gpu) -> dict[str, float]:
    """Microseconds per step: the floor, reading all of W_hh in every step, and the prediction."""
    scans = row["layers"] * (1 if row["mode"] == "infer" else 2)
    read = scans * model.weights(row)
    number = row["dtype"]  # of the matrix product that was measured
    peak = ceilings.get(f"matmul {number} TFLOP/s") or model.TFLOPS[model.number_bytes(row)]
    found = {
        "products": operations(row) / row["T"] / peak * 1e-6,
        "exchange": model.exchange_us(row, gpu),
        "from memory": read / ceilings["copy GB/s"] * 1e-3,
    }
    found["floor"] = found["products"] + found["exchange"]
    if model.weights(row) < 40e6:  # or else L2 does not hold them
        found["from L2"] = read / model.L2_TBS * 1e-6
    if row["dtype"] != "f32":  # the model is one of tensor cores
        found["predicted"] = model.predict(row, gpu)
    return found


def operations(row: Row) -> int:
    """Of the matrix products of one call."""
    sizes = (row[key] for key in ("case", "T", "B", "I", "H", "kind", "layers"))
    return flops(row["cell"], Case(*sizes, row["directions"] == 2), row["mode"])


def _key(row: Row) -> str:
    return f"{row['cell'].upper()} {row['dtype']}  {row['shape']}"


def _line(axis: Axes, y: int, row: Row, found: Mapping[str, float]) -> None:
    ours, theirs = row["ours"]["us_per_step"], row["torch"]["us_per_step"]
    color = COLORS[row["dtype"]]
    axis.barh(y, found["floor"], height=0.8, color=GREY, zorder=1)
    for name, style in (("from L2", ":"), ("from memory", "-")):
        if name in found:
            axis.plot([found[name]] * 2, [y - 0.4, y + 0.4], style, color="black", linewidth=1)
    if "predicted" in found:
        axis.plot(found["predicted"], y, "D", color=color, markerfacecolor="white", markersize=4.5)
    axis.plot([ours, theirs], [y, y], color=color, linewidth=0.8, zorder=1.5)
    axis.plot(theirs, y, "x", color="black", markersize=4.5)
    axis.plot(ours, y, "o", color=color, markersize=4.5)
    style = {"textcoords": "offset points", "va": "center", "fontsize": "x-small"}
    axis.annotate(f"{row['ratio']:.2f}x", (max(ours, theirs), y), (6, 0), **style)


def _legend() -> list[Line2D | Patch]:
    color, alone = COLORS["bf16"], {"linestyle": ""}
    return [
        mark("adl_kernels", "o", color, **alone),
        mark("torch.nn", "x", **alone),
        mark("predicted", "D", color, markerfacecolor="white", **alone),
        Patch(color=GREY, label="out of reach: tensor cores at their rate, exchanges of the state"),
        mark("W_hh from L2 in every step", linestyle=":"),
        mark("W_hh from memory in every step"),
    ]
