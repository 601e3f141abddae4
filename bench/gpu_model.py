"""What a step of a persistent recurrent kernel should cost on an H200: a model, to be calibrated.

A team of P blocks holds all of W_hh and serves one slice of the batch; G teams run side by side. A
step is the exchange of the state, the product, reading shared memory, the cell, and what is the
same for all (barriers of a block, packing). Of product, reading and bytes exchanged the longest
counts in full, the others by a third, as they overlap. Times are cycles but in `predict`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bench.cases import GATES

KB = 1024


@dataclass(frozen=True)
class Constants:
    """Rates per multiprocessor in bytes per cycle, latencies in cycles, of published figures."""

    megahertz: float = 1980
    mma: float = 6.6 / 4  # a product of 16 x 16 by 16 x 8
    shared_rate: float = 128
    push_latency: float = 250  # within a cluster
    push_rate: float = 18
    words_latency: float = 800  # through L2
    words_rate: float = 64
    words_total: float = 4500  # of all multiprocessors
    fixed: float = 220
    cell: Mapping[str, float] = field(default_factory=lambda: {"f": 220, "b": 300})
    overlap: float = 0.35
    clusters: Mapping[int, int] = field(default_factory=lambda: {8: 15, 16: 7})
    multiprocessors: int = 132
    grid_blocks: int = 128
    shared_bytes: int = 227 * KB
    tflops: Mapping[int, float] = field(default_factory=lambda: {2: 650.0, 4: 330.0})
    l2_TBs: float = 5.5  # that a kernel reads weights at
    hbm_TBs: float = 4.0


@dataclass(frozen=True)
class Layer:
    """What one scan computes: a layer, all directions. Numbers of two bytes, or of four (tf32)."""

    cell: str
    H: int
    B: int
    bytes: int
    directions: int = 1

    @property
    def gates(self) -> int:
        return GATES[self.cell]

    @property
    def weights(self) -> int:
        """Bytes of W_hh, of all directions."""
        return self.directions * self.gates * self.H * self.H * self.bytes


def register_bytes(columns: int) -> int:
    """Of the weights, per block, without spills."""
    return (160 if columns <= 16 else 128 if columns <= 64 else 96) * KB


def cycles(layer: Layer, tier: str, P: int, G: int, way: str, k: Constants) -> float | None:
    """Of one step by G teams of P blocks; None where it does not fit.

    way: "f", forward; backward by "gather" of all dgates, or by "scatter" of partial sums of dh.
    """
    gates, H, units = layer.gates, layer.H, math.ceil(layer.H / P)
    rows = math.ceil(layer.B / (G // layer.directions))
    N = 8 * math.ceil(rows / 8)
    depth = 32 // layer.bytes  # states that one instruction takes
    height, length = {
        "f": (gates * units, H),
        "gather": (units, gates * H),
        "scatter": (H, gates * units),
    }[way]
    fragments = math.ceil(height / 16) * math.ceil(length / depth)
    weights = 512 * fragments
    state = 4 if way == "scatter" else layer.bytes * (gates if way == "gather" else 1)
    received = H * rows * state
    out = 0 if way == "scatter" else height * N * 4  # partial sums of a warp
    held = 96 * KB if way == "scatter" and N > 16 else register_bytes(N)
    free = k.shared_bytes - min(2 * received, 64 * KB) - min(2 * out, 32 * KB) - 4 * KB
    if weights > held + free:
        return None

    product = fragments * (N // 8) * k.mma + 60
    streamed = max(0, weights - held) * math.ceil(N / 64)
    reading = (streamed + _operands(layer, way, height, length, N, out) + received) / k.shared_rate
    if way == "scatter":
        reading += 2 * H * N * 4 / k.shared_rate
    latency = exchange = 0.0
    if tier == "cluster":
        latency, exchange = k.push_latency, received * (P - 1) / P / k.push_rate
    elif tier == "grid":
        rate = min(k.words_rate, k.words_total / (P * G))
        latency, exchange = k.words_latency, received * (2 if way == "scatter" else 1) / rate
    longest = max(product, reading, exchange)
    core = longest + k.overlap * (product + reading + exchange - longest)
    numbers = 10 if way == "f" and layer.cell == "lstm" else 6 if way == "f" else 4
    cell = k.cell["f" if way == "f" else "b"] + units * rows * numbers / 16
    return latency + core + k.fixed + cell


def _operands(layer: Layer, way: str, height: int, length: int, N: int, out: int) -> float:
    """Bytes of states and partial sums that 8 warps read, in the better way to share the work."""
    once = length * N * layer.bytes
    tiles = math.ceil(height / 16)
    most = max(1, tiles // (2 if layer.gates == 4 else 3) if way == "f" else tiles)
    return min(
        groups * once + (0 if groups == 8 else (8 // groups) * 2 * out)
        for groups in (1, 2, 4, 8)
        if groups <= most
    )


def teams(layer: Layer, k: Constants) -> Iterator[tuple[str, int, int]]:
    """Tier, blocks per team, and teams."""
    D = layer.directions
    for rows in (1, 2, 4, 8, 16, 32):
        yield "block", 1, D * min(k.multiprocessors // D, max(1, math.ceil(layer.B / rows)))
    for P, fit in k.clusters.items():
        yield from (("cluster", P, G) for G in range(D, fit + 1, D))
    for P in (16, 24, 32, 48, 64, 96, 128):
        if layer.H // 2 >= P:
            yield from (("grid", P, G) for G in range(D, k.grid_blocks // P + 1, D))


def best(layer: Layer, direction: str, k: Constants) -> tuple[float, str] | None:
    """Cycles of the fastest resident kernel, forward ("f") or backward ("b"), and its tier."""
    ways = ("f",) if direction == "f" else ("gather", "scatter")
    found = [
        (cost, tier)
        for tier, P, G in teams(layer, k)
        if layer.B * layer.directions >= G
        for way in ways
        if (cost := cycles(layer, tier, P, G, way, k)) is not None
    ]
    return min(found) if found else None


def streaming_us(layer: Layer, direction: str, k: Constants) -> float:
    """A cuBLAS product and a kernel per step, in a graph."""
    rate = k.l2_TBs if layer.weights < 35e6 else k.hbm_TBs
    operations = 2 * layer.weights / layer.bytes * layer.B
    product = max(
        2.8,
        1.5 + layer.weights / rate * 1e-6,
        1.5 + operations / (0.5 * k.tflops[layer.bytes]) * 1e-6,
    )
    cell = 1.6 + layer.directions * layer.B * layer.H * (layer.gates + 3) * 4 / 3e6
    return (product + cell + 1.8) * (1.0 if direction == "f" else 1.2)


def scan_us(layer: Layer, direction: str, k: Constants) -> tuple[float, str]:
    """Of a step without the products outside the scan, and the tier."""
    streamed = streaming_us(layer, direction, k)
    resident = best(layer, direction, k)
    if resident is None or resident[0] / k.megahertz > streamed:
        return streamed, "streaming"
    return resident[0] / k.megahertz, resident[1]


# Rows of a result file


def layer_of(row: Mapping[str, Any]) -> Layer:
    """The layers of a row; packed ones as if its tokens were spread evenly over the steps."""
    rows = math.ceil(row["tokens"] / row["T"])
    size = 4 if row["dtype"] in ("f32", "tf32") else 2
    return Layer(row["cell"], row["H"], rows, size, row["directions"])


def predict(row: Mapping[str, Any], k: Constants | None = None) -> float:
    """Microseconds per step of a row, W_ih x and the gradients of weights and inputs included."""
    k = k or Constants()
    layer = layer_of(row)
    ways = "f" if row["mode"] == "infer" else "fb"
    scans = row["layers"] * sum(scan_us(layer, way, k)[0] for way in ways)
    # All products but that of each scan with h: one forward, three more backward.
    D, H = row["directions"], row["H"]
    into = row["I"] + (row["layers"] - 1) * D * H  # of all layers
    products = 2 * layer.gates * H * D * layer.B * into * (1 if row["mode"] == "infer" else 3)
    if row["mode"] == "train":
        products += 2 * layer.gates * H * D * layer.B * H * row["layers"]  # of W_hh's gradient
    return scans + products / k.tflops[layer.bytes] * 1e-6


def exchange_us(row: Mapping[str, Any], k: Constants) -> float:
    """The latency of the exchanges that follow each other in a step of a row."""
    tier = scan_us(layer_of(row), "f", k)[1]
    latency = {"cluster": k.push_latency, "grid": k.words_latency}.get(tier, 0.0)
    return row["layers"] * (1 if row["mode"] == "infer" else 2) * latency / k.megahertz


CALIBRATED = {
    "clock": ("megahertz", 1.0),
    "mma.sync bf16, N = 16, A in registers, 4 sums": ("mma", 0.5),
    "exchange latency, st.async, 16 blocks": ("push_latency", 1.0),
    "exchange rate, st.async, 16 blocks": ("push_rate", 1.0),
    "exchange latency, words in L2, 1 x 64 blocks": ("words_latency", 1.0),
    "exchange rate, words in L2, 2 x 64 blocks": ("words_total", 128.0),
}


def calibrated(rows: Sequence[Mapping[str, Any]]) -> Constants:
    """The model with what a calibration found; latencies are told in cycles."""
    found = {}
    for row in rows:
        if row["name"] in CALIBRATED and row["value"]:
            name, times = CALIBRATED[row["name"]]
            found[name] = times * row.get("cycles", row["value"])
    clusters = dict(Constants().clusters)
    for P in clusters:
        for row in rows:
            if row["name"] == f"clusters of {P} with 200 KB a block" and row["value"]:
                clusters[P] = int(row["value"])
    return replace(Constants(), clusters=clusters, **found)
