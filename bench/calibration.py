"""Builds and runs the programs of bench/gpu: what the model of a step rests on, measured.

They need nvcc and a GPU, neither torch nor adl_kernels. Each prints lines of JSON, one per figure,
with what the model predicts.
"""

from __future__ import annotations

import datetime
import json
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import gpu_model, store
from build_backend import choices
from build_backend.compile import NVCC_FLAGS

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "bench/gpu"
# What is most likely to hang comes late: a GPU may not recover from it.
ORDER = ("launch", "mma", "wgmma", "cluster", "l2", "step")
BUILD_S = 120.0
RUN_S = 40.0  # of each program; they take seconds

Row = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What a program printed, and what went wrong with it."""

    program: str
    rows: list[Row]
    problem: str = ""

    @property
    def failed(self) -> list[str]:
        rows = [row for row in self.rows if row.get("note", "").startswith("FAILED")]
        return [f"{row['name']}: {row['note']}" for row in rows] + [self.problem] * bool(
            self.problem
        )


def programs() -> list[Path]:
    return [FOLDER / f"calibrate_{name}.cu" for name in ORDER]


def architecture() -> str:
    """sm_90a has instructions that sm_90 has not, which is what -arch=native stands for."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        digits = done.stdout.splitlines()[0].strip().replace(".", "")
    except (OSError, IndexError, subprocess.SubprocessError):
        import torch

        if not torch.cuda.is_available():
            return "native"
        digits = "".join(map(str, torch.cuda.get_device_capability()))
    return f"sm_{digits}{'a' * (digits == '90')}"


def build(nvcc: Path, sources: Sequence[Path], folder: Path, arch: str) -> list[str]:
    """Compiles programs of the sources' names into the folder; returns what went wrong."""

    def compile_one(source: Path) -> str:
        flags = [*NVCC_FLAGS, f"-arch={arch}", f"-I{ROOT / 'csrc'}"]
        command = [str(nvcc), *flags, str(source), "-o", str(folder / source.stem)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=BUILD_S
            )
        except subprocess.TimeoutExpired:
            return f"{source.name}: nvcc was stopped after {BUILD_S:.0f} s"
        text = done.stdout + done.stderr
        return f"{source.name} does not compile:\n{text}" if done.returncode else ""

    with ThreadPoolExecutor(choices.jobs_here()) as pool:
        return [problem for problem in pool.map(compile_one, sources) if problem]


def run(program: Path, limit_s: float = RUN_S) -> Outcome:
    """What a program says until it ends, fails or has to be stopped."""
    problem = ""
    with tempfile.TemporaryFile("w+") as output:  # kept when the program is stopped
        process = subprocess.Popen([str(program)], stdout=output, stderr=subprocess.STDOUT)
        try:
            code = process.wait(limit_s)
            problem = f"exit status {code}" if code else ""
        except subprocess.TimeoutExpired:
            process.kill()
            problem = f"stopped after {limit_s:.0f} s"
        output.seek(0)
        rows, rest = parse(output.read())
    problem = "; ".join(filter(None, [problem, *rest[-3:]]))
    return Outcome(program.name, rows, f"{program.name}: {problem}" if problem else "")


def parse(text: str) -> tuple[list[Row], list[str]]:
    """Lines that are figures, and the others."""
    rows, rest = [], []
    for line in filter(None, map(str.strip, text.splitlines())):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            rest.append(line)
    return rows, rest


# The table


def table(rows: Sequence[Row]) -> Iterator[str]:
    """A line per figure: measured, predicted, and the one by the other."""
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        value, predicted = row["value"], row["predicted"]
        text = f"{row['name']:<{width}}  "
        text += f"{_number(value):>9} {row['unit']:<18}" if value is not None else f"{'':28}"
        if predicted is not None and value is not None:
            ratio = f" ({value / predicted:.2f} of it)" if predicted else ""
            text += f" predicted {_number(predicted):>7}{ratio}"
        yield (text + f" {row.get('note', '')}").rstrip()


def cost_lines(rows: Sequence[Row]) -> Iterator[str]:
    """What the constants of csrc/cuda/tiers.h, by which kernels are chosen, would be."""
    for name, value in gpu_model.costs(rows).items():
        yield f"Costs::{name}: measured {_number(value)}, assumed {gpu_model.assumed()[name]:g}"


def _number(value: float) -> str:
    return f"{value:.4g}"


# The command


def facts(arguments: Sequence[str], nvcc: Path, arch: str) -> dict[str, Any]:
    said = subprocess.run([str(nvcc), "--version"], capture_output=True, text=True, check=False)
    versions = [line for line in said.stdout.splitlines() if "release" in line]
    return {
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", "-m", "bench", *arguments]),
        "nvcc": versions[0].strip() if versions else "",
        "arch": arch,
    }


def main(arguments: Sequence[str], path: Path | None, results: Path, compiled: bool = False) -> int:
    """Prints the table and writes it down. `compiled`: only that the programs compile, no GPU."""
    home = choices.find_cuda_home(os.environ, shutil.which("nvcc"))
    if home is None:
        raise ValueError("bench: no CUDA toolkit was found (set CUDA_HOME to its folder)")
    nvcc, arch = home / "bin/nvcc", "sm_90a" if compiled else architecture()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        problems = build(nvcc, programs(), Path(folder), arch)
        print(f"compiled for {arch} in {time.monotonic() - start:.0f} s", flush=True)
        outcomes = []
        for source in [] if compiled else programs():
            program = Path(folder) / source.stem
            if program.exists():
                outcomes.append(run(program))
                print("\n".join(table(figures(outcomes[-1].rows))), flush=True)
    for outcome in outcomes:
        problems += outcome.failed
    known = facts(arguments, nvcc, arch)
    for outcome in outcomes:
        for row in outcome.rows:
            if "gpu" in row:
                known |= row
    rows = [
        {"program": outcome.program} | row for outcome in outcomes for row in figures(outcome.rows)
    ]
    for problem in problems:
        print(f"FAILED {problem}")
    if rows:
        print("\n".join(cost_lines(rows)))
        path = path or results / f"{store.slug(known.get('gpu', 'gpu'))}-calibration.json"
        store.write_json(path, {"machine": known, "problems": problems, "calibration": rows})
        print(f"written: {path}")
    return int(bool(problems))


def figures(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if "name" in row]
