"""What the ratios torch's time / ours are to reach, and whether they do."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.report import table
from bench.store import Row


class Bound(NamedTuple):
    """The least geometric mean, if any, and the least ratio."""

    mean: float | None
    least: float


@dataclass(frozen=True)
class Goal:
    """A line of a table: of all rows that it is about."""

    label: str
    about: Callable[[Row], bool]
    bounds: tuple[Bound | None, ...]
    asked: int | None = None  # rows of a column, where that is known
    on_average: bool = False  # whether it is said if only the mean reaches its bound


@dataclass(frozen=True)
class Column:
    head: str
    picks: Row  # what its rows have there
    bound: int = 0  # which of a goal's holds here


def judge(goal: Goal, column: Column, rows: Sequence[Row]) -> str:
    """`mean / least (goal) met` or MISSED; empty if nothing of it was measured."""
    bound = goal.bounds[column.bound]
    mine = [row for row in rows if column.picks.items() <= row.items() and goal.about(row)]
    if bound is None or not mine:
        return ""
    found = summary(mine)
    wrong = f", {found['wrong']} WRONG" * bool(found["wrong"])
    if not found["cases"]:
        return f"MISSED{wrong}" if wrong else ""
    # To the digits that are printed, so that no line contradicts itself.
    mean = bound.mean is None or round(found["geometric_mean"], 2) >= bound.mean
    least = round(found["minimum"], 2) >= round(bound.least, 2)
    verdict = "MISSED"
    if mean and not wrong:
        verdict = "met" if least else "met on average" if goal.on_average else "MISSED"
    asked = goal.asked or len(mine)
    left = asked - found["cases"] - found["wrong"]
    return (
        f"{found['geometric_mean']:.2f} / {found['minimum']:.2f} ({_said(goal, bound)}) {verdict}"
        + wrong
        + f", {left} of {asked} not counted" * bool(left)
    )


def _said(goal: Goal, bound: Bound) -> str:
    if goal.on_average:
        return f"{bound.mean:g}"
    return " / ".join(f"{b:.2f}" for b in bound if b is not None)


def judge_all(
    goals: Sequence[Goal], columns: Sequence[Column], rows: Sequence[Row]
) -> list[list[str]]:
    """A line per goal of which something was measured."""
    lines = [[goal.label, *(judge(goal, column, rows) for column in columns)] for goal in goals]
    return [line for line in lines if any(line[1:])]


def goal_table(
    head: str, goals: Sequence[Goal], columns: Sequence[Column], rows: Sequence[Row]
) -> str:
    heads = [head, *(column.head for column in columns)]
    return table(heads, judge_all(goals, columns, rows))


def counts(row: Row) -> bool:
    # Threads that wait for a core spin at their barriers: such ratios can be off a hundredfold.
    return row["status"] == "ok" and not row.get("disturbed", False)


def summary(members: Sequence[Row]) -> Row:
    """Geometric mean and minimum of the ratios that count."""
    ratios = [row["ratio"] for row in members if counts(row)]
    wrong = sum(row["status"] != "ok" for row in members)
    return {
        "cases": len(ratios),
        "wrong": wrong,
        "disturbed": len(members) - len(ratios) - wrong,
        "geometric_mean": geometric_mean(ratios) if ratios else None,
        "minimum": min(ratios, default=None),
    }


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(math.fsum(map(math.log, values)) / len(values))
