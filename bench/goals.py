"""How fast the CPU engine is to be: ratios to torch.nn, and shares of what the machine can do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.cases import GRIDS, NAMED

Row = dict[str, Any]
Content = dict[str, Any]  # of a JSON file: rows, extras and more
Figures = list[tuple[float, str]]  # a value and where it was found
Bounds = tuple[float | None, float]  # the least geometric mean, if any, and the least ratio

COLUMNS = (("infer", 1), ("infer", 2), ("train", 1), ("train", 2))
WORDS = {"infer": "forward", "train": "training"}


@dataclass(frozen=True)
class Goal:
    """A line of the goal table: torch's time / ours, over all cases of the grid that it selects."""

    label: str
    cells: tuple[str, ...]
    dtype: str
    bounds: tuple[Bounds, Bounds, Bounds, Bounds]  # one for each of COLUMNS
    malloc: str = "plain"
    kinds: tuple[str, ...] = ("layer", "stack")

    def cases(self) -> set[tuple[str, str, str]]:
        return {
            (job.cell, job.dtype, job.case.name)
            for job in GRIDS["full"]
            if job.cell in self.cells and job.dtype == self.dtype and job.case.kind in self.kinds
        }


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
    Goal("LSTM f32, no page faults", ("lstm",), "f32", _LSTM_STEADY, "steady"),
    Goal("LSTM f32", ("lstm",), "f32", _LSTM_PLAIN),
    Goal("GRU f32, no page faults", ("gru",), "f32", _GRU, "steady"),
    Goal("GRU f32", ("gru",), "f32", _GRU),
    Goal("RNN f32, no page faults", ("rnn",), "f32", _RNN, "steady"),
    Goal("RNN f32", ("rnn",), "f32", _RNN),
    Goal("LSTM bf16", ("lstm",), "bf16", _LSTM_BF16),
    Goal("GRU bf16", ("gru",), "bf16", _GRU_BF16),
    Goal("LSTM, GRU, RNN f16", ALL, "f16", _F16),
    Goal("LSTM, GRU, RNN f64", ALL, "f64", _F64),
    Goal("LSTM, GRU f32, packed", ("lstm", "gru"), "f32", _PACKED, kinds=("packed",)),
    Goal("LSTM, GRU, RNN f32, one step", ALL, "f32", _STEP, kinds=("step",)),
    Goal("LSTMCell, GRUCell, RNNCell f32", ALL, "f32", _STEP, kinds=("cell",)),
)


def judge(goal: Goal, mode: str, threads: int, rows: Iterable[Row]) -> str:
    """`found geo / min (goal geo / min) met` or MISSED; empty if nothing of it was measured."""
    asked = goal.cases()
    members = [
        row
        for row in rows
        if (row["cell"], row["dtype"], row["case"]) in asked
        and (row["mode"], row["threads"], row["malloc"]) == (mode, threads, goal.malloc)
    ]
    found = summary(members)
    mean, least = goal.bounds[COLUMNS.index((mode, threads))]
    if not found["cases"]:
        return f"MISSED, {found['wrong']} WRONG" if found["wrong"] else ""
    # To the digits that are printed, so that no line contradicts itself.
    met = round(found["minimum"], 2) >= round(least, 2) and not found["wrong"]
    met &= mean is None or round(found["geometric_mean"], 2) >= mean
    missing = len(asked) - found["cases"]
    return (
        f"{found['geometric_mean']:.2f} / {found['minimum']:.2f} "
        f"({'' if mean is None else f'{mean:.2f} / '}{least:.2f}) {'met' if met else 'MISSED'}"
        + (f", {found['wrong']} WRONG" if found["wrong"] else "")
        + (f", {missing} of {len(asked)} not counted" if missing else "")
    )


def summary(members: Sequence[Row]) -> Row:
    """Geometric mean and minimum of the ratios that count."""
    right = [row for row in members if row["status"] == "ok"]
    # Threads that wait for a core spin at their barriers: such ratios can be off a hundredfold.
    ratios = [row["ratio"] for row in right if not row["disturbed"]]
    return {
        "cases": len(ratios),
        "wrong": len(members) - len(right),
        "disturbed": sum(row["disturbed"] for row in right),
        "geometric_mean": geometric_mean(ratios) if ratios else None,
        "minimum": min(ratios, default=None),
    }


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(math.fsum(map(math.log, values)) / len(values))


@dataclass(frozen=True)
class Limit:
    """A line about the machine: the worst figure is to be at least or at most the bound."""

    label: str
    figures: Callable[[Content], Figures]
    bound: float | None  # None: reported only
    at_most: bool = False
    percent: bool = False


def _counted(content: Content) -> list[Row]:
    return [row for row in content["rows"] if row["status"] == "ok" and not row["disturbed"]]


