"""The options that several commands share, each said once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def words(allowed: Sequence[str]):
    """The parser of a list such as lstm,gru."""

    def parse(text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        for word in found:
            if word not in allowed:
                raise argparse.ArgumentTypeError(f"{word!r} is not one of {', '.join(allowed)}")
        return found

    return parse


def counts(text: str) -> tuple[int, ...]:
    found = tuple(int(word) for word in text.split(","))
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"counts must be positive, got {text}")
    return found


def add_list(
    command: argparse.ArgumentParser,
    name: str,
    allowed: Sequence[str],
    default: str | None = None,
    more: str = "",
) -> None:
    """A list of words; all of them by default, or what `default` says the default is."""
    command.add_argument(
        name,
        type=words(allowed),
        default=None if default else tuple(allowed),
        metavar="LIST",
        help=f"of {','.join(allowed)}{more} (default: {default or 'all'})",
    )


def add_steady_malloc(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--steady-malloc",
        action="store_true",
        help="start again with glibc told to keep freed memory, which spares both sides the page "
        "faults of large buffers: shows the computation alone",
    )
