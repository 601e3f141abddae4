"""Runs the CUDA kernels on the CPU, all of them: `python tests/cuda_on_cpu/run.py [--all]`.

The fast lane of the tests of the tiers with the race detector. With --all all of these tests under
several schedules of the CUDA threads, once with the race detector and once with the address and
undefined behaviour sanitizers; the tests of the ops once. Then a table of the kernels and how
often each was launched. Fails if a test fails or a kernel was never launched.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import build
import library

TIERS = ["--all", "tests/cuda_on_cpu"]
FAST = ["-n", "2", "tests/cuda_on_cpu", "tests/recurrent/test_dropout.py"]
# A GPU has no threads and instruction sets to choose.
OF_CPU = "number_of_threads or instruction_set"
OPS = [
    "--all",
    "tests/recurrent/test_ops.py",
    "tests/recurrent/test_autograd.py",
    "tests/recurrent/test_dropout.py",
    "-k",
    f"not ({OF_CPU})",
]
JOBS = 2
KERNELS = re.compile(
    r"(streaming|block|row|reset|team|grid|cluster)_(forward|backward)<|drop_(out|mask)<|store_(rows|numbers)<"
    r"|(seen|projected)_states(_backward)?<|previous_states<"
    r"|filter_\w+<|weight_grad_\w+<|add_pieces<|separable_\w+<"
)


@dataclass(frozen=True)
class Run:
    variant: str
    schedule: str
    tests: list[str]
    seed: int = 0

    def __str__(self) -> str:
        seed = f" {self.seed}" if self.schedule == "random" else ""
        return f"{self.variant}, {self.schedule}{seed}, {' '.join(self.tests)}"


RUNS = [
    Run("fast", "fifo", OPS),
    Run("race", "fifo", TIERS),
    Run("asan", "fifo", TIERS),
    Run("fast", "fifo", TIERS),
    Run("fast", "lifo", TIERS),
    *(Run("fast", "random", TIERS, seed) for seed in (1, 2, 3)),
]


FAST_RUNS = [Run("race", "fifo", FAST)]


def library_path(name: str) -> str:
    """Python was linked without it, so it has to be loaded first."""
    command = [*build.compiler(), f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def environment(run: Run, log: Path) -> dict[str, str]:
    settings = {
        "ADL_EMULATOR_SCHEDULE": run.schedule,
        "ADL_EMULATOR_SEED": str(run.seed),
        "ADL_EMULATOR_LOG": str(log),
    }
    if run.variant == "asan":
        # Python has no libstdc++, where the sanitizer looks for the real __cxa_throw at once.
        settings["LD_PRELOAD"] = f"{library_path('libasan.so')} {library_path('libstdc++.so.6')}"
        settings["ASAN_OPTIONS"] = "detect_leaks=0"
    return {**os.environ, **settings}


def execute(run: Run, log: Path) -> tuple[bool, str]:
    """Whether all is well, and a line of the table or what pytest said."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "-q", "--cuda-on-cpu", run.variant, *run.tests]
    done = subprocess.run(
        command, env=environment(run, log), cwd=build.ROOT, capture_output=True, text=True
    )
    seconds = time.perf_counter() - start
    summary = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
    # pytest's last lines are no success if the emulator ends the process after them.
    good = done.returncode == 0
    text = f"{'ok  ' if good else 'FAIL'} {seconds:4.0f} s  {run}: {summary}"
    return good, text if good else f"{text}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"


def compiled_kernels(path: Path) -> set[str]:
    """Kernels of a library by the emulator's names, from the launches that name them."""
    listing = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True).stdout
    names = re.findall(r"^\S+ [TWV] (?:void )?adl::(\w+<.*>)\(", listing, re.M)
    return {normal(name) for name in names if KERNELS.match(name)}


def normal(name: str) -> str:
    return re.sub(r"\badl::|\bvoid ", "", name).split("(")[0].replace(" ", "")


def launches(log: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    for line in log.read_text().splitlines() if log.exists() else []:
        count, _, name = line.split("\t")
        counts[normal(name)] += int(count)
    return counts


def main() -> int:
    runs = RUNS if "--all" in sys.argv[1:] else FAST_RUNS
    libraries = [library.library(variant) for variant in dict.fromkeys(run.variant for run in runs)]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "launches"
        with ThreadPoolExecutor(JOBS) as pool:
            results = list(pool.map(lambda run: execute(run, log), runs))
        counts = launches(log)
    print("\nCUDA kernels launched on the CPU")
    for name, count in sorted(counts.items()):
        print(f"{count:9d}  {name}")
    print(f"{sum(counts.values())} launches of {len(counts)} kernels\n")
    print("\n".join(text for _, text in results))
    missing = compiled_kernels(libraries[0]) - set(counts)
    if missing:
        print("never launched: " + ", ".join(sorted(missing)))
    return 0 if all(good for good, _ in results) and not missing else 1


if __name__ == "__main__":
    sys.exit(main())
