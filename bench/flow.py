"""The flow of gradients on the adding problem: numbers and picture of examples/adding.py."""

from __future__ import annotations

import argparse
from typing import Any

from adl_kernels.diagnostics import GradientFlow
from bench import machine, store
from examples import adding


def main(options: argparse.Namespace) -> int:
    facts = machine.facts(options.arguments)
    print(machine.line(facts))
    cells: list[dict[str, Any]] = []
    flows: dict[str, list[GradientFlow]] = {}
    for cell in adding.CELLS:
        losses, flows[cell] = adding.learn(cell, options.steps, options.length)
        recent = losses[-100:]
        before, after = (_figures(flow) for flow in flows[cell])
        error = sum(recent) / len(recent)
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
