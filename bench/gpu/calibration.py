"""What the programs of bench/gpu found, beside what was predicted, in lines.

Each prints lines of JSON, one per figure, with what the model predicts; `make gpu` runs them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.gpu import model
from bench.store import Content, Row


def table(rows: Sequence[Row]) -> Iterator[str]:
    """A line per figure: measured, predicted, and the one by the other."""
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        value, predicted = row["value"], row["predicted"]
        text = f"{row['name']:<{width}}  "
        text += f"{_number(value):>9} {row['unit']:<18}" if value is not None else f"{'':28}"
        if predicted is not None and value is not None:
            ratio = f" ({value / predicted:.2f} of it)" if predicted else ""
            text += f" predicted {_number(predicted):>7}{ratio}"
        yield (text + f" {row.get('note', '')}").rstrip()


def markdown(content: Content) -> str:
    return "\n".join(table(content["calibration"]))


def cost_lines(rows: Sequence[Row]) -> Iterator[str]:
    """What the constants of csrc/recurrent/cuda/tiers.h, by which kernels are chosen, would be."""
    for name, value in model.costs(rows).items():
        yield f"Costs::{name}: measured {_number(value)}, assumed {model.assumed()[name]:g}"


def _number(value: float) -> str:
    return f"{value:.4g}"
