"""The tables of `python -m bench rnn`: while it runs, and from its file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from bench import goals, report
from bench.recurrent.goals import COLUMNS, GOALS
from bench.recurrent.limits import LIMITS, judge
from bench.store import Content, Row


def groups(rows: Sequence[Row]) -> list[Row]:
    """Geometric mean and minimum of the ratios for every cell, dtype, mode and thread count."""
    keys = ("cell", "dtype", "malloc", "mode", "threads")
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return [dict(zip(keys, key, strict=True)) | goals.summary(own) for key, own in found.items()]


def group_table(summaries: Sequence[Row]) -> str:
    lines = ["cell dtype malloc mode  thr  cases  geometric mean  minimum"]
    keys = ("cell", "dtype", "malloc", "mode")
    for row in sorted(summaries, key=lambda row: [row[key] for key in keys]):
        text = f"{row['cell']:4} {row['dtype']:5} {row['malloc']:6} {row['mode']:5} "
        text += f"{row['threads']:3} {row['cases']:6}"
        if row["cases"]:
            text += f" {row['geometric_mean']:15.2f} {row['minimum']:8.2f}"
        for key, word in (("wrong", "WRONG"), ("disturbed", "disturbed")):
            text += f"   {row[key]} {word}" * bool(row[key])
        lines.append(text)
    if any(row["disturbed"] for row in summaries):
        lines.append(
            "disturbed: other programs took cores that were needed; not counted, measure again"
        )
    return "\n".join(lines)


def goal_tables(content: Content) -> list[str]:
    """As Markdown: the goals for the ratios, and those for the machine."""
    ratios = goals.goal_table("time of torch.nn / ours", GOALS, COLUMNS, content["rows"])
    judged = ((limit.label, judge(limit, content)) for limit in LIMITS)
    limits = [[label, *verdict] for label, verdict in judged if verdict is not None]
    return [
        "Geometric mean / minimum, in parentheses the goal, of the ratios of all cases.",
        ratios,
        report.table(["", "goal", "worst", "case", "geometric mean", ""], limits),
    ]


def markdown(content: Content) -> str:
    """A JSON file as tables for a README.

    The goals if the run was for them; torch's time / ours, with our GFLOP/s in parentheses; then
    geometric mean and, in parentheses, minimum of the ratios.
    """

    def text(row: Row) -> str:
        if row["status"] != "ok":
            return row["status"]
        return f"{row['ratio']:.2f}{'*' * row['disturbed']} ({row['ours']['gflops']:.0f})"

    def mean(group: Row) -> str:
        if not group["cases"]:
            return ""
        return f"{group['geometric_mean']:.2f} ({group['minimum']:.2f})"

    keys = {"cell": "cell", "dtype": "dtype", "malloc": "malloc", "shape": "T, B, I, H"}
    rows = _by_column(keys, content["rows"], text)
    if content["grid"] == "full":
        return "\n\n".join([*goal_tables(content), rows])
    del keys["shape"]
    return rows + "\n\n" + _by_column(keys, content["summary"], mean)


def _by_column(keys: Mapping[str, str], rows: Sequence[Row], text: Callable[[Row], str]) -> str:
    entries = (
        ([row[k] for k in keys], f"{row['mode']}, {report.n_threads(row['threads'])}", text(row))
        for row in sorted(rows, key=lambda row: (row["mode"], row["threads"]))
    )
    return report.spread_out(tuple(keys.values()), entries)
