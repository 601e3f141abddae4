"""What tiers.h of CUDA predicts for a row of `gpu`, and what a calibration says of its model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.recurrent.cases import GATES

Row = Mapping[str, Any]

ROOT = Path(__file__).resolve().parents[2]
TIERS = ROOT / "csrc/recurrent/cuda/tiers.h"


def assumed() -> dict[str, float]:
    """`Costs` of csrc/recurrent/cuda/tiers.h: cycles, bytes per cycle, microseconds."""
    body = TIERS.read_text().partition("struct Costs {")[2].partition("};")[0]
    return {name: float(value) for name, value in re.findall(r"(\w+) = ([\d.e+-]+)", body)}


def assumed_names() -> set[str]:
    """Those that a calibration tells."""
    return {name for name, _ in CALIBRATED.values()}


# Figures by the constants that they tell, and what one is times the other.
CALIBRATED = {
    "clock": ("per_microsecond", 1.0),
    "mma.sync bf16, N = 16, A in registers, 4 sums": ("product", 2.0),
    "exchange latency, st.async, 16 blocks": ("cluster_latency", 1.0),
    "exchange rate, st.async, 16 blocks": ("cluster_rate", 1.0),
    "exchange latency, words in L2, 1 x 64 blocks": ("grid_latency", 1.0),
    "exchange rate, words in L2, 2 x 64 blocks": ("grid_rate_of_all", 128.0),
}
L2_TBS = 5.5  # at which a kernel reads weights; an estimate
TFLOPS = {2: 650.0, 4: 330.0}  # of large products, by the bytes of a number; assumed


@dataclass(frozen=True)
class Gpu:
    """What a calibration found, and where it found nothing, what is assumed."""

    costs: Mapping[str, float] = field(default_factory=dict)
    clusters: Mapping[int, int] = field(default_factory=lambda: {8: 15, 16: 7})  # at a time

    def cost(self, name: str) -> float:
        return self.costs.get(name, assumed()[name])


def calibrated(rows: Sequence[Row]) -> Gpu:
    clusters = dict(Gpu().clusters)
    for P in clusters:
        for row in rows:
            if row["name"] == f"clusters of {P} with 200 KB a block" and row["value"]:
                clusters[P] = int(row["value"])
    return Gpu(costs(rows), clusters)


def costs(rows: Sequence[Row]) -> dict[str, float]:
    """What a calibration says of the constants, by name; latencies are told in cycles."""
    found = {}
    for row in rows:
        if row["name"] in CALIBRATED and row["value"]:
            name, times = CALIBRATED[row["name"]]
            found[name] = times * row.get("cycles", row["value"])
    return found


# Rows of a result file


def number_bytes(row: Row) -> int:
    return 4 if row["dtype"] in ("f32", "tf32") else 2


def sequences(row: Row) -> int:
    """Of a step; packed ones as if the tokens were spread evenly over the steps."""
    return math.ceil(row["tokens"] / row["T"])


def weights(row: Row) -> int:
    """Bytes of W_hh, of both directions."""
    return row["directions"] * GATES[row["cell"]] * row["H"] ** 2 * number_bytes(row)


def plan(row: Row, backward: bool, gpu: Gpu) -> dict[str, Any]:
    """Of a scan of one layer, in all directions: its tier, the microseconds of a step and those
    that it begins with."""
    from adl_kernels import _C
    from adl_kernels.recurrent.cell_facts import CELLS

    cell = CELLS[{"rnn": "rnn_tanh"}.get(row["cell"], row["cell"])]
    return _C.cuda_plan(
        gates=cell.gates,
        pre_activations=cell.pre_activations,
        hidden_size=row["H"],
        sequences=sequences(row),
        steps=row["T"],
        directions=row["directions"],
        layers=row["layers"],
        input_size=row["I"],
        dtype=row["dtype"],
        backward=backward,
        training=row["mode"] == "train",
        clusters_of_8=gpu.clusters[8],
        clusters_of_16=gpu.clusters[16],
    )


def predict(row: Row, gpu: Gpu | None = None) -> float:
    """Microseconds per step of a row, W_ih x and the gradients of weights and inputs included."""
    gpu = gpu or Gpu()
    train = row["mode"] == "train"
    ways = (False, True) if train else (False,)
    plans = [plan(row, way, gpu) for way in ways]
    scans = row["layers"] * sum(p["microseconds"] + p["start"] / row["T"] for p in plans)
    # The products around the scans: W_ih x; the gradients of x, W_ih and W_hh.
    D, H = row["directions"], row["H"]
    into = row["I"] + (row["layers"] - 1) * D * H  # of all layers
    columns = (3 * into + row["layers"] * H) if train else into
    operations = 2 * D * GATES[row["cell"]] * H * sequences(row) * columns
    return scans + operations / TFLOPS[number_bytes(row)] * 1e-6


def exchange_us(row: Row, gpu: Gpu) -> float:
    """The latencies of the exchanges that follow each other in a step of a row."""
    ways = (False,) if row["mode"] == "infer" else (False, True)
    found = 0.0
    for way in ways:
        tier = plan(row, way, gpu)["tier"]
        found += gpu.cost(f"{tier}_latency") if tier in ("cluster", "grid") else 0.0
    return row["layers"] * found / gpu.cost("per_microsecond")
