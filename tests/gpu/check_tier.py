"""`python check_tier.py TIER CELL DTYPE`: one tier against cuDNN and float64, in a line of JSON.

Forward and backward, the same bits every time, and one graph capture. Exit status 1 if anything is
wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import Any

import devices
import torch

# Hidden sizes that the tier serves with every gate count and dtype, of as many sequences.
UNITS = {"block": 64, "cluster": 256, "grid": 768, "streaming": 256, "cudnn": 256}
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "tf32": torch.float32}
SIZES = {"T": 50, "B": 16, "I": 64}
REPEATS = 20

Row = dict[str, Any]


def check(tier: str, cell: str, dtype: str, T: int, B: int, I: int, H: int) -> Row:
    """What there is to say of a tier, as far as it came."""
    from layers import Case, Layer, gradients, gradients_in_tf32, make, widened
    from tolerance import allowed, error

    from adl_kernels.recurrent import engine
    from adl_kernels.recurrent.cell_facts import CELLS
    from adl_kernels.recurrent.options import StackOptions

    def by_us(of: Layer) -> list[torch.Tensor]:  # cuDNN is asked before any op is
        return engine.run(CELLS[cell], of.x, of.hx, of.weights, StackOptions())

    torch.manual_seed(0)
    case = Case(cell, T, B, I, H, DTYPES[dtype])
    row: Row = {"tier": tier, "cell": cell, "dtype": dtype, "case": str(case)}
    os.environ["ADL_CUDA_TIER"] = tier
    devices.allow_tf32(dtype == "tf32")
    layer = make(case)

    def run(cotangents: list | None = None) -> list[torch.Tensor]:
        if cotangents is None:
            with torch.no_grad():
                return by_us(layer)
        outputs, grads = gradients(layer, by_us, cotangents)
        return [*outputs, *grads]

    try:
        cotangents = [torch.randn_like(t) for t in run()]
        ours = run(cotangents)
        exact = gradients(widened(layer), Layer.reference, [c.double() for c in cotangents])
        torchs = gradients(layer, Layer.torchs, cotangents)
        names = ["y", "h_n", "c_n"][: len(exact[0])] + [f"d{name}" for name in layer.names]
        shares = {}  # of the error that is allowed
        peers = gradients_in_tf32(layer, cotangents) if dtype == "tf32" else torchs
        for name, a, b, c, d in zip(
            names, ours, *([*x, *y] for x, y in (torchs, exact, peers)), strict=True
        ):
            shares[name] = error(a, c) / allowed(b, c, tf32=d if dtype == "tf32" else None)
        outputs = len(exact[0])
        row["forward"] = max(list(shares.values())[:outputs])
        row["backward"] = max(list(shares.values())[outputs:])
        row["worst"] = max(shares, key=shares.__getitem__)
        row["same_bits"] = sum(all(map(torch.equal, run(cotangents), ours)) for _ in range(REPEATS))
        if devices.DEVICE == "cuda":
            row["graph"] = captured(run)
    except RuntimeError as problem:
        row["problem"] = str(problem).splitlines()[0]
    row["ok"] = good(row)
    return row


def good(row: Row) -> bool:
    """Also false for NaN, for which every comparison is."""
    errors = [row.get(key, float("nan")) for key in ("forward", "backward")]
    exact = row.get("same_bits") == REPEATS and row.get("graph", True) is True
    return "problem" not in row and all(e <= 1 for e in errors) and exact


def captured(run: Any) -> bool:
    """Whether a graph of the call gives the same bits, and again."""
    expected = run()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()
    same = []
    for _ in range(2):
        for tensor in found:
            tensor.fill_(7)
        graph.replay()
        same.append(all(map(torch.equal, found, expected)))
    return all(same)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python check_tier.py", description=__doc__)
    parser.add_argument("tier", choices=UNITS)
    parser.add_argument("cell", choices=("lstm", "gru", "rnn_tanh", "rnn_relu"))
    parser.add_argument("dtype", choices=DTYPES)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    asked = parser.parse_args(arguments)
    devices.use(asked.device)
    sizes = SIZES | {"H": UNITS[asked.tier]}
    if asked.device == "cpu":
        sizes = {"T": 2, "B": 2, "I": 3, "H": 5}
    start = time.monotonic()
    row = check(asked.tier, asked.cell, asked.dtype, **sizes)
    print(json.dumps(row | {"seconds": round(time.monotonic() - start, 1)}))
    return int(not row["ok"])


if __name__ == "__main__":
    sys.exit(main())
