"""The shapes that are timed, by name, and the arithmetic that one call of each needs."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
CLASSES = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}
DTYPES = {
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f64": torch.float64,
}
MODES = ("infer", "train")


@dataclass(frozen=True)
class Case:
    """One layer, one direction: x is [T, B, I], the state [1, B, H]."""

    name: str
    T: int
    B: int
    I: int
    H: int


# A further grid is one more row here; names are unique over all grids.
GRIDS: dict[str, tuple[Case, ...]] = {
    "main": (
        Case("single-128", 100, 1, 128, 128),
        Case("small-128", 100, 16, 128, 128),
        Case("medium-256", 100, 32, 256, 256),
        Case("large-512", 100, 64, 512, 512),
        Case("language-650", 35, 20, 650, 650),
    ),
}

_SHAPE = re.compile(r"(\d+)x(\d+)x(\d+)x(\d+)")


def flops(cell: str, case: Case, mode: str) -> int:
    """Floating-point operations of the matrix products, a multiply-add being two.

    Forward: T*B rows times (I + H) inputs times G*H gate columns. Training adds the same product
    twice more, once for the gradients of x and h and once for those of the weights.
    """
    forward = 2 * case.T * case.B * GATES[cell] * case.H * (case.I + case.H)
    return 3 * forward if mode == "train" else forward


def parse_cases(text: str | None, grid: str) -> tuple[Case, ...]:
    """Cases from a comma-separated list of names or TxBxIxH shapes; the whole grid for None."""
    if text is None:
        return GRIDS[grid]
    return tuple(_case(word) for word in text.split(","))


def _case(word: str) -> Case:
    named = {case.name: case for cases in GRIDS.values() for case in cases}
    if word in named:
        return named[word]
    shape = _SHAPE.fullmatch(word)
    if shape is None or "0" in shape.groups():
        raise ValueError(
            f"bench: a case is one of {', '.join(named)} or a shape TxBxIxH, got {word!r}"
        )
    return Case(word, *map(int, shape.groups()))
