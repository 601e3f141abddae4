"""What a measurement prints: a line per row while it runs, and Markdown tables in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from bench.store import Row

WORDS = {"infer": "forward", "train": "training"}
# What a line may show of both sides, by key: its unit and how many of it make one.
SHOWN = {
    "gflops": ("GFLOP/s", 1),
    "gbytes": ("GB/s", 1),
    "share_of_peak": ("% of peak", 100),
    "page_faults": ("page faults", 1),
}


def n_threads(n: int) -> str:
    return f"{n} thread{'s' * (n > 1)}"


def peak_line(peak: Mapping[str, Mapping[int, float]]) -> str:
    rates = (
        f"{dtype} " + ", ".join(f"{rate:.0f} ({n_threads(n)})" for n, rate in found.items())
        for dtype, found in sorted(peak.items())
    )
    return f"peak of multiply-adds in GFLOP/s: {'; '.join(rates)}"


def header(start: str, shown: Sequence[str]) -> str:
    """Of lines that start like this; below a unit stand ours and torch's."""
    units = " ".join(f"{SHOWN[key][0]:>15}" for key in shown)
    return f"{start}   ours ms   ±%  torch ms   ±%  ratio     20-80 % {units}"


def line(start: str, row: Row, shown: Sequence[str]) -> str:
    """A wrong result has no times and no ratio."""
    if row["status"] != "ok":
        return f"{start}   {row['status']}: {row['check']}"
    both = row["ours"], row["torch"]
    times = (f"{1e3 * side['median_s']:10.4f} {_spread(side):4.0f}" for side in both)
    ratio = f" {row['ratio']:6.2f} ({row['ratio_low']:5.2f}-{row['ratio_high']:5.2f})"
    rates = (f"{SHOWN[key][1] * side[key]:7.1f}" for key in shown for side in both)
    note = "  disturbed" * row["disturbed"]
    return f"{start}{''.join(times)}{ratio} {' '.join(rates)}{note}"


def _spread(side: Row) -> float:
    return 50 * (side["high_s"] - side["low_s"]) / side["median_s"]


def printed(rows: Iterable[Row], line: Callable[[Row], str]) -> list[Row]:
    """The rows; each is printed as soon as it was measured."""
    found = []
    for row in rows:
        found.append(row)
        print(line(row), flush=True)
    return found


def table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    cells = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def spread_out(names: Sequence[str], entries: Iterable[tuple[Sequence[str], str, str]]) -> str:
    """A table from entries (key, column, text): a line per key, a column per column."""
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    columns: dict[str, None] = {}
    for key, column, text in entries:
        columns[column] = None
        lines.setdefault(tuple(key), {})[column] = text
    found = ([*key, *(cells.get(c, "") for c in columns)] for key, cells in lines.items())
    return table([*names, *columns], found)
