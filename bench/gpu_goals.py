"""The shapes that the persistent recurrent kernels are held to, against torch.nn on cuDNN.

Both sides compute the whole layer, W_ih x included; inputs are as wide as states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.cases import CLASSES, Case, Job, jobs
from bench.gpu_grid import BOX, GATED, Goal, Row

LAYERS = tuple(Case(f"layer-{B}x{H}", 512, B, H, H) for H in (256, 512, 1024) for B in (16, 64))
SQUARE = tuple(case for case in LAYERS if case.H == 512)


def _stack(name: str, layers: int, B: int, H: int, bidirectional: bool = False) -> Case:
    return Case(name, 256, B, H, H, "stack", layers, bidirectional)


BOTH_WAYS = (
    _stack("bi-16x256", 1, 16, 256, True),
    _stack("bi-16x512", 1, 16, 512, True),
    _stack("bi2-32x512", 2, 32, 512, True),
)
DEEP = (_stack("two-16x512", 2, 16, 512), _stack("four-16x512", 4, 16, 512))
PACKED = tuple(
    Case(f"packed-{B}x{H}", 512, B, H, H, "packed") for B, H in ((64, 256), (16, 512), (64, 1024))
)
NAMED = {case.name: case for case in (BOX, *LAYERS, *BOTH_WAYS, *DEEP, *PACKED)}


# Of a first run on a GPU: what users get by default, the classic language model, single steps; then
# half precision, and float32 that may not be rounded.
_WIDE = tuple(Case(f"wide-{H}", 128, 32, H, H) for H in (256, 512, 1024, 650))
_BI = Case("bi-650", 128, 32, 650, 650, "stack", 1, True)
_CELL = Case("cell-512", 1, 32, 512, 512, "cell")
_SHORT = tuple(Case(f"short-{T}", T, 32, 512, 512) for T in (1, 16))
FIRST = (
    *jobs((*_WIDE, _BI, _CELL, *_SHORT), ("lstm",), ("tf32",)),
    *jobs(LAYERS, ("lstm",), ("bf16",)),
    *jobs((BOX,), ("lstm",), ("f16",)),
    *jobs(SQUARE[:1], ("gru",), ("bf16",)),
    *jobs(_WIDE[1:2], ("lstm",), ("f32",)),
)
NAMED |= {job.case.name: job.case for job in FIRST}


def first(cells: Sequence[str], dtypes: Sequence[str]) -> tuple[Job, ...]:
    return tuple(job for job in FIRST if job.cell in cells and job.dtype in dtypes)


def grid(cells: Sequence[str], dtypes: Sequence[str]) -> tuple[Job, ...]:
    """The most telling first, in case time runs out."""
    found = (
        *jobs((BOX,), ("lstm",), ("f16",)),
        *jobs(LAYERS, ("lstm",), ("bf16",)),
        *jobs(LAYERS, ("gru",), ("bf16",)),
        *jobs((*PACKED, *BOTH_WAYS, *DEEP), GATED, ("bf16",)),
        *jobs(SQUARE, ("lstm",), ("tf32",)),
        *jobs(LAYERS, ("gru",), ("f16",)),
    )
    return tuple(job for job in found if job.cell in cells and job.dtype in dtypes)


def _layers(cell: str, dtype: str) -> Callable[[Row], bool]:
    names = {case.name for case in LAYERS}
    return lambda row: (row["cell"], row["dtype"]) == (cell, dtype) and row["case"] in names


def _of(cases: Sequence[Case]) -> Callable[[Row], bool]:
    names = {case.name for case in cases}
    return lambda row: row["dtype"] == "bf16" and row["case"] in names


_BOX_LABEL = f"LSTM f16, T {BOX.T}, B {BOX.B}, H {BOX.H}, where cuDNN is best"
_SIZES = "H 256, 512, 1024, B 16, 64"
GOALS = (
    Goal(_BOX_LABEL, 1.5, lambda row: row["case"] == BOX.name and row["cell"] == "lstm"),
    Goal(f"LSTM bf16, {_SIZES}", 2.0, _layers("lstm", "bf16")),
    *(Goal(f"{CLASSES['gru']} {d}, {_SIZES}", 3.0, _layers("gru", d)) for d in ("bf16", "f16")),
    Goal("LSTM, GRU bf16, both directions", 2.5, _of(BOTH_WAYS)),
    Goal("LSTM, GRU bf16, 2 and 4 layers", 2.5, _of(DEEP)),
    Goal("LSTM, GRU bf16, packed, lengths of 20 to 100 %", 3.0, _of(PACKED)),
    Goal(
        "LSTM tf32, H 512, B 16, 64",
        1.5,
        lambda row: (row["cell"], row["dtype"], row["H"]) == ("lstm", "tf32", 512),
    ),
)