def _where(row: Row) -> str:
    threads = f"{row['threads']} thread{'s' * (row['threads'] > 1)}"
    return f"{row['cell']} {row['dtype']} {row['case']}, {WORDS[row['mode']]}, {threads}"


def share(dtype: str, mode: str, malloc: str, B: int, H: int) -> Callable[[Content], Figures]:
    """Of the peak of multiply-adds, for LSTM and GRU of at least this batch and hidden size."""

    def figures(content: Content) -> Figures:
        return [
            (row["ours"]["share_of_peak"], _where(row))
            for row in _counted(content)
            if row["cell"] in ("lstm", "gru") and NAMED.get(row["case"])
            if (row["dtype"], row["mode"], row["malloc"]) == (dtype, mode, malloc)
            if NAMED[row["case"]].kind in ("layer", "stack") and row["B"] >= B and row["H"] >= H
        ]

    return figures


def read_share(content: Content) -> Figures:
    return [(row["read_share"], _where(row)) for row in _counted(content) if "read_share" in row]


def _times(content: Content) -> dict[tuple, float]:
    keys = ("cell", "dtype", "malloc", "mode", "case", "threads")
    return {tuple(row[key] for key in keys): row["ours"]["median_s"] for row in _counted(content)}


def two_threads(content: Content) -> Figures:
    times = _times(content)
    return [
        (time / times[(*key, 1)], f"{key[0]} {key[1]} {key[4]}, {WORDS[key[3]]}, {key[2]} malloc")
        for (*key, threads), time in times.items()
        if threads == 2 and (*key, 1) in times
    ]


def packed(content: Content) -> Figures:
    """Packed time / (padded time x share of real tokens)."""
    times, found = _times(content), []
    for row in _counted(content):
        case = NAMED.get(row["case"])
        if case is None or case.kind != "packed":
            continue
        sizes = (case.T, case.B, case.I, case.H)
        (padded,) = (
            other.name
            for other in NAMED.values()
            if other.kind == "layer" and sizes == (other.T, other.B, other.I, other.H)
        )
        key = (row["cell"], row["dtype"], row["malloc"], row["mode"], padded, row["threads"])
        if key in times:
            tokens = case.tokens / (case.T * case.B)
            found.append((row["ours"]["median_s"] / (times[key] * tokens), _where(row)))
    return found


def extra(what: str, mode: str | None = None) -> Callable[[Content], Figures]:
    def figures(content: Content) -> Figures:
        return [
            (found["value"], found["where"])
            for found in content["extras"]
            if found["what"] == what and mode in (None, found["mode"])
        ]

    return figures


def _share(dtype: str, mode: str, malloc: str, B: int, H: int, bound: float) -> Limit:
    faults = ", no page faults" if malloc == "steady" else ""
    label = f"LSTM, GRU {dtype} {WORDS[mode]}, B ≥ {B}, H ≥ {H}{faults}: share of peak"
    return Limit(label, share(dtype, mode, malloc, B, H), bound, percent=True)


LIMITS = (
    _share("f32", "infer", "steady", 6, 128, 0.88),
    _share("f32", "infer", "plain", 6, 128, 0.88),
    _share("f32", "train", "steady", 6, 128, 0.83),
    _share("f32", "train", "plain", 6, 128, 0.83),
    _share("bf16", "infer", "plain", 32, 256, 0.70),
    _share("bf16", "train", "plain", 32, 256, 0.60),
    Limit(
        "f32 forward, B = 1: rate of reading W_hh, of a buffer's", read_share, 0.85, percent=True
    ),
    # Medians of one case scatter by two or three per cent from row to row.
    Limit("our time with 2 threads / with 1", two_threads, 1.03, at_most=True),
    Limit("packed time / (padded time × share of real tokens)", packed, 1.1, at_most=True),
    Limit("time with denormal inputs or weights / normal", extra("denormal"), 2.0, at_most=True),
    Limit("peak memory of a training step / torch's", extra("memory"), 1.0, at_most=True),
    Limit('speed-up by precision "medium", forward', extra("medium", "infer"), None),
    Limit('speed-up by precision "medium", training', extra("medium", "train"), None),
)


def judge_limit(limit: Limit, content: Content) -> tuple[str, str, str, str, str] | None:
    """Goal, worst, where, geometric mean, and met or MISSED; None if it was not measured."""
    figures = limit.figures(content)
    if not figures:
        return None
    worst, where = (max if limit.at_most else min)(figures)

    def text(value: float) -> str:
        return f"{100 * value:.0f} %" if limit.percent else f"{value:.2f}"

    mean = text(geometric_mean([value for value, _ in figures]))
    if limit.bound is None:
        return "", text(worst), where, mean, ""
    sign = -1 if limit.at_most else 1
    met = sign * round(worst, 2) >= sign * limit.bound
    goal = f"{'≤' if limit.at_most else '≥'} {text(limit.bound)}"
    return goal, text(worst), where, mean, "met" if met else "MISSED"
