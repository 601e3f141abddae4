"""Removes one synchronisation at a time from the kernels, and asks whether the emulator notices.

    python tests/cuda_on_cpu/mutate.py [FILE ...] [--seeds N] [--jobs N]

Prints a Markdown table; the exit code is 1 if something can be removed unnoticed. A statement that
is there for another reason says so in its line: `__syncthreads();  // redundant: the reason`.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from build import HERE, ROOT, build

REMOVED = re.compile(
    r"\b(__syncthreads|__syncwarp|grid_barrier|cluster_barrier|copy_async_commit"
    r"|copy_async_wait<[^<>]*>)\([^()]*\);"
)
WEAKENED = [  # the same without the order of memory
    (re.compile(r"\badd_release\("), "atomicAdd("),
    (re.compile(r"\bload_acquire\("), "*static_cast<const volatile unsigned*>("),
]
RACE_EXIT = 66  # of racecheck.cpp
FLAGS = ["-O1", "-g1"]  # compiling takes longer than running


@dataclass
class Mutant:
    file: Path  # relative to the root
    line: int
    statement: str
    text: str  # of the whole file
    redundant: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass
class Verdict:
    mutant: Mutant
    fifo: bool
    lifo: bool
    random: int
    race: str  # "race", "result" or ""

    @property
    def noticed(self) -> bool:
        return bool(self.fifo or self.lifo or self.random or self.race)


def find_mutants(file: Path) -> list[Mutant]:
    text = (ROOT / file).read_text()
    mutants = []
    begin = 0
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        code = line.split("//")[0]
        found = [(match, ";") for match in REMOVED.finditer(code)]
        found += [(match, new) for old, new in WEAKENED for match in old.finditer(code)]
        for match, new in found:
            mutated = text[: begin + match.start()] + new + text[begin + match.end() :]
            statement = match.group().rstrip("(;")
            redundant = "// redundant:" in line
            mutants.append(Mutant(file, number, statement, mutated, redundant))
        begin += len(line)
    return mutants


def program_of(file: Path) -> Path:
    """The program that has to fail, relative to the root."""
    own = file.parts[0] == "tests"
    return Path("tests/cuda_on_cpu", "wrappers.cu" if own else "driver.cu")


def copy_sources(tree: Path) -> None:
    shutil.copytree(ROOT / "csrc", tree / "csrc")
    (tree / "tests/cuda_on_cpu").mkdir(parents=True)
    for path in HERE.iterdir():
        if path.suffix in (".cu", ".cuh") or path.stem.startswith("driver"):
            shutil.copy(path, tree / "tests/cuda_on_cpu")


def fails(program: Path, schedule: str, seed: int = 0) -> int:
    """The exit code. Waiting for ever is a failure too."""
    settings = {"ADL_EMULATOR_SCHEDULE": schedule, "ADL_EMULATOR_SEED": str(seed)}
    try:
        done = subprocess.run(
            [program], env={**os.environ, **settings}, capture_output=True, timeout=300, check=False
        )
    except subprocess.TimeoutExpired:
        return 1
    return done.returncode


def judge(mutant: Mutant, seeds: int) -> Verdict:
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copy_sources(tree)
        (tree / mutant.file).write_text(mutant.text)
        fast, race = (
            build(v, [tree / program_of(mutant.file)], tree / v, FLAGS, csrc=tree / "csrc")
            for v in ("fast", "race")
        )
        code = fails(race, "fifo")
        return Verdict(
            mutant,
            fifo=fails(fast, "fifo") != 0,
            lifo=fails(fast, "lifo") != 0,
            random=sum(fails(fast, "random", seed) != 0 for seed in range(1, seeds + 1)),
            race="race" if code == RACE_EXIT else "result" if code else "",
        )


def table(verdicts: list[Verdict], seeds: int) -> str:
    yes = {True: "yes", False: "-"}
    lines = [
        f"| place | statement | fifo | lifo | random of {seeds} | race detector |",
        "|---|---|---|---|---|---|",
    ]
    for v in verdicts:
        name = f"`{v.mutant.statement}`" + (" (redundant)" if v.mutant.redundant else "")
        row = [str(v.mutant), name, yes[v.fifo], yes[v.lifo], str(v.random), v.race or "-"]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def mutate(files: list[Path], seeds: int, jobs: int = 2) -> tuple[list[Verdict], list[str]]:
    """The verdicts, and a sentence for each that is not as it should be."""
    intact = [Mutant(f, 0, "nothing", (ROOT / f).read_text(), True) for f in files]
    mutants = [m for f in files for m in find_mutants(f)]
    with ThreadPoolExecutor(jobs) as pool:
        verdicts = list(pool.map(lambda m: judge(m, seeds), [*intact, *mutants]))
    wrong = [f"{v.mutant.file} fails as it is" for v in verdicts[: len(intact)] if v.noticed]
    for v in verdicts[len(intact) :]:
        if not v.noticed and not v.mutant.redundant:
            wrong.append(f"{v.mutant}: nothing notices that {v.mutant.statement} is missing")
        if v.noticed and v.mutant.redundant:
            wrong.append(f"{v.mutant}: {v.mutant.statement} is needed, not redundant")
    return verdicts[len(intact) :], wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="by default every file with kernels")
    parser.add_argument("--seeds", type=int, default=20, help="of the random schedule")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    files = [f.resolve().relative_to(ROOT) for f in args.files]
    if not files:
        kernels = sorted(p for p in (ROOT / "csrc/cuda").glob("*.cuh") if p.name != "device.cuh")
        files = [p.relative_to(ROOT) for p in [*kernels, HERE / "wrappers.cuh"]]
    for f in [f for f in files if not (ROOT / program_of(f)).exists()]:
        print(f"{f}: skipped, there is no {program_of(f)}")
        files.remove(f)
    verdicts, wrong = mutate(files, args.seeds, args.jobs)
    print(table(verdicts, args.seeds))
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
