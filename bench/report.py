"""What a measurement leaves behind: the machine line, tables, JSON files, pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bench.goals import COLUMNS, GOALS, LIMITS, WORDS, Content, Row, judge, judge_limit, summary
from bench.peak import Rates


def peak_line(peak: Rates) -> str:
    rates = (
        f"{dtype} "
        + ", ".join(f"{rate:.0f} ({_threads(threads)})" for threads, rate in found.items())
        for dtype, found in sorted(peak.items())
    )
    return f"peak of multiply-adds in GFLOP/s: {'; '.join(rates)}"


def _threads(n: int) -> str:
    return f"{n} thread{'s' * (n > 1)}"


def header() -> str:
    return (
        f"{'':32}{'ours':>14}{'torch':>14} {'ratio':>9} {'GFLOP/s':>19} {'% of peak':>11}"
        f" {'page faults':>13}\n"
        f"{'cell dtype thr mode  case':32}{'ms':>9} {'±%':>4}{'ms':>9} {'±%':>4} {'20-80 %':>20}"
        f" {'ours':>6}{'torch':>6} {'ours':>5}{'torch':>6} {'ours':>6}{'torch':>7}"
    )


def line(row: Row) -> str:
    """One row of the table; a wrong result has no times and no ratio."""
    start = f"{row['cell']:4} {row['dtype']:5} {row['threads']:3} {row['mode']:5} {row['case']:12}"
    if row["status"] != "ok":
        return f"{start}   {row['status']}: {row['check']}"
    a, b = row["ours"], row["torch"]
    note = "  disturbed" if row["disturbed"] else ""
    return (
        f"{start}{_time(a)}{_time(b)} {row['ratio']:6.2f} "
        f"({row['ratio_low']:5.2f}-{row['ratio_high']:5.2f})"
        f" {a['gflops']:6.0f}{b['gflops']:6.0f}"
        f" {100 * a['share_of_peak']:5.0f}{100 * b['share_of_peak']:6.0f}"
        f" {a['page_faults']:6.0f}{b['page_faults']:7.0f}{note}"
    )


def _time(side: dict[str, Any]) -> str:
    spread = 50 * (side["high_s"] - side["low_s"]) / side["median_s"]
    return f"{1e3 * side['median_s']:9.3f} {spread:4.0f}"


def groups(rows: Iterable[Row]) -> list[Row]:
    """Geometric mean and minimum of the ratios for every cell, dtype, mode and thread count."""
    keys = ("cell", "dtype", "malloc", "mode", "threads")
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return [dict(zip(keys, key, strict=True)) | summary(members) for key, members in found.items()]


def group_table(summaries: Sequence[Row]) -> str:
    lines = ["cell dtype malloc mode  thr  cases  geometric mean  minimum"]
    keys = ("cell", "dtype", "malloc", "mode")
    for row in sorted(summaries, key=lambda row: [row[key] for key in keys]):
        start = f"{row['cell']:4} {row['dtype']:5} {row['malloc']:6} {row['mode']:5} "
        start += f"{row['threads']:3} "
        start += f"{row['cases']:6}"
        if row["geometric_mean"] is not None:
            start += f" {row['geometric_mean']:15.2f} {row['minimum']:8.2f}"
        for key, word in (("wrong", "WRONG"), ("disturbed", "disturbed")):
            start += f"   {row[key]} {word}" if row[key] else ""
        lines.append(start)
    if any(row["disturbed"] for row in summaries):
        lines.append(
            "disturbed: other programs took cores that were needed; not counted, measure again"
        )
    return "\n".join(lines)


def goal_tables(content: Content) -> list[str]:
    """As Markdown: the goals for the ratios, those for the machine, and what to know of both."""
    heads = [f"{WORDS[mode]}, {_threads(threads)}" for mode, threads in COLUMNS]
    ratios = [
        [goal.label, *(judge(goal, mode, threads, content["rows"]) for mode, threads in COLUMNS)]
        for goal in GOALS
    ]
    limits = []
    for limit in LIMITS:
        verdict = judge_limit(limit, content)
        if verdict is not None:
            limits.append([limit.label, *verdict])
    tables = [
        _table(["time of torch.nn / ours", *heads], [line for line in ratios if any(line[1:])]),
        _table(["", "goal", "worst", "case", "geometric mean", ""], limits),
        *(f"Note: {note}." for note in content["notes"]),
    ]
    explanation = "Geometric mean / minimum, in parentheses the goal, of the ratios of all cases."
    return [explanation, *tables]


def markdown(content: Content) -> str:
    """A JSON file as tables for a README.

    The goals if the run was for them; torch's time / ours, with our GFLOP/s in parentheses; then
    geometric mean and, in parentheses, minimum of the ratios.
    """
    rows, groups = [], []
    for row in content["rows"]:
        text = row["status"]
        if row["status"] == "ok":
            mark = "*" if row["disturbed"] else ""
            text = f"{row['ratio']:.2f}{mark} ({row['ours']['gflops']:.0f})"
        rows.append(((row["cell"], row["dtype"], row["malloc"], row["shape"]), row, text))
    for group in content["summary"]:
        text = f"{group['geometric_mean']:.2f} ({group['minimum']:.2f})" if group["cases"] else ""
        groups.append(((group["cell"], group["dtype"], group["malloc"]), group, text))
    names = ("cell", "dtype", "malloc", "T, B, I, H")
    if content["grid"] == "full":
        return "\n\n".join([*goal_tables(content), _by_column(names, rows)])
    return _by_column(names, rows) + "\n\n" + _by_column(names[:3], groups)


def _by_column(names: tuple[str, ...], entries: list[tuple[tuple[str, ...], Row, str]]) -> str:
    columns = sorted({(row["mode"], row["threads"]) for _, row, _ in entries})
    lines: dict[tuple[str, ...], dict[tuple[str, int], str]] = {}
    for key, row, text in entries:
        lines.setdefault(key, {})[row["mode"], row["threads"]] = text
    heads = [*names, *(f"{mode}, {_threads(n)}" for mode, n in columns)]
    return _table(
        heads, [[*key, *(cells.get(c, "") for c in columns)] for key, cells in lines.items()]
    )


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    table = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in table)
