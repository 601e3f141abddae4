"""The command line: `python -m bench --help` in the repository root."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from bench import machine
from bench.clients import timing as clients
from bench.depthwise import operators
from bench.gpu import calibrate, calibration
from bench.gpu import layers as gpu_layers
from bench.gpu import report as gpu_report
from bench.recurrent import layers, recompute, report, variants
from bench.store import Content

# What is measured: modules with HELP, add_options and main, perhaps an EPILOG of the help.
BENCHMARKS = {
    "rnn": layers,
    "conv": operators,
    "gpu": gpu_layers,
    "gpu-calibrate": calibrate,
    "recompute": recompute,
    "clients": clients,
    "variants": variants,
}
# What is told of a file, by the first of these keys that it has.
TABLES = {
    "calibration": calibration.markdown,
    "ceilings": gpu_report.markdown,
    "clients": clients.markdown,
    "convolutions": operators.markdown,
    "variants": variants.markdown,
    "rows": report.markdown,
}
PICTURES = {"ceilings": "bench.gpu.picture", "rows": "bench.recurrent.picture"}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure adl_kernels against torch.nn on this machine.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, benchmark in BENCHMARKS.items():
        command = commands.add_parser(
            name,
            help=benchmark.HELP,
            description=benchmark.__doc__,
            epilog=getattr(benchmark, "EPILOG", None),
        )
        benchmark.add_options(command)
        command.set_defaults(run=benchmark.main)
    table = commands.add_parser(
        "table",
        help="print a JSON file of a benchmark as Markdown tables",
        description="Goals, and one line per case: torch's time / ours, and what ours was.",
    )
    table.set_defaults(run=print_tables)
    picture = commands.add_parser(
        "picture",
        help="draw a JSON file of `rnn` or `gpu`",
        description=(
            "As a PNG beside the file: of `rnn` ratios and shares of the peak; of `gpu` times per "
            "step, predictions and bounds, with what a calibration found if its file is there."
        ),
    )
    picture.set_defaults(run=draw)
    for command in (table, picture):
        command.add_argument("path", type=Path, help="such as bench/results/cpu-rnn.json")
    return top


def read(path: Path, kinds: Sequence[str]) -> tuple[str, Content]:
    """The kind of a file, and what is in it."""
    content = json.loads(path.read_text())
    for kind in kinds:
        if kind in content:
            return kind, content
    raise ValueError(f"bench: {path} has none of {', '.join(kinds)}")


def print_tables(asked: argparse.Namespace) -> int:
    kind, content = read(asked.path, tuple(TABLES))
    if "cpu" in content["machine"]:
        print(machine.line(content["machine"]), end="\n\n")
    print(TABLES[kind](content))
    return 0


def draw(asked: argparse.Namespace) -> int:
    kind, content = read(asked.path, tuple(PICTURES))
    picture = import_module(PICTURES[kind])  # only now, as matplotlib may be absent
    picture.draw(asked.path.with_suffix(".png"), content)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parser().parse_args(arguments)
    asked.words = ["-m", "bench", *(sys.argv[1:] if arguments is None else arguments)]
    if getattr(asked, "steady_malloc", False):
        machine.use_steady_malloc()
    try:
        return asked.run(asked)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
