"""How fast the convolutions are to be: torch's time / ours, and tables of what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.conv_blocks import BODY, COMPILED, EAGER
from bench.conv_cases import NAMED, OPS, ConvCase
from bench.goals import Row, geometric_mean

Choice = Callable[[ConvCase, Row], bool]


@dataclass(frozen=True)
class Goal:
    """A line of the table: the ratio that every chosen row is to reach, where channels lie first
    and where they lie last; None where there is no such goal."""

    label: str
    ops: tuple[str, ...]
    chooses: Choice  # by the case (not of a block) and the row
    first: float | None
    last: float | None


def _b(B: int) -> Choice:
    return lambda case, row: row["B"] == B


def _small(B: int) -> Choice:
    return lambda case, row: case.n == 2 and case.k == 3 and row["B"] == B and _plain(case, row)


def _plain(case: ConvCase, row: Row) -> bool:
    return row["dtype"] != "f16" and case.dilation == case.multiplier == 1


def _hard(case: ConvCase, row: Row) -> bool:
    return case.dilation > 1 or case.multiplier > 1 or case.n == 3 or case.causal


GOALS = (
    Goal("weight gradient, k ≥ 5", ("weight",), lambda c, r: c.n == 2 and c.k >= 5, 20, 8),
    Goal(
        "7x7 training step, B16 C96 56x56",
        ("train",),
        lambda c, r: c.name == "convnext-96@56-k7" and r["B"] == 16,
        8,
        4,
    ),
    Goal(
        "bf16 stride-2 input gradient",
        ("input",),
        lambda c, r: c.stride == 2 and r["dtype"] == "bf16",
        25,
        25,
    ),
    Goal("1-D k=31 forward", ("forward",), lambda c, r: c.n == 1 and c.k == 31, 30, None),
    Goal("1-D k=31 weight gradient", ("weight",), lambda c, r: c.n == 1 and c.k == 31, 12, None),
    Goal("1-D causal k ≤ 4 forward", ("forward",), lambda c, r: c.causal, 4, 6),
    Goal("dilated, multiplier 2, 3-D, causal: backward", ("input", "weight"), _hard, 8, 8),
    Goal("f16", OPS, lambda c, r: r["dtype"] == "f16", 8, 8),
    Goal("3x3 forward, B1", ("forward",), _small(1), 2.3, 1.7),
    Goal("3x3 forward, B16", ("forward",), _small(16), 1.8, 1.3),
    Goal("everything", OPS, lambda c, r: True, 1.0, 1.0),
)
# Of separable blocks, in either layout.
BLOCK_GOALS = (
    Goal("block in eval, f32, B1", (EAGER,), _b(1), 2.5, 2.5),
    Goal("block in eval, f32, B16", (EAGER,), _b(16), 1.3, 1.3),
    Goal("the same / torch.compile with freezing, B1", (COMPILED,), _b(1), None, 1.25),
    Goal("the same / torch.compile with freezing, B16", (COMPILED,), _b(16), None, 1.1),
    Goal("MobileNetV1 body, training, bf16 B16", (BODY,), lambda c, r: True, None, 2.0),
)


def judge(goal: Goal, layout: str, rows: Sequence[Row]) -> str:
    """Geometric mean / least ratio (goal), and whether that is met; empty if not measured."""
    bound = goal.first if layout == "first" else goal.last
    if bound is None:
        return ""
    nowhere = ConvCase("", 1, (), 1)
    chosen = []
    for row in rows:
        is_block = goal in BLOCK_GOALS
        fits = row["op"] in goal.ops and row["layout"] == layout
        fits = fits and (not is_block or row["op"] == BODY or row["dtype"] == "f32")
        if fits and goal.chooses(NAMED.get(row["case"], nowhere), row):
            chosen.append(row)
    wrong = sum(row["status"] != "ok" for row in chosen)
    good = [row["ratio"] for row in chosen if row["status"] == "ok" and not row["disturbed"]]
    if not good:
        return f"{wrong} WRONG" if wrong else ""
    mean, least = geometric_mean(good), min(good)
    met = "MISSED"
    if round(mean, 2) >= bound:
        met = "met" if round(least, 2) >= bound else "met on average"
    text = f"{mean:.2f} / {least:.2f} ({bound:g}) {'MISSED' if wrong else met}"
    left = len(chosen) - len(good) - wrong
    text += f", {wrong} WRONG" if wrong else ""
    return text + (f", {left} of {len(chosen)} not counted" if left else "")


def goal_table(rows: Sequence[Row]) -> str:
    """Ratios without page faults and with malloc as it is, one thread and more."""
    keys = [(malloc, n) for malloc in ("steady", "plain") for n in (1, 2)]
    keys = [k for k in keys if any((row["malloc"], row["threads"]) == k for row in rows)]
    columns = [(*key, layout) for key in keys for layout in ("first", "last")]
    heads = [f"channels {where}, {n} thr., {malloc} malloc" for malloc, n, where in columns]
    lines = [["torch's time / ours: mean / least (goal)", *heads], ["---"] * (1 + len(heads))]
    for goal in (*GOALS, *BLOCK_GOALS):
        cells = []
        for malloc, n, layout in columns:
            own = [r for r in rows if (r["malloc"], r["threads"]) == (malloc, n)]
            cells.append(judge(goal, layout, own))
        if any(cells):
            lines.append([goal.label, *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def case_table(rows: Sequence[Row]) -> str:
    """One line per case, dtype, layout and batch; torch's time / ours (ours in milliseconds)."""
    keys = ("malloc", "case", "dtype", "layout", "B")
    ops = list(dict.fromkeys((row["op"], row["threads"]) for row in rows))
    lines: dict[tuple, dict[tuple, str]] = {}
    for row in rows:
        text = row["status"]
        if text == "ok":
            mark = "*" * row["disturbed"]
            text = f"{row['ratio']:.2f}{mark} ({1e3 * row['ours']['median_s']:.3g})"
        lines.setdefault(tuple(row[k] for k in keys), {})[row["op"], row["threads"]] = text
    heads = [*keys, *(f"{op}, {n} thr." for op, n in ops)]
    table = [heads, ["---"] * len(heads)]
    table += [[*map(str, key), *(cells.get(c, "") for c in ops)] for key, cells in lines.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in table)
