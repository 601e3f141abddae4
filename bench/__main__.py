"""The command line: `python -m bench rnn`, `demo` and `table`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.cases import CLASSES, DTYPES, GRIDS, MODES, parse_cases

RESULTS = Path(__file__).parent / "results"


def _words(allowed: Sequence[str]):
    def parse(text: str) -> tuple[str, ...]:
        words = tuple(text.split(","))
        for word in words:
            if word not in allowed:
                raise argparse.ArgumentTypeError(f"{word!r} is not one of {', '.join(allowed)}")
        return words

    return parse


def _counts(text: str) -> tuple[int, ...]:
    counts = tuple(int(word) for word in text.split(","))
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"thread counts must be positive, got {text}")
    return counts


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure adl_kernels against torch.nn on this machine.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_rnn(commands)
    _add_demo(commands)
    table = commands.add_parser(
        "table",
        help="print a JSON file of `rnn` as a Markdown table",
        description="One line per cell, dtype and case: torch's time / ours (ours in GFLOP/s).",
    )
    table.add_argument("path", type=Path, help="such as bench/results/cpu-rnn.json")
    return top


def _add_rnn(commands) -> None:
    rnn = commands.add_parser(
        "rnn",
        help="time single LSTM, GRU and RNN layers against torch.nn (about 5 minutes)",
        description=(
            "Times one layer of each cell, forward alone (infer) and forward plus backward "
            "(train), ours and torch.nn in turns in one process. Every result is first compared "
            "with torch.nn in double precision; a wrong one is reported as WRONG, gets no "
            "speed-up and makes the exit status 1."
        ),
        epilog=(
            "Cases of the grid 'main' (T, B, I, H): "
            + "; ".join(f"{c.name} ({c.T}, {c.B}, {c.I}, {c.H})" for c in GRIDS["main"])
            + ". The per cent of peak are of this machine's rate of single-precision "
            "multiply-adds, measured in the same run; bf16 may exceed 100."
        ),
    )
    add = rnn.add_argument
    add(
        "--cells",
        type=_words(tuple(CLASSES)),
        default=tuple(CLASSES),
        metavar="LIST",
        help="of lstm,gru,rnn (default: all)",
    )
    add(
        "--dtypes",
        type=_words(tuple(DTYPES)),
        default=("f32", "bf16"),
        metavar="LIST",
        help="of f32,bf16,f16,f64 (default: f32,bf16)",
    )
    add(
        "--threads",
        type=_counts,
        default=(1, 2),
        metavar="LIST",
        help="numbers of threads (default: 1,2)",
    )
    add(
        "--modes",
        type=_words(MODES),
        default=MODES,
        metavar="LIST",
        help="of infer,train (default: both)",
    )
    add("--cases", metavar="LIST", help="names of cases or shapes TxBxIxH (default: the grid)")
    add("--grid", choices=tuple(GRIDS), default="main", help="the table of cases (default: main)")
    add(
        "--seconds-per-case",
        type=float,
        default=2.0,
        metavar="S",
        help="time spent on each row, both sides together (default: 2)",
    )
    add("--quick", action="store_true", help="a smoke run: three samples a row")
    _add_steady_malloc(rnn)
    add("--json", type=Path, metavar="PATH", help="write machine, rows and summary to PATH")
    add("--save", action="store_true", help="the same, to bench/results/cpu-rnn.json")


def _add_demo(commands) -> None:
    demo = commands.add_parser(
        "demo",
        help="train a character model twice, with torch.nn and with adl_kernels (2 minutes)",
        description=(
            "Trains the same character-level language model on Python's own language reference "
            "with torch.nn and with adl_kernels, LSTM and then GRU, from the same weights and "
            "batches. Compares loss curves, bits per character on held-out text and speed; the "
            "exit status is 1 if the two do not learn the same."
        ),
    )
    add = demo.add_argument
    add(
        "--steps",
        type=int,
        default=400,
        metavar="N",
        help="training steps of each model (default: %(default)s)",
    )
    add(
        "--hidden",
        type=int,
        default=256,
        metavar="H",
        help="units per layer (default: %(default)s)",
    )
    add("--layers", type=int, default=2, metavar="L", help="layers (default: %(default)s)")
    add(
        "--batch",
        type=int,
        default=32,
        metavar="B",
        help="streams of text read side by side (default: %(default)s)",
    )
    add(
        "--length",
        type=int,
        default=64,
        metavar="T",
        help="characters per step and stream (default: %(default)s)",
    )
    add(
        "--cells",
        type=_words(("lstm", "gru")),
        default=("lstm", "gru"),
        metavar="LIST",
        help="of lstm,gru (default: both)",
    )
    add("--threads", type=int, metavar="N", help="number of threads (default: torch's choice)")
    add(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of weights and samples (default: %(default)s)",
    )
    add("--prompt", metavar="TEXT", help="text to complete (default: three beginnings)")
    add(
        "--out",
        type=Path,
        default=Path("demo_out"),
        metavar="DIR",
        help="folder for the results (default: %(default)s)",
    )
    _add_steady_malloc(demo)


def _add_steady_malloc(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--steady-malloc",
        action="store_true",
        help="start again with glibc told to keep freed memory, which spares both sides the page "
        "faults of large buffers: shows the computation alone",
    )


def run_rnn(options: argparse.Namespace) -> int:
    from bench import machine, report, run

    settings = run.Settings(
        cases=parse_cases(options.cases, options.grid),
        cells=options.cells,
        dtypes=options.dtypes,
        threads=options.threads,
        modes=options.modes,
        seconds=0.0 if options.quick else options.seconds_per_case,
        rounds=(3, 3) if options.quick else (5, 200),
    )
    facts, peak = machine.facts(options.arguments), run.peaks(settings.threads)
    print(machine.line(facts))
    print(report.peak_line(peak), report.header(), sep="\n\n")
    rows = []
    for row in run.rows(settings, peak):
        rows.append(row)
        print(report.line(row), flush=True)
    run.refer_to_peak(rows, peak)
    summary = report.groups(rows)
    print("\n" + report.peak_line(peak))
    print("\ntime of torch.nn / time of adl_kernels", report.group_table(summary), sep="\n")
    for path in (options.json, RESULTS / "cpu-rnn.json" if options.save else None):
        if path is not None:
            content = {"machine": facts, "peak_gflops": peak, "rows": rows, "summary": summary}
            report.write_json(path, content)
            print(f"written: {path}")
    return int(any(row["status"] != "ok" for row in rows))


def run_table(options: argparse.Namespace) -> int:
    import json

    from bench import report

    content = json.loads(options.path.read_text())
    print(content["machine"], report.markdown(content), sep="\n\n")
    return 0


def run_demo(options: argparse.Namespace) -> int:
    from bench import demo

    return demo.main(options)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    options.arguments = sys.argv[1:] if arguments is None else arguments
    if getattr(options, "steady_malloc", False):
        from bench import machine

        machine.use_steady_malloc(options.arguments)
    try:
        return {"rnn": run_rnn, "demo": run_demo, "table": run_table}[options.command](options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
