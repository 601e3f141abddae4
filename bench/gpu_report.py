"""What `python -m bench gpu` prints, from what it writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from bench.cases import MODES
from bench.gpu_grid import WORDS, Row

GOAL_HEADS = ["torch.nn / ours: mean / worst (goal of the worst)", *(WORDS[mode] for mode in MODES)]


def markdown(content: dict[str, Any]) -> str:
    """Machine, ceilings, a line per case, and the goals last."""
    parts = [
        machine_line(content["machine"]),
        ceiling_line(content["ceilings"]),
        "\n".join(table_lines(content["rows"])),
        "\n".join(map(_line, [GOAL_HEADS, ["---"] * len(GOAL_HEADS), *content["goals"]])),
    ]
    return "\n\n".join(parts)


def problem_line(row: Row) -> str:
    return (
        f"{row['cell']} {row['dtype']} {row['shape']} {row['mode']}: {row['status']} {row['check']}"
    )


def machine_line(facts: dict[str, Any]) -> str:
    gpu = facts["gpu"] or facts["cpu"]
    cuda = f", CUDA {facts['cuda']}, cuDNN {facts['cudnn']}" if facts["gpu"] else ""
    return (
        f"{gpu}, torch {facts['torch']}{cuda}, adl_kernels {facts['adl_kernels']}, {facts['date']}"
    )


def ceiling_line(found: dict[str, float]) -> str:
    return "ceilings: " + ", ".join(f"{name} {value:.4g}" for name, value in found.items())


HEADS = ["cell", "dtype", "T, B, I, H"]
HEADS += [
    f"{WORDS[mode]}: {text}" for mode in MODES for text in ("ours, torch in µs/step", "ratio")
]


def table_lines(rows: Sequence[Row]) -> Iterator[str]:
    """Markdown; one line per cell, dtype and case."""
    yield _line(HEADS)
    yield _line(["---"] * len(HEADS))
    found: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        found.setdefault((row["cell"], row["dtype"], row["shape"]), {})[row["mode"]] = row
    for key, modes in found.items():
        cells = [*key]
        for mode in MODES:
            cells += _cells(modes[mode]) if mode in modes else ["", ""]
        yield _line(cells)


def _cells(row: Row) -> list[str]:
    if row["status"] != "ok":
        return [row["status"], row["check"]]
    ours, theirs = (f"{row[side]['us_per_step']:.3g}" for side in ("ours", "torch"))
    return [f"{ours}, {theirs}", f"{row['ratio']:.2f}"]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
