"""What is asked of the CPU engine besides ratios: shares of what the machine can do, and more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.goals import counts, geometric_mean
from bench.recurrent.cases import NAMED
from bench.report import WORDS, n_threads
from bench.store import Content, Row

Figures = list[tuple[float, str]]  # a value and where it was found


@dataclass(frozen=True)
class Limit:
    """A line about the machine: the worst figure is to be at least or at most the bound."""

    label: str
    figures: Callable[[Content], Figures]
    bound: float | None  # None: reported only
    at_most: bool = False
    percent: bool = False


def _counted(content: Content) -> list[Row]:
    return [row for row in content["rows"] if counts(row)]


def _where(row: Row) -> str:
    where = f"{row['cell']} {row['dtype']} {row['case']}, {WORDS[row['mode']]}"
    return f"{where}, {n_threads(row['threads'])}"


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


def judge(limit: Limit, content: Content) -> tuple[str, str, str, str, str] | None:
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
