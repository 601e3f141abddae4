"""Which lane a case is in: those that are slow run with --all only, by `make test-all`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def slow(*cases: Any) -> list[Any]:
    """For a list of values, or tuples of them, to parametrize with: these are slow."""
    values = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*each, marks=pytest.mark.slow) for each in values]


def slow_unless(fast: Callable[[Any], bool], cases: Iterable[Any]) -> list[Any]:
    """All of them, in their order; slow are those that are not fast."""
    return [case if fast(case) else slow(case)[0] for case in cases]
