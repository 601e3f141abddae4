"""The flow of gradients on the adding problem: adding.py, with its numbers and picture on file."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# bench is not installed. Appended, so that it cannot shadow an installed adl_kernels.
sys.path.append(str(Path(__file__).resolve().parents[1]))

import adding

from adl_kernels.diagnostics import GradientFlow
from bench import machine, store
from bench.options import RESULTS


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--steps", type=int, default=1000, metavar="N", help="training steps of each layer")
    add("--length", type=int, default=200, metavar="T", help="steps of a sequence")
    add("--out", type=Path, default=RESULTS, metavar="DIR", help="folder for the results")
    options = parser.parse_args(arguments)
    facts = machine.facts(["examples/gradient_flow.py", *arguments])
    print(machine.line(facts))
    cells: list[dict[str, Any]] = []
    flows: dict[str, list[GradientFlow]] = {}
    for cell in adding.CELLS:
        losses, flows[cell] = adding.learn(cell, options.steps, options.length)
        error = statistics.fmean(losses[-100:])
        before, after = (_figures(flow) for flow in flows[cell])
        cells.append({"cell": cell, "mean_square_error": error, "before": before, "after": after})
        print(
            f"{cell:5} mean square error {error:.4f}, |dL/dh_1| / |dL/dh_T| "
            f"{before['first_to_last']:.0e} before, {after['first_to_last']:.0e} after training"
        )
    path = options.out / "gradient-flow.json"
    sizes = {"length": options.length, "steps": options.steps, "hidden": adding.HIDDEN}
    store.write_json(path, {"machine": facts} | sizes | {"guessing": 1 / 6, "cells": cells})
    adding.draw(path.with_suffix(".png"), flows, options.steps)
    print(f"written: {path}, {path.with_suffix('.png')}")
    return 0


def _figures(flow: GradientFlow) -> dict[str, Any]:
    (layer,) = flow.layers
    return {
        "first_to_last": (layer.gradient[0] / layer.gradient[-1]).item(),
        "gamma_lambda": layer.gamma_lambda,
        "gradient": [float(f"{norm:.4g}") for norm in layer.gradient.tolist()],
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
