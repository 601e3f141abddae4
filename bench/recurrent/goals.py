"""How fast the CPU engine is to be: ratios to torch.nn, over the cases of the grid `full`."""

from __future__ import annotations

from bench.goals import Bound, Column, Goal
from bench.recurrent.cases import GRIDS, MODES
from bench.report import WORDS, n_threads
from bench.store import Row

COLUMNS = tuple(
    Column(f"{WORDS[mode]}, {n_threads(n)}", {"mode": mode, "threads": n}, 2 * m + n - 1)
    for m, mode in enumerate(MODES)
    for n in (1, 2)
)
Bounds = tuple[tuple[float | None, float], ...]  # for each of the columns


def _goal(
    label: str,
    cells: tuple[str, ...],
    dtype: str,
    bounds: Bounds,
    malloc: str = "plain",
    kinds: tuple[str, ...] = ("layer", "stack"),
) -> Goal:
    cases = {
        (job.cell, job.dtype, job.case.name)
        for job in GRIDS["full"]
        if job.cell in cells and job.dtype == dtype and job.case.kind in kinds
    }

    def about(row: Row) -> bool:
        return row["malloc"] == malloc and (row["cell"], row["dtype"], row["case"]) in cases

    return Goal(label, about, tuple(Bound(*bound) for bound in bounds), asked=len(cases))


ALL = ("lstm", "gru", "rnn")
_LSTM_STEADY = ((1.25, 1.05), (1.42, 1.08), (1.25, 1.08), (1.42, 1.10))
_LSTM_PLAIN = ((1.25, 1.05), (1.42, 1.08), (1.30, 1.08), (1.60, 1.10))
_GRU = ((3.8, 2.6), (5.0, 2.9), (4.8, 2.5), (6.2, 2.8))
_RNN = ((2.5, 1.6), (3.0, 1.8), (3.0, 1.8), (3.5, 2.0))
_LSTM_BF16 = ((1.15, 1.0), (1.3, 1.0), (1.3, 1.05), (1.4, 1.05))
_GRU_BF16 = ((2.2, 1.35), (2.6, 1.4), (2.6, 1.4), (3.0, 1.5))
_F16 = ((None, 5.0),) * 4
_F64 = ((None, 1.1), (None, 1.1), (None, 1.2), (None, 1.2))
_PACKED = ((3.2, 2.5),) * 4
_STEP = ((None, 1 / 0.7), (None, 1 / 0.7), (None, 1.0), (None, 1.0))

GOALS = (
    _goal("LSTM f32, no page faults", ("lstm",), "f32", _LSTM_STEADY, "steady"),
    _goal("LSTM f32", ("lstm",), "f32", _LSTM_PLAIN),
    _goal("GRU f32, no page faults", ("gru",), "f32", _GRU, "steady"),
    _goal("GRU f32", ("gru",), "f32", _GRU),
    _goal("RNN f32, no page faults", ("rnn",), "f32", _RNN, "steady"),
    _goal("RNN f32", ("rnn",), "f32", _RNN),
    _goal("LSTM bf16", ("lstm",), "bf16", _LSTM_BF16),
    _goal("GRU bf16", ("gru",), "bf16", _GRU_BF16),
    _goal("LSTM, GRU, RNN f16", ALL, "f16", _F16),
    _goal("LSTM, GRU, RNN f64", ALL, "f64", _F64),
    _goal("LSTM, GRU f32, packed", ("lstm", "gru"), "f32", _PACKED, kinds=("packed",)),
    _goal("LSTM, GRU, RNN f32, one step", ALL, "f32", _STEP, kinds=("step",)),
    _goal("LSTMCell, GRUCell, RNNCell f32", ALL, "f32", _STEP, kinds=("cell",)),
)
