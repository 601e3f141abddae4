"""How fast the convolutions are to be: torch's time / ours, and tables of what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

from bench.depthwise.blocks import BODY, COMPILED, EAGER
from bench.depthwise.cases import LAYOUTS, NAMED, OPS, ConvCase
from bench.goals import Bound, Column, Goal, goal_table
from bench.report import spread_out
from bench.store import Row

Choice = Callable[[ConvCase, Row], bool]
NOWHERE = ConvCase("", 1, (), 1)  # of a block


def _goal(
    label: str, ops: tuple[str, ...], chooses: Choice, first: float | None, last: float | None
) -> Goal:
    """Of the rows that `chooses` picks by their case (not of a block) and themselves; the bound is
    for the mean where channels lie first and where they lie last, None where there is none."""

    def about(row: Row) -> bool:
        return row["op"] in ops and chooses(NAMED.get(row["case"], NOWHERE), row)

    bounds = (None if bound is None else Bound(bound, bound) for bound in (first, last))
    return Goal(label, about, tuple(bounds), on_average=True)


def _block(B: int) -> Choice:
    return lambda case, row: row["B"] == B and row["dtype"] == "f32"


def _small(B: int) -> Choice:
    return lambda case, row: case.n == 2 and case.k == 3 and row["B"] == B and _plain(case, row)


def _plain(case: ConvCase, row: Row) -> bool:
    return row["dtype"] != "f16" and case.dilation == case.multiplier == 1


def _hard(case: ConvCase, row: Row) -> bool:
    return case.dilation > 1 or case.multiplier > 1 or case.n == 3 or case.causal


GOALS = (
    _goal("weight gradient, k ≥ 5", ("weight",), lambda c, r: c.n == 2 and c.k >= 5, 20, 8),
    _goal(
        "7x7 training step, B16 C96 56x56",
        ("train",),
        lambda c, r: c.name == "convnext-96@56-k7" and r["B"] == 16,
        8,
        4,
    ),
    _goal(
        "bf16 stride-2 input gradient",
        ("input",),
        lambda c, r: c.stride == 2 and r["dtype"] == "bf16",
        25,
        25,
    ),
    _goal("1-D k=31 forward", ("forward",), lambda c, r: c.n == 1 and c.k == 31, 30, None),
    _goal("1-D k=31 weight gradient", ("weight",), lambda c, r: c.n == 1 and c.k == 31, 12, None),
    _goal("1-D causal k ≤ 4 forward", ("forward",), lambda c, r: c.causal, 4, 6),
    _goal("dilated, multiplier 2, 3-D, causal: backward", ("input", "weight"), _hard, 8, 8),
    _goal("f16", OPS, lambda c, r: r["dtype"] == "f16", 8, 8),
    _goal("3x3 forward, B1", ("forward",), _small(1), 2.3, 1.7),
    _goal("3x3 forward, B16", ("forward",), _small(16), 1.8, 1.3),
    _goal("everything", OPS, lambda c, r: True, 1.0, 1.0),
)
# Of separable blocks, in either layout.
BLOCK_GOALS = (
    _goal("block in eval, f32, B1", (EAGER,), _block(1), 2.5, 2.5),
    _goal("block in eval, f32, B16", (EAGER,), _block(16), 1.3, 1.3),
    _goal("the same / torch.compile with freezing, B1", (COMPILED,), _block(1), None, 1.25),
    _goal("the same / torch.compile with freezing, B16", (COMPILED,), _block(16), None, 1.1),
    _goal("MobileNetV1 body, training, bf16 B16", (BODY,), lambda c, r: True, None, 2.0),
)


def table(rows: Sequence[Row]) -> str:
    """Ratios without page faults and with malloc as it is, one thread and more."""
    columns = [
        Column(
            f"channels {layout}, {n} thr., {malloc} malloc",
            {"malloc": malloc, "threads": n, "layout": layout},
            bound,
        )
        for malloc, n in product(("steady", "plain"), (1, 2))
        if any((row["malloc"], row["threads"]) == (malloc, n) for row in rows)
        for bound, layout in enumerate(LAYOUTS)
    ]
    head = "torch's time / ours: mean / least (goal)"
    return goal_table(head, (*GOALS, *BLOCK_GOALS), columns, rows)


def case_table(rows: Sequence[Row]) -> str:
    """One line per case, dtype, layout and batch; torch's time / ours (ours in milliseconds)."""

    def text(row: Row) -> str:
        if row["status"] != "ok":
            return row["status"]
        mark = "*" * row["disturbed"]
        return f"{row['ratio']:.2f}{mark} ({1e3 * row['ours']['median_s']:.3g})"

    keys = ("malloc", "case", "dtype", "layout", "B")
    entries = (
        ([str(row[k]) for k in keys], f"{row['op']}, {row['threads']} thr.", text(row))
        for row in rows
    )
    return spread_out(keys, entries)
