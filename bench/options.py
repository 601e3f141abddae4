"""The options that several commands share, each said once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench import store
from bench.measure import QUICK, Budget
from bench.store import Content, Row

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


def add_timing(command: argparse.ArgumentParser, seconds: str) -> None:
    add = command.add_argument
    add("--threads", type=counts, default=(1, 2), metavar="LIST", help="numbers (default: 1,2)")
    add(
        "--seconds-per-case",
        type=float,
        metavar="S",
        help=f"time spent on each row, both sides together (default: {seconds})",
    )
    add("--quick", action="store_true", help="a smoke run: three samples a row")
    add_steady_malloc(command)


def budget(asked: argparse.Namespace, usual: Budget) -> Budget:
    if asked.quick:
        return QUICK
    seconds = asked.seconds_per_case
    return usual if seconds is None else replace(usual, seconds=seconds)


def add_files(command: argparse.ArgumentParser, file: str, more: str) -> None:
    add = command.add_argument
    add("--json", type=Path, metavar="PATH", help="write what was measured to PATH")
    add("--save", action="store_true", help=f"the same to bench/results/{file}, {more}")


def finish(asked: argparse.Namespace, file: str, content: Content, rows: Sequence[Row]) -> int:
    """Writes what is to be kept; the exit status is 1 if a result was wrong."""
    if asked.save:
        store.save(RESULTS / file, content)
    if asked.json:
        store.save(asked.json, content)
    return int(any(row["status"] != "ok" for row in rows))


def add_steady_malloc(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--steady-malloc",
        action="store_true",
        help="start again with glibc told to keep freed memory, which spares both sides the page "
        "faults of large buffers: shows the computation alone",
    )
