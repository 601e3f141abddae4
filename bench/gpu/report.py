"""What `python -m bench gpu` prints, from what it writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.recurrent.cases import MODES
from bench.report import WORDS, spread_out, table
from bench.store import Content, Row


def markdown(content: Content) -> str:
    """Ceilings, a line per case, and the goals last."""
    head = "torch.nn / ours: mean / worst (goal of the worst)"
    parts = [
        "ceilings: " + ", ".join(f"{k} {v:.4g}" for k, v in content["ceilings"].items()),
        spread_out(("cell", "dtype", "T, B, I, H"), _entries(content["rows"])),
        table([head, *(WORDS[mode] for mode in MODES)], content["goals"]),
    ]
    return "\n\n".join(parts)


def problem_line(row: Row) -> str:
    return (
        f"{row['cell']} {row['dtype']} {row['shape']} {row['mode']}: {row['status']} {row['check']}"
    )


def _entries(rows: Sequence[Row]) -> Iterator[tuple[Sequence[str], str, str]]:
    for row in sorted(rows, key=lambda row: MODES.index(row["mode"])):
        texts = row["status"], row["check"]
        if row["status"] == "ok":
            ours, theirs = (f"{row[side]['us_per_step']:.3g}" for side in ("ours", "torch"))
            texts = f"{ours}, {theirs}", f"{row['ratio']:.2f}"
        for head, text in zip(("ours, torch in µs/step", "ratio"), texts, strict=True):
            yield (
                [row[k] for k in ("cell", "dtype", "shape")],
                f"{WORDS[row['mode']]}: {head}",
                text,
            )
