"""The command line: `python -m bench rnn`, `conv`, `gpu`, `gpu-calibrate` and others."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import options as shared
from bench.cases import CLASSES, DTYPES, GRIDS, MODES, NAMED, jobs, parse_cases, select

GPU_DTYPES = ("tf32", "bf16", "f16", "f32")  # in the order in which they are measured


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure adl_kernels against torch.nn on this machine.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_rnn(commands)
    _add_conv(commands)
    _add_gpu(commands)
    _add_gpu_calibrate(commands)
    commands.add_parser(
        "recompute",
        help="time and memory of layers that recompute their gates (half a minute)",
        description="Four layers in training, to bench/results/cpu-recompute.json.",
    )
    variants = commands.add_parser(
        "variants",
        help="time cells and sequences that torch.nn has not (4 minutes)",
        description=(
            "Training against our plain layer with as many gates, and against a Python loop in "
            "torch, whose step is also compiled for one case. To bench/results/cpu-variants.json."
        ),
    )
    variants.add_argument("--quick", action="store_true", help="a smoke run, not saved")
    shared.add_steady_malloc(variants)
    table = commands.add_parser(
        "table",
        help="print a JSON file of `rnn` or `gpu` as Markdown tables",
        description=(
            "Goals, if the grid was 'full', and one line per cell, dtype and case: torch's time / "
            "ours (ours in GFLOP/s)."
        ),
    )
    picture = commands.add_parser(
        "picture",
        help="draw a JSON file of `rnn` or `gpu`",
        description=(
            "As a PNG beside the file: of `rnn` ratios and shares of the peak; of `gpu` times per "
            "step, predictions and bounds, with what a calibration found if its file is there."
        ),
    )
    for command in (table, picture):
        command.add_argument("path", type=Path, help="such as bench/results/cpu-rnn.json")
    return top


def _add_rnn(commands) -> None:
    rnn = commands.add_parser(
        "rnn",
        help="time LSTM, GRU and RNN layers against torch.nn (about 5 minutes)",
        description=(
            "Times layers of each cell, forward alone (infer) and forward plus backward "
            "(train), ours and torch.nn in turns in one process. Every result is first compared "
            "with torch.nn in double precision; a wrong one is reported as WRONG, gets no "
            "speed-up and makes the exit status 1."
        ),
        epilog=(
            "Cases (T, B, I, H): "
            + ". ".join(f"{case.name} ({case})" for case in NAMED.values())
            + ". The grid 'main' has five of the layers; 'full' has all cases, float32 with and "
            "without page faults, and judges the goals (about 40 minutes). The per cent of peak "
            "are of this machine's rate of multiply-adds, measured in the same run, in float32 "
            "for f32 and f16, in bfloat16 for bf16, and half of float32's for f64."
        ),
    )
    add = rnn.add_argument
    add(
        "--cells",
        type=shared.words(tuple(CLASSES)),
        default=tuple(CLASSES),
        metavar="LIST",
        help="of lstm,gru,rnn (default: all)",
    )
    add(
        "--dtypes",
        type=shared.words(tuple(DTYPES)),
        metavar="LIST",
        help="of f32,bf16,f16,f64 (default: f32,bf16; all for the grid full)",
    )
    add(
        "--threads",
        type=shared.counts,
        default=(1, 2),
        metavar="LIST",
        help="numbers of threads (default: 1,2)",
    )
    add(
        "--modes",
        type=shared.words(MODES),
        default=MODES,
        metavar="LIST",
        help="of infer,train (default: both)",
    )
    add("--cases", metavar="LIST", help="names of cases or shapes TxBxIxH (default: the grid)")
    add("--grid", choices=tuple(GRIDS), default="main", help="the table of cases (default: main)")
    add(
        "--seconds-per-case",
        type=float,
        metavar="S",
        help="time spent on each row, both sides together (default: 2; 1 for the grid full)",
    )
    add("--quick", action="store_true", help="a smoke run: three samples a row")
    shared.add_steady_malloc(rnn)
    add("--json", type=Path, metavar="PATH", help="write machine, rows and summary to PATH")
    add("--save", action="store_true", help="the same to bench/results/cpu-rnn.json, and a picture")


def _add_conv(commands) -> None:
    from bench import conv_cases

    conv = commands.add_parser(
        "conv",
        help="time depthwise and separable convolutions against torch's",
        description=(
            "Times every operator by itself (forward, gradient of the input, of weight and bias) "
            "and a training step, ours and torch's in turns in one process. Every result is first "
            "compared with torch's in double precision; a wrong one is reported as WRONG, gets no "
            "speed-up and makes the exit status 1."
        ),
        epilog="Cases (channels@size kernel): "
        + ". ".join(f"{case.name} ({case})" for case in conv_cases.CASES)
        + ".",
    )
    add = conv.add_argument
    add("--cases", metavar="LIST", help="names of cases (default: all)")
    add(
        "--dtypes",
        type=shared.words(tuple(DTYPES)),
        metavar="LIST",
        help="of f32,bf16,f16,f64 (default: those of each case)",
    )
    add(
        "--ops",
        type=shared.words(conv_cases.OPS),
        default=conv_cases.OPS,
        metavar="LIST",
        help="of forward,input,weight,train (default: all)",
    )
    add(
        "--layouts",
        type=shared.words(conv_cases.LAYOUTS),
        default=conv_cases.LAYOUTS,
        metavar="LIST",
        help="of first,last: where the channels lie (default: both)",
    )
    add("--batches", type=shared.counts, metavar="LIST", help="sizes (default: those of each case)")
    add(
        "--threads",
        type=shared.counts,
        default=(1, 2),
        metavar="LIST",
        help="numbers (default: 1,2)",
    )
    add(
        "--seconds-per-case",
        type=float,
        default=0.5,
        metavar="S",
        help="time spent on each row, both sides together (default: %(default)s)",
    )
    add("--quick", action="store_true", help="a smoke run: three samples a row")
    add("--no-blocks", action="store_true", help="only the operators, no separable blocks")
    shared.add_steady_malloc(conv)
    add("--json", type=Path, metavar="PATH", help="write machine and rows to PATH")
    add(
        "--save",
        action="store_true",
        help="the same to bench/results/cpu-conv.json, and again without page faults",
    )


def _add_gpu(commands) -> None:
    gpu = commands.add_parser(
        "gpu",
        help="time LSTM, GRU and RNN layers on a GPU against torch.nn on cuDNN (4 minutes)",
        description=(
            "Times layers, forward and training, with CUDA events, ours and torch.nn's in turns; "
            "every result is first compared with torch.nn in double precision. Also measures what "
            "the GPU does at best, and judges the goals. Writes bench/results/<name of GPU>.json."
        ),
    )
    add = gpu.add_argument
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try the command itself")
    add("--cells", type=shared.words(tuple(CLASSES)), default=tuple(CLASSES), metavar="LIST")
    add(
        "--dtypes",
        type=shared.words(GPU_DTYPES),
        default=GPU_DTYPES,
        metavar="LIST",
        help="of tf32,bf16,f16,f32 (default: all); tf32 is float32 that may be rounded to it",
    )
    add(
        "--grid",
        choices=("wide", "goals", "first"),
        default="wide",
        help="goals: the shapes of bench/gpu_goals.py, to <name of GPU>-goals.json; first: what "
        "tells most in two minutes",
    )
    add("--graphs", action="store_true", help="also replay every call from a CUDA graph")
    add("--cases", metavar="LIST", help="names of cases or shapes TxBxIxH (default: the grid)")
    add(
        "--seconds",
        type=float,
        default=200.0,
        metavar="S",
        help="for all rows together; 0: three samples each (default: %(default)s)",
    )
    add("--json", type=Path, metavar="PATH", help="write to PATH instead")


def _add_gpu_calibrate(commands) -> None:
    command = commands.add_parser(
        "gpu-calibrate",
        help="put what a run on a GPU measured into the model that chooses kernels",
        description=(
            "Reads what `gpu_kit/run OUT` or `make gpu` wrote, edits the constants of "
            "csrc/recurrent/cuda/tiers.h in place, builds again, and prints predicted and measured "
            "times."
        ),
    )
    command.add_argument("out", type=Path, metavar="OUT", help="the folder with the results")


def run_rnn(options: argparse.Namespace) -> int:
    from bench import limits, machine, peak, report, run

    full = options.grid == "full"
    seconds = options.seconds_per_case
    if seconds is None:
        seconds = 1.0 if full else 2.0
    settings = run.Settings(
        jobs=select(options.grid, options.cases, options.cells, options.dtypes),
        threads=options.threads,
        modes=options.modes,
        seconds=0.0 if options.quick else seconds,
        rounds=(3, 3) if options.quick else (3 if full else 5, 200),
    )
    facts, peaks = machine.facts(["-m", "bench", *options.arguments]), peak.Peak()
    print(machine.line(facts))
    rows, rates = run.measure(settings)
    peaks.take(rates)
    steady = run.of_both_mallocs(settings, rows)
    if full and steady.jobs and not options.steady_malloc:
        more, rates = machine.in_new_process(
            run.measure, steady, GLIBC_TUNABLES=machine.STEADY_MALLOC
        )
        rows += more
        peaks.take(rates)
    whole = full and settings.jobs == select("full", None, tuple(CLASSES), None)
    extras = limits.measure(settings) if whole else []
    run.refer_to_peak(rows, peaks)
    content = {
        "machine": facts,
        "grid": options.grid,
        "peak_gflops": peaks.rates,
        "notes": peak.notes(),
        "extras": extras,
        "rows": rows,
        "summary": report.groups(rows),
    }
    print("\n" + report.peak_line(peaks.rates))
    print(
        "\ntime of torch.nn / time of adl_kernels", report.group_table(content["summary"]), sep="\n"
    )
    if full:
        print("", *report.goal_tables(content), sep="\n\n")
    if options.save:
        _write(shared.RESULTS / "cpu-rnn.json", content)
        _draw(shared.RESULTS / "cpu-rnn.json")
    if options.json:
        _write(options.json, content)
    return int(any(row["status"] != "ok" for row in rows))


def run_conv(options: argparse.Namespace) -> int:
    from bench import conv, conv_cases, conv_goals, machine, report, run

    chosen = conv_cases.jobs(options.cases, options.dtypes, options.layouts, options.batches)
    settings = run.Settings(
        jobs=(),
        threads=options.threads,
        seconds=0.0 if options.quick else options.seconds_per_case,
        rounds=(3, 3 if options.quick else 200),
    )
    facts = machine.facts(["-m", "bench", *options.arguments])
    print(machine.line(facts))
    # Whoever asks for a part of the grid wants no blocks.
    blocks = options.cases is None and not options.no_blocks
    arguments = (chosen, options.ops, settings, blocks)
    rows, peaks = conv.run(*arguments)
    if options.save and machine.malloc() == "plain":
        more, _ = machine.in_new_process(conv.run, *arguments, GLIBC_TUNABLES=machine.STEADY_MALLOC)
        rows += more
    content = {"machine": facts, "peak_gflops": peaks, "convolutions": rows}
    print("", report.peak_line(peaks), conv_goals.goal_table(rows), sep="\n\n")
    if options.save:
        _write(shared.RESULTS / "cpu-conv.json", content)
    if options.json:
        _write(options.json, content)
    return int(any(row["status"] != "ok" for row in rows))


def run_gpu(options: argparse.Namespace) -> int:
    from bench import gpu, gpu_goals, gpu_grid

    wide = options.grid == "wide"
    grid = gpu_grid if wide else gpu_goals
    if options.cases is None:
        choose = gpu_goals.first if options.grid == "first" else grid.grid
        chosen = choose(options.cells, options.dtypes)
    else:
        chosen = jobs(parse_cases(options.cases, grid.NAMED), options.cells, options.dtypes)
    settings = gpu.Settings(
        chosen,
        options.device,
        options.seconds,
        goals=grid.GOALS,
        name="" if wide else options.grid,
        graphs=options.graphs,
    )
    return gpu.main(settings, options.arguments, options.json, shared.RESULTS)


def run_gpu_calibrate(options: argparse.Namespace) -> int:
    from bench import gpu_calibrate

    return gpu_calibrate.main(options.out)


def run_recompute(options: argparse.Namespace) -> int:
    from bench import machine, recompute, run

    found = list(recompute.measure(run.Settings(jobs=())))
    for row in found:
        print(f"{row['where']:40} {row['what']:8} {row['value']:.2f}")
    content = {
        "machine": machine.facts(["-m", "bench", *options.arguments]),
        "recomputing / keeping": found,
    }
    _write(shared.RESULTS / "cpu-recompute.json", content)
    return 0


def run_variants(options: argparse.Namespace) -> int:
    from bench import machine, run, variants

    facts = machine.facts(["-m", "bench", *options.arguments])
    print(machine.line(facts))
    settings = run.Settings(jobs=(), seconds=0.4, rounds=(5, 25))
    if options.quick:
        settings = run.Settings(jobs=(), threads=(1,), seconds=0.0, rounds=(1, 1))
    found = []
    for row in variants.measure(settings, compiled=not options.quick):
        found.append(row)
        print(
            f"{row['variant']:26} {row['case']:12} {row['threads']} threads: "
            f"{row['to_plain']:.2f} of plain, loop / ours {row['loop_to_ours']:.1f}",
            flush=True,
        )
    print(variants.markdown(found))
    if not options.quick:
        _write(shared.RESULTS / "cpu-variants.json", {"machine": facts, "variants": found})
    return 0


def _write(path: Path, content: dict[str, Any]) -> None:
    from bench import store

    store.write_json(path, content)
    print(f"written: {path}")


def _draw(path: Path) -> None:
    """With what the calibration of the same run found, if it is beside the file."""
    content, to = json.loads(path.read_text()), path.with_suffix(".png")
    if "ceilings" in content:
        from bench import gpu_picture

        beside = path.with_name("calibration.json")
        found = json.loads(beside.read_text())["calibration"] if beside.exists() else ()
        gpu_picture.draw(to, content, found)
    else:
        from bench import picture

        picture.draw(to, content)
    print(f"written: {to}")


def run_table(options: argparse.Namespace) -> int:
    from bench import conv_goals, gpu_report, machine, report, variants

    content = json.loads(options.path.read_text())
    if "calibration" in content:
        from bench import calibration

        print("\n".join(calibration.table(content["calibration"])))
        return 0
    if "ceilings" in content:
        print(gpu_report.markdown(content))
        return 0
    if "convolutions" in content:
        rows = content["convolutions"]
        tables = conv_goals.goal_table(rows), conv_goals.case_table(rows)
        print(machine.line(content["machine"]), *tables, sep="\n\n")
        return 0
    if "variants" in content:
        print(machine.line(content["machine"]), variants.markdown(content["variants"]), sep="\n\n")
        return 0
    print(machine.line(content["machine"]), report.markdown(content), sep="\n\n")
    return 0


def run_picture(options: argparse.Namespace) -> int:
    _draw(options.path)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    options.arguments = sys.argv[1:] if arguments is None else arguments
    if getattr(options, "steady_malloc", False):
        from bench import machine

        machine.use_steady_malloc()
    try:
        commands = {
            "rnn": run_rnn,
            "conv": run_conv,
            "gpu": run_gpu,
            "gpu-calibrate": run_gpu_calibrate,
            "recompute": run_recompute,
            "variants": run_variants,
            "table": run_table,
            "picture": run_picture,
        }
        return commands[options.command](options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
