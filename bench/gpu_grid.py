"""What is timed on a GPU, and what it is held to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench.cases import CLASSES, DTYPES, MODES, Case, Job, jobs

Row = dict[str, Any]

# float32 with and without rounding what is multiplied to tf32, which is torch's default for RNNs.
NUMBERS = {"f32": torch.float32, "tf32": torch.float32, **DTYPES}
WORDS = {"infer": "forward", "train": "training"}
GATED = ("lstm", "gru")

SMALL = tuple(Case(f"small-{B}x{H}", 512, B, H, H) for H in (32, 64, 128) for B in (1, 16, 64, 256))
LARGE = tuple(Case(f"large-{H}", 128, 32, H, H) for H in (256, 512, 1024))
# Where cuDNN has a persistent kernel: float16, one direction, H a multiple of 128.
BOX = Case("box-768", 1024, 16, 768, 768)
BOTH = {"kind": "stack", "num_layers": 2, "bidirectional": True}
STACKS = (Case("bi2-128", 256, 32, 128, 128, **BOTH), Case("bi2-512", 128, 32, 512, 512, **BOTH))
PACKED = (
    Case("packed-128", 512, 64, 128, 128, "packed"),
    Case("packed-512", 128, 32, 512, 512, "packed"),
)
NAMED = {case.name: case for case in (*SMALL, *LARGE, BOX, *STACKS, *PACKED)}


def grid(cells: Sequence[str], dtypes: Sequence[str]) -> tuple[Job, ...]:
    """What the goals are about first, in case time runs out."""
    found: list[Job] = []
    for dtype in dtypes:
        found += jobs(SMALL, GATED, (dtype,)) + jobs(PACKED, GATED, (dtype,))
        found += jobs((*LARGE, *STACKS), GATED, (dtype,))
        found += jobs((*SMALL, *LARGE), ("rnn",), (dtype,))
    found += jobs((BOX,), tuple(CLASSES), ("f16",))
    return tuple(job for job in found if job.cell in cells and job.dtype in dtypes)


# Goals


@dataclass(frozen=True)
class Goal:
    """All ratios torch.nn / ours of the rows that `about` picks are at least `least`."""

    label: str
    least: float
    about: Callable[[Row], bool]

    def judge(self, rows: Iterable[Row], mode: str) -> str:
        mine = [row for row in rows if row["mode"] == mode and self.about(row)]
        good = [row for row in mine if row["status"] == "ok"]
        if not mine:
            return ""
        if not good:
            return f"({self.least:.2f}) MISSED, nothing right"
        worst = min(good, key=lambda row: row["ratio"])
        mean = math.exp(math.fsum(math.log(row["ratio"]) for row in good) / len(good))
        met = round(worst["ratio"], 2) >= self.least and len(good) == len(mine)
        text = f"{mean:.2f} / {worst['ratio']:.2f} ({self.least:.2f}) {'met' if met else 'MISSED'}"
        return text + (f", {len(mine) - len(good)} WRONG" if len(good) < len(mine) else "")


def is_small(row: Row) -> bool:
    return row["H"] <= 128 and row["T"] == 512 and row["kind"] == "layer"


def _small(cell: str, dtype: str) -> Callable[[Row], bool]:
    return lambda row: is_small(row) and (row["cell"], row["dtype"]) == (cell, dtype)


def _is_other(row: Row) -> bool:
    return not (is_small(row) and row["cell"] in GATED and row["dtype"] != "f16")


GOALS = (
    *(
        Goal(f"{CLASSES[cell]} {dtype}, H ≤ 128, T = 512", 2.0, _small(cell, dtype))
        for cell in GATED
        for dtype in ("f32", "tf32", "bf16")
    ),
    Goal(
        "GRU bf16, H > 128",
        1.5,
        lambda row: (row["cell"], row["dtype"]) == ("gru", "bf16") and row["H"] > 128,
    ),
    Goal("LSTM, GRU, packed", 1.5, lambda row: row["kind"] == "packed"),
    Goal("LSTM, GRU, RNN f16 where cuDNN is best", 0.9, lambda row: row["case"] == BOX.name),
    Goal("everything else", 0.9, _is_other),
)


def goal_lines(rows: Sequence[Row], goals: Sequence[Goal] = GOALS) -> list[list[str]]:
    """Geometric mean / minimum of the ratios (the goal of the minimum), met or MISSED."""
    lines = [[goal.label, *(goal.judge(rows, mode) for mode in MODES)] for goal in goals]
    return [line for line in lines if any(line[1:])]
