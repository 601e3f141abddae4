"""The convolutions that are timed, by name, and the arithmetic that one call of each needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

DTYPES = ("f32", "bf16")
OPS = ("forward", "input", "weight", "train")
LAYOUTS = ("first", "last")  # where the channels lie: [B, C, ..] or [B, .., C] seen as [B, C, ..]


@dataclass(frozen=True)
class ConvCase:
    """A depthwise convolution of C channels, with a bias; as many outputs as ceil(size / stride).

    causal: all zeros lie before x, else as many before as after.
    """

    name: str
    C: int
    size: tuple[int, ...]
    k: int
    stride: int = 1
    dilation: int = 1
    multiplier: int = 1
    causal: bool = False
    batches: tuple[int, ...] = (1, 16)
    dtypes: tuple[str, ...] = DTYPES

    @property
    def n(self) -> int:
        """Dimensions of the kernel."""
        return len(self.size)

    @property
    def pad(self) -> int:
        """Zeros on each side of a dimension; before x alone if causal."""
        reach = self.dilation * (self.k - 1)
        return reach if self.causal else reach // 2

    @property
    def out(self) -> tuple[int, ...]:
        return tuple(-(-n // self.stride) for n in self.size)

    @property
    def window(self) -> tuple[list[int], list[int], list[int]]:
        """stride, padding and dilation as our ops want them."""
        after = [0 if self.causal else self.pad] * self.n
        return [self.stride] * self.n, [self.pad] * self.n + after, [self.dilation] * self.n

    def __str__(self) -> str:
        size = "x".join(map(str, self.size))
        more = [f"s{self.stride}"] * (self.stride > 1) + [f"d{self.dilation}"] * (self.dilation > 1)
        more += [f"x{self.multiplier}"] * (self.multiplier > 1) + ["causal"] * self.causal
        return " ".join([f"{self.C}@{size} k{self.k}", *more])


def flops(case: ConvCase, B: int, op: str) -> int:
    """A multiply-add being two; every tap counts, those on zeros around x too."""
    one = 2 * B * case.C * case.multiplier * math.prod(case.out) * case.k**case.n
    return 3 * one if op == "train" else one


def elements(case: ConvCase, B: int, op: str) -> int:
    """Of the tensors that must be read or written once at least."""
    x, y = B * case.C * math.prod(case.size), B * case.C * case.multiplier * math.prod(case.out)
    return 3 * (x + y) if op == "train" else x + y


def _square(prefix: str, C: int, size: int, k: int, **more: Any) -> ConvCase:
    name = f"{prefix}-{C}@{size}" + (f"-k{k}" if k > 3 else "")
    name += f"-s{more['stride']}" if "stride" in more else ""
    name += f"-d{more['dilation']}" if "dilation" in more else ""
    return ConvCase(name, C, (size, size), k, **more)


_ALL = (*DTYPES, "f16")
_LINE: dict[str, Any] = {"batches": (1, 8)}

CASES = (
    _square("mobile", 32, 112, 3, dtypes=_ALL),
    _square("mobile", 64, 112, 3, stride=2),
    _square("mobile", 128, 56, 3),
    _square("mobile", 128, 56, 3, stride=2),
    _square("mobile", 256, 28, 3),
    _square("mobile", 256, 28, 3, stride=2),
    _square("mobile", 512, 14, 3, dtypes=_ALL),
    _square("mobile", 512, 14, 3, stride=2),
    _square("mobile", 1024, 7, 3),
    _square("efficient", 256, 28, 5),
    _square("efficient", 240, 28, 5, stride=2),
    _square("convnext", 96, 56, 7),
    _square("convnext", 384, 14, 7),
    _square("replk", 96, 56, 13),
    _square("replk", 96, 56, 31),
    ConvCase("line-512-k3", 512, (1024,), 3, causal=True, **_LINE),
    ConvCase("line-512-k4", 512, (1024,), 4, causal=True, **_LINE),
    ConvCase("line-512-k31", 512, (1024,), 31, **_LINE),
    _square("odd", 24, 112, 3),
    ConvCase("odd-20@57x31-k5", 20, (57, 31), 5),
    _square("dilated", 256, 33, 3, dilation=12),
    _square("dilated", 256, 28, 3, dilation=2),
    ConvCase("multiplier-128@56", 128, (56, 56), 3, multiplier=2),
    ConvCase("volume-64", 64, (16, 28, 28), 3),
)
NAMED = {case.name: case for case in CASES}


@dataclass(frozen=True)
class ConvJob:
    case: ConvCase
    dtype: str
    layout: str
    B: int


def jobs(
    names: str | None,
    dtypes: Sequence[str] | None,
    layouts: Sequence[str] = LAYOUTS,
    batches: Sequence[int] | None = None,
) -> tuple[ConvJob, ...]:
    """Of the grid; whoever names cases and dtypes gets every one of these."""
    chosen = CASES if names is None else tuple(_case(word) for word in names.split(","))
    return tuple(
        ConvJob(case, dtype, layout, B)
        for case in chosen
        for dtype in (dtypes or case.dtypes)
        if names is not None or dtype in case.dtypes
        for layout in layouts
        for B in (batches or case.batches)
    )


def _case(word: str) -> ConvCase:
    if word not in NAMED:
        raise ValueError(f"bench: a case is one of {', '.join(NAMED)}, got {word!r}")
    return NAMED[word]
