"""The model's constants from what a run on a GPU measured: `python -m bench gpu-calibrate OUT`.

Reads what `gpu_kit/run OUT` or `make gpu` wrote, edits `Costs` of csrc/recurrent/cuda/tiers.h in
place, builds again, and prints predictions, those of before and those with the new constants,
beside what was measured.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

from bench.gpu import model
from bench.gpu.grids import GRIDS
from bench.recurrent.cases import MODES, Job
from bench.store import Row

HELP = "put what a run on a GPU measured into the model that chooses kernels"
Key = tuple[str, str, str, str]  # cell, dtype, shape, mode
# What is further than this from an estimate is no measurement of the same thing.
FACTOR = 10.0


def _key(row: Row) -> Key:
    return row["cell"], row["dtype"], row["shape"], row["mode"]


def plausible(name: str, value: float) -> bool:
    assumed = model.assumed()[name]
    return math.isfinite(value) and assumed / FACTOR < value < assumed * FACTOR


def edited(text: str, found: Mapping[str, float]) -> str:
    """The text of tiers.h with these constants in `Costs`."""
    head, start, rest = text.partition("struct Costs {")
    body, end, tail = rest.partition("};")
    for name, value in found.items():
        number = f"{value:.0f}" if value >= 100 else f"{value:.3g}"
        body, count = re.subn(rf"\b{name} = [\d.e+-]+", f"{name} = {number}", body)
        if count != 1:
            raise ValueError(f"bench: Costs of {model.TIERS} has no {name}")
    return head + start + body + end + tail


def grid() -> list[Job]:
    """Every goal, and what a first run measures besides."""
    return list(dict.fromkeys([*GRIDS["goals"].jobs, *GRIDS["first"].jobs]))


def predictions(calibration: Sequence[Row]) -> dict[Key, float]:
    """Microseconds of a step, by the constants that this process has loaded."""
    gpu = model.calibrated(calibration)
    found = {}
    for job, mode in product(grid(), MODES):
        row = job.row() | {"mode": mode}
        found[_key(row)] = model.predict(row, gpu)
    return found


def measured(out: Path) -> dict[Key, Row]:
    """Rows of a run, where results are right."""
    found = {}
    for name in ("times", "goals"):
        path = out / f"{name}.json"
        for row in json.loads(path.read_text())["rows"] if path.exists() else ():
            if row["status"] == "ok":
                found[_key(row)] = row
    return found


HEADS = ("cell", "dtype", "T, B, I, H", "mode", "before", "predicted", "ours", "graph", "torch")


def table(
    before: Mapping[Key, float], after: Mapping[Key, float], rows: Mapping[Key, Row]
) -> Iterator[str]:
    """Microseconds of a step; ours by how far from the prediction."""
    line = "{:<5} {:<5} {:<34} {:<6} {:>7} {:>9} {:>16} {:>7} {:>7}"
    yield line.format(*HEADS)
    for key, predicted in after.items():
        cells = ["", "", ""]
        if key in rows:
            row = rows[key]
            ours = row["ours"]["us_per_step"]
            graph = row.get("graph", {}).get("ours_us")
            cells = [f"{ours:.2f} ({ours / predicted:.2f}x)", f"{graph:.2f}" if graph else ""]
            cells.append(f"{row['torch']['us_per_step']:.2f}")
        yield line.format(*key, f"{before[key]:.2f}", f"{predicted:.2f}", *cells).rstrip()


def rebuild() -> None:
    """So that kernels are chosen by the new constants."""
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    subprocess.run(command, cwd=model.ROOT, check=True, stdout=subprocess.DEVNULL)


def predictions_of_a_new_process(calibration: Path) -> dict[Key, float]:
    code = (
        "import json, sys; from pathlib import Path; from bench.gpu import calibrate as g; "
        "rows = json.loads(Path(sys.argv[1]).read_text())['calibration']; "
        "print(json.dumps(list(g.predictions(rows).items())))"
    )
    command = [sys.executable, "-c", code, str(calibration)]
    said = subprocess.run(command, cwd=model.ROOT, check=True, capture_output=True, text=True)
    return {tuple(key): value for key, value in json.loads(said.stdout.splitlines()[-1])}


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("out", type=Path, metavar="OUT", help="the folder with the results")


def main(asked: argparse.Namespace) -> int:
    path = asked.out / "calibration.json"
    if not path.exists():
        raise ValueError(f"bench: {path} is missing: a run on a GPU writes it (gpu_kit/run OUT)")
    rows = json.loads(path.read_text())["calibration"]
    before = predictions([])
    changes = {}
    for name, value in model.costs(rows).items():
        good = plausible(name, value)
        print(
            f"Costs::{name}: {model.assumed()[name]:g} -> {value:.4g}"
            + ("" if good else ", which is not plausible and left alone")
        )
        if good:
            changes[name] = value
    left = set(model.assumed_names()) - set(changes)
    if left:
        print(f"not measured, left alone: {', '.join(sorted(left))}")
    text = model.TIERS.read_text()
    new = edited(text, changes)
    after = predictions(rows)
    if new != text:
        model.TIERS.write_text(new)
        print(f"edited: {model.TIERS}; building again", flush=True)
        rebuild()
        after = predictions_of_a_new_process(path)
    print("\nmicroseconds of a step", *table(before, after, measured(asked.out)), sep="\n")
    return 0
