"""What is timed on a GPU, against torch.nn on cuDNN, and what it is held to.

Both sides compute the whole layer, W_ih x included; inputs are as wide as states. In a grid comes
first what tells most, in case time runs out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from bench.goals import Bound, Column, Goal
from bench.recurrent.cases import CLASSES, DTYPES, MODES, Case, Job, jobs
from bench.report import WORDS
from bench.store import Row

# float32 with and without rounding what is multiplied to tf32, which is torch's default for RNNs.
NUMBERS = {
    "tf32": torch.float32,
    **{name: DTYPES[name] for name in ("bf16", "f16", "f32")},
}
GATED = ("lstm", "gru")
COLUMNS = tuple(Column(WORDS[mode], {"mode": mode}) for mode in MODES)


@dataclass(frozen=True)
class Grid:
    jobs: tuple[Job, ...]
    goals: tuple[Goal, ...]

    def select(self, cells: Sequence[str], dtypes: Sequence[str]) -> tuple[Job, ...]:
        return tuple(job for job in self.jobs if job.cell in cells and job.dtype in dtypes)


def _goal(label: str, least: float, about: Callable[[Row], bool]) -> Goal:
    """All ratios torch.nn / ours of the rows that `about` picks are at least `least`."""
    return Goal(label, about, (Bound(None, least),) * len(COLUMNS))


# Where cuDNN has a persistent kernel: float16, one direction, H a multiple of 128.
BOX = Case("box-768", 1024, 16, 768, 768)


def _stack(name: str, T: int, layers: int, B: int, H: int, bidirectional: bool = False) -> Case:
    return Case(name, T, B, H, H, "stack", layers, bidirectional)


def _wide() -> Grid:
    """Every kind of layer, small ones most of all."""
    small = [Case(f"small-{B}x{H}", 512, B, H, H) for H in (32, 64, 128) for B in (1, 16, 64, 256)]
    large = [Case(f"large-{H}", 128, 32, H, H) for H in (256, 512, 1024)]
    stacks = [_stack("bi2-128", 256, 2, 32, 128, True), _stack("bi2-512", 128, 2, 32, 512, True)]
    packed = [
        Case("packed-128", 512, 64, 128, 128, "packed"),
        Case("packed-512", 128, 32, 512, 512, "packed"),
    ]
    found: list[Job] = []
    for dtype in NUMBERS:
        found += jobs(small, GATED, (dtype,)) + jobs(packed, GATED, (dtype,))
        found += jobs((*large, *stacks), GATED, (dtype,))
        found += jobs((*small, *large), ("rnn",), (dtype,))
    found += jobs((BOX,), tuple(CLASSES), ("f16",))

    def is_small(row: Row) -> bool:
        return row["H"] <= 128 and row["T"] == 512 and row["kind"] == "layer"

    def small_of(cell: str, dtype: str) -> Callable[[Row], bool]:
        return lambda row: is_small(row) and (row["cell"], row["dtype"]) == (cell, dtype)

    def is_other(row: Row) -> bool:
        return not (is_small(row) and row["cell"] in GATED and row["dtype"] != "f16")

    def wide_gru(row: Row) -> bool:
        return (row["cell"], row["dtype"]) == ("gru", "bf16") and row["H"] > 128

    goals = (
        *(
            _goal(f"{CLASSES[cell]} {dtype}, H ≤ 128, T = 512", 2.0, small_of(cell, dtype))
            for cell in GATED
            for dtype in ("f32", "tf32", "bf16")
        ),
        _goal("GRU bf16, H > 128", 1.5, wide_gru),
        _goal("LSTM, GRU, packed", 1.5, lambda row: row["kind"] == "packed"),
        _goal("LSTM, GRU, RNN f16 where cuDNN is best", 0.9, lambda row: row["case"] == BOX.name),
        _goal("everything else", 0.9, is_other),
    )
    return Grid(tuple(found), goals)


LAYERS = tuple(Case(f"layer-{B}x{H}", 512, B, H, H) for H in (256, 512, 1024) for B in (16, 64))
SQUARE = tuple(case for case in LAYERS if case.H == 512)
BOTH_WAYS = (
    _stack("bi-16x256", 256, 1, 16, 256, True),
    _stack("bi-16x512", 256, 1, 16, 512, True),
    _stack("bi2-32x512", 256, 2, 32, 512, True),
)
DEEP = (_stack("two-16x512", 256, 2, 16, 512), _stack("four-16x512", 256, 4, 16, 512))
PACKED = tuple(
    Case(f"packed-{B}x{H}", 512, B, H, H, "packed") for B, H in ((64, 256), (16, 512), (64, 1024))
)


def _of(cases: Sequence[Case], dtype: str, cells: Sequence[str] = GATED) -> Callable[[Row], bool]:
    names = {case.name for case in cases}
    return lambda row: row["cell"] in cells and row["dtype"] == dtype and row["case"] in names


_SIZES = "H 256, 512, 1024, B 16, 64"
_PERSISTENT = (
    _goal(
        f"LSTM f16, T {BOX.T}, B {BOX.B}, H {BOX.H}, where cuDNN is best",
        1.5,
        _of([BOX], "f16", ["lstm"]),
    ),
    _goal(f"LSTM bf16, {_SIZES}", 2.0, _of(LAYERS, "bf16", ["lstm"])),
    *(
        _goal(f"GRU {dtype}, {_SIZES}", 3.0, _of(LAYERS, dtype, ["gru"]))
        for dtype in ("bf16", "f16")
    ),
    _goal("LSTM, GRU bf16, both directions", 2.5, _of(BOTH_WAYS, "bf16")),
    _goal("LSTM, GRU bf16, 2 and 4 layers", 2.5, _of(DEEP, "bf16")),
    _goal("LSTM, GRU bf16, packed, lengths of 20 to 100 %", 3.0, _of(PACKED, "bf16")),
    _goal(
        "LSTM tf32, H 512, B 16, 64",
        1.5,
        lambda row: (row["cell"], row["dtype"], row["H"]) == ("lstm", "tf32", 512),
    ),
)
# What users get by default, the classic language model, single steps; then half precision, and
# float32 that may not be rounded.
_DEFAULT = (
    *(Case(f"wide-{H}", 128, 32, H, H) for H in (256, 512, 1024, 650)),
    _stack("bi-650", 128, 1, 32, 650, True),
    Case("cell-512", 1, 32, 512, 512, "cell"),
    *(Case(f"short-{T}", T, 32, 512, 512) for T in (1, 16)),
)

GRIDS = {
    "wide": _wide(),
    # The shapes that the persistent kernels are held to.
    "goals": Grid(
        (
            *jobs((BOX,), ("lstm",), ("f16",)),
            *jobs(LAYERS, ("lstm",), ("bf16",)),
            *jobs(LAYERS, ("gru",), ("bf16",)),
            *jobs((*PACKED, *BOTH_WAYS, *DEEP), GATED, ("bf16",)),
            *jobs(SQUARE, ("lstm",), ("tf32",)),
            *jobs(LAYERS, ("gru",), ("f16",)),
        ),
        _PERSISTENT,
    ),
    # Of a first run on a GPU.
    "first": Grid(
        (
            *jobs(_DEFAULT, ("lstm",), ("tf32",)),
            *jobs(LAYERS, ("lstm",), ("bf16",)),
            *jobs((BOX,), ("lstm",), ("f16",)),
            *jobs(SQUARE[:1], ("gru",), ("bf16",)),
            *jobs(_DEFAULT[1:2], ("lstm",), ("f32",)),
        ),
        _PERSISTENT,
    ),
}
NAMED = {job.case.name: job.case for grid in GRIDS.values() for job in grid.jobs}
