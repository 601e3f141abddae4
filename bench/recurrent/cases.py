"""What is timed, by name, and the arithmetic that one call of each needs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.store import Row

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
    """One call: x is [T, B, I], the state [num_layers x directions, B, H].

    kind: "layer"; "stack", of several layers; "packed", a PackedSequence of lengths evenly spread
    between a fifth of T and T; "step", one step from a given state; "cell", the same by
    nn.LSTMCell etc.
    """

    name: str
    T: int
    B: int
    I: int
    H: int
    kind: str = "layer"
    num_layers: int = 1
    bidirectional: bool = False

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def batch_sizes(self) -> Tensor | None:
        """Of a PackedSequence: [T] how many sequences reach each step."""
        if self.kind != "packed":
            return None
        lengths = torch.linspace(self.T / 5, self.T, self.B).round()
        return (lengths > torch.arange(self.T)[:, None]).sum(1)

    @property
    def tokens(self) -> int:
        return self.T * self.B if self.kind != "packed" else int(self.batch_sizes.sum())

    @property
    def rows(self) -> tuple[int, ...]:
        """The sizes of x but the last."""
        return {"packed": (self.tokens,), "cell": (self.B,)}.get(self.kind, (self.T, self.B))

    @property
    def state(self) -> tuple[int, ...]:
        """The sizes of h and c."""
        layers = () if self.kind == "cell" else (self.num_layers * self.directions,)
        return (*layers, self.B, self.H)

    def __str__(self) -> str:
        sizes = f"{self.T}, {self.B}, {self.I}, {self.H}"
        both = " bidirectional" if self.bidirectional else ""
        plural = "s" * (self.num_layers > 1)
        more = {
            "stack": f"{self.num_layers}{both} layer{plural}",
            "packed": "packed",
            "cell": "cell",
        }
        return f"{sizes}; {more[self.kind]}" if self.kind in more else sizes


@dataclass(frozen=True)
class Job:
    """A case for one cell and number type."""

    cell: str
    dtype: str
    case: Case

    def row(self) -> Row:
        """What every row of it begins with."""
        case = self.case
        return {
            "cell": self.cell,
            "dtype": self.dtype,
            "case": case.name,
            "shape": str(case),
            "kind": case.kind,
            **{size: getattr(case, size) for size in "TBIH"},
            "layers": case.num_layers,
            "directions": case.directions,
            "tokens": case.tokens,
        }


def jobs(
    cases: Sequence[Case],
    cells: Sequence[str] = tuple(CLASSES),
    dtypes: Sequence[str] = tuple(DTYPES),
) -> tuple[Job, ...]:
    return tuple(Job(cell, dtype, case) for cell in cells for dtype in dtypes for case in cases)


LAYERS = (
    Case("single-128", 100, 1, 128, 128),
    Case("single-512", 100, 1, 512, 512),
    Case("small-128", 100, 16, 128, 128),
    Case("medium-256", 100, 32, 256, 256),
    Case("large-512", 100, 64, 512, 512),
    Case("huge-1024", 50, 64, 1024, 1024),
    Case("language-650", 35, 20, 650, 650),
    Case("long-256", 512, 8, 256, 256),
    Case("longer-64", 1000, 4, 64, 64),
    Case("wide-100", 24, 256, 32, 100),
)
_BOTH = {"kind": "stack", "num_layers": 2, "bidirectional": True}
STACKS = (
    Case("bi2-256", 100, 32, 256, 256, **_BOTH),
    Case("bi2-512", 100, 64, 512, 512, **_BOTH),
    Case("bi2-1024", 50, 64, 1024, 1024, **_BOTH),
    Case("bi2-650", 35, 20, 650, 650, **_BOTH),
)
PACKED = (
    Case("packed-256", 100, 32, 256, 256, "packed"),
    Case("packed-512", 100, 64, 512, 512, "packed"),
)
STEPS = tuple(
    Case(f"{kind}-{size}", 1, 1, size, size, kind)
    for kind in ("step", "cell")
    for size in (64, 128, 256)
)
NAMED = {case.name: case for case in (*LAYERS, *STACKS, *PACKED, *STEPS)}

_MAIN = ("single-128", "small-128", "medium-256", "large-512", "language-650")
# On the larger shapes a call of torch's in float16 takes up to minutes.
_TOO_LARGE_FOR_F16 = ("large-512", "huge-1024", "long-256")

# What `--grid` names; "full" is what the goals are about.
GRIDS: dict[str, tuple[Job, ...]] = {
    "main": jobs([NAMED[name] for name in _MAIN]),
    "full": (
        *jobs(LAYERS, dtypes=("f32", "bf16", "f64")),
        *jobs([case for case in LAYERS if case.name not in _TOO_LARGE_FOR_F16], dtypes=("f16",)),
        *jobs(STACKS, dtypes=("f32", "bf16")),
        *jobs(PACKED, cells=("lstm", "gru"), dtypes=("f32",)),
        *jobs(STEPS, dtypes=("f32",)),
    ),
}

_SHAPE = re.compile(r"(\d+)x(\d+)x(\d+)x(\d+)")


def flops(cell: str, case: Case, mode: str) -> int:
    """Floating-point operations of the matrix products, a multiply-add being two.

    Forward: for every layer and direction, as many rows as tokens times inputs and H times G*H
    gate columns. Training adds the same product twice more, once for the gradients of x and h and
    once for those of the weights.
    """
    D, H = case.directions, case.H
    inputs = case.I + (case.num_layers - 1) * D * H  # of all layers
    forward = 2 * case.tokens * D * GATES[cell] * H * (inputs + case.num_layers * H)
    return 3 * forward if mode == "train" else forward


def select(
    grid: str, cases: str | None, cells: Sequence[str], dtypes: Sequence[str] | None
) -> tuple[Job, ...]:
    """What a run measures, cell by cell: of the grid, or the named cases instead of it."""
    if dtypes is None:
        dtypes = tuple(DTYPES) if grid == "full" and cases is None else ("f32", "bf16")
    if cases is not None:
        return jobs(parse_cases(cases), cells, dtypes)
    found = [job for job in GRIDS[grid] if job.cell in cells and job.dtype in dtypes]
    return tuple(sorted(found, key=lambda job: (cells.index(job.cell), dtypes.index(job.dtype))))


def parse_cases(text: str, named: Mapping[str, Case] = NAMED) -> tuple[Case, ...]:
    """Cases from a comma-separated list of names or TxBxIxH shapes."""
    return tuple(_case(word, named) for word in text.split(","))


def _case(word: str, named: Mapping[str, Case]) -> Case:
    if word in named:
        return named[word]
    shape = _SHAPE.fullmatch(word)
    if shape is None or "0" in shape.groups():
        raise ValueError(
            f"bench: a case is one of {', '.join(named)} or a shape TxBxIxH, got {word!r}"
        )
    return Case(word, *map(int, shape.groups()))
