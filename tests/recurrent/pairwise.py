"""A short list of combinations in which every two values of two different options meet."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
Pair = tuple[tuple[str, Any], tuple[str, Any]]


def pairs_of(row: Row) -> set[Pair]:
    return set(itertools.combinations(row.items(), 2))


def combinations(options: dict[str, tuple[Any, ...]], allowed: Callable[[Row], bool]) -> list[Row]:
    """Greedily: each row takes, option by option, the value with most pairs not met before.

    Pairs that no allowed row can hold are left out. `allowed` judges whole rows and unfinished
    ones: what it refuses of these, no further value can mend.
    """
    names = list(options)
    every = itertools.combinations(((n, v) for n in names for v in options[n]), 2)
    missing = {pair for pair in every if pair[0][0] != pair[1][0]}
    rows: list[Row] = []
    while missing:
        first = min(missing, key=lambda pair: (names.index(pair[0][0]), str(pair)))
        row = _complete(dict(first), options, missing, allowed)
        if row is None:
            missing.discard(first)  # the two exclude each other
            continue
        rows.append(row)
        missing -= pairs_of(row)
    return rows


def _complete(
    row: Row,
    options: dict[str, tuple[Any, ...]],
    missing: set[Pair],
    allowed: Callable[[Row], bool],
) -> Row | None:
    if not allowed(row):
        return None
    left = [name for name in options if name not in row]
    if not left:
        return {name: row[name] for name in options}

    def gain(value: Any) -> int:
        new = {(n, v) for n, v in row.items()}
        item = (left[0], value)
        return sum((old, item) in missing or (item, old) in missing for old in new)

    for value in sorted(options[left[0]], key=gain, reverse=True):
        found = _complete(row | {left[0]: value}, options, missing, allowed)
        if found is not None:
            return found
    return None
