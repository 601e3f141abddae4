"""`make gpu`: calibrates, builds, tests and measures with the Python that runs it, on a GPU.

Nothing is downloaded. Every stage has a time limit below ten minutes, a failing one does not stop
the others, and all of it ends within 25 minutes. `python tests/gpu --stage calibrate programs` runs
some of them.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
TOTAL_S = 1500.0
# Of the total, kept for the measurements at the end.
KEPT_S = {"goals": 180.0, "bench": 90.0}

Command = Sequence[str]


@dataclass(frozen=True)
class Stage:
    """Commands, run one after the other; where one is missing what it needs, a sentence instead."""

    name: str
    commands: Sequence[Command]
    limit_s: float
    cwd: Path = TESTS  # not the root, whose adl_kernels would be imported instead of the installed
    environment: dict[str, str] = field(default_factory=dict)
    missing: str = ""


@dataclass(frozen=True)
class Outcome:
    name: str
    result: str  # "ok", or what went wrong
    seconds: float

    @property
    def good(self) -> bool:
        return self.result == "ok"


def run(stage: Stage, left_s: float) -> Outcome:
    """Runs a stage within its limit and what is left of the time; output goes where ours goes."""
    print(f"\n==== {stage.name}", flush=True)
    start = time.monotonic()
    if stage.missing:
        print(stage.missing)
        return Outcome(stage.name, f"NOT RUN: {stage.missing}", 0.0)
    end = start + min(stage.limit_s, left_s)
    result = "ok"
    for command in stage.commands:
        print("$", *command, flush=True)
        result = _run(command, stage, end - time.monotonic())
        if result != "ok":
            break
    return Outcome(stage.name, result, time.monotonic() - start)


def _run(command: Command, stage: Stage, limit_s: float) -> str:
    if limit_s <= 0:
        return "NOT RUN: out of time"
    environment = os.environ | stage.environment
    process = subprocess.Popen(command, cwd=stage.cwd, env=environment, start_new_session=True)
    try:
        code = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with the compilers and workers that it started
        process.wait()
        return f"stopped after {limit_s:.0f} s"
    return "ok" if code == 0 else f"exit status {code}"


def run_all(stages: Sequence[Callable[[float], Stage]], total_s: float = TOTAL_S) -> int:
    """Each stage is made when its turn comes, knowing the seconds left. Prints a summary last."""
    start = time.monotonic()
    outcomes = []
    for k, make in enumerate(stages):
        kept = sum(KEPT_S.get(later.__name__, 0.0) for later in stages[k + 1 :])
        left = total_s - (time.monotonic() - start) - kept
        outcomes.append(run(make(left), left))
    print("\n==== summary")
    for outcome in outcomes:
        print(f"{outcome.name:<24} {outcome.seconds:6.1f} s  {outcome.result}")
    return int(not all(outcome.good for outcome in outcomes))


def has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


# The stages


def bench_command(*arguments: str) -> list[str]:
    """`python -m bench`, with the root at the end of the path: its adl_kernels must not hide the
    installed one."""
    code = f"import sys; sys.path.append({str(ROOT)!r}); from bench.__main__ import main; "
    return [sys.executable, "-c", code + f"sys.exit(main({list(arguments)!r}))"]


def calibrate(_: float) -> Stage:
    """What the model of a step rests on; needs nothing that is built here."""
    missing = "" if cuda_home() else "no CUDA toolkit was found"
    return Stage("calibrate", [bench_command("calibrate")], 400, missing=missing)


def build(_: float) -> Stage:
    install = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "-q"]
    missing = [name for name in ("setuptools", "ninja") if not has(name)]
    missing = [] if missing == ["ninja"] and shutil.which("ninja") else missing
    return Stage(
        "build",
        [[*install, str(ROOT)], [sys.executable, "-m", "adl_kernels.info"]],
        limit_s=240,
        environment={"ADL_CUDA": "1"},
        missing=f"{sys.executable} has no {' and no '.join(missing)}" if missing else "",
    )


def selftest(_: float) -> Stage:
    return Stage(
        "self-test", [[sys.executable, "-m", "adl_kernels.selftest", "--device", "cuda"]], 60
    )


def pytest_command(*more: str) -> list[str]:
    """In as many processes as help one GPU."""
    command = [sys.executable, "-m", "pytest", "--device", "cuda", "-q", "--maxfail", "40", *more]
    return [*command, "-n", "8"] if has("xdist") else command


def without_pytest() -> str:
    return "" if has("pytest") else f"{sys.executable} has no pytest"


def device_tests(_: float) -> Stage:
    """The tests that also run on a CPU."""
    more = []
    if not has("numpy"):
        print("no numpy: test_errors.py is left out")
        more += ["--ignore", "test_errors.py"]
    command = pytest_command(*more, "--ignore", "gpu", ".")
    return Stage("tests on the GPU", [command], 150, missing=without_pytest())


def gpu_tests(_: float) -> Stage:
    return Stage("tests of a GPU", [pytest_command("gpu")], 120, missing=without_pytest())


def cuda_home() -> Path | None:
    sys.path.insert(0, str(ROOT))
    from build_backend.choices import find_cuda_home

    return find_cuda_home(os.environ, shutil.which("nvcc"))


def sanitizers(_: float) -> Stage:
    home = cuda_home()
    tool = shutil.which("compute-sanitizer")
    if tool is None and home is not None and (home / "bin/compute-sanitizer").exists():
        tool = str(home / "bin/compute-sanitizer")
    ops = [sys.executable, str(TESTS / "gpu/few_ops.py")]
    # Our kernels alone: cuBLAS is not ours to check, and slow to.
    options = ["--kernel-name", "kernel_substring=adl", "--error-exitcode", "9"]
    tools = ("memcheck", "racecheck")
    return Stage(
        "compute-sanitizer",
        [[str(tool), "--tool", name, *options, *ops] for name in tools],
        limit_s=90,
        environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},  # so that each tensor has its bounds
        missing="" if tool else "compute-sanitizer was not found",
    )


def programs(_: float) -> Stage:
    """What the tests that run kernels on the CPU assume of a GPU, and the kernels without torch."""
    home, folder = cuda_home(), Path(tempfile.mkdtemp())
    nvcc = str(home / "bin/nvcc") if home else ""
    flags = ["-std=c++20", "-O2", "-arch=native", "--threads=0", "--expt-relaxed-constexpr"]
    commands: list[Command] = []
    kernels = {
        "wrappers": (),
        "driver": ("recurrent_*", "numbers"),
        "team_driver": ("team_*", "numbers"),
        "conv_driver": ("conv_*",),
    }
    for name, files in kernels.items():
        sources = [
            TESTS / f"cuda_on_cpu/{name}.cu",
            *(path for file in files for path in sorted(ROOT.glob(f"csrc/cuda/{file}.cu"))),
        ]
        program = str(folder / name)
        commands += [
            [nvcc, *flags, f"-I{ROOT / 'csrc'}", *map(str, sources), "-o", program],
            [program],
        ]
    missing = "" if home else "no CUDA toolkit was found"
    return Stage("programs without torch", commands, 300, missing=missing)


def goals(left_s: float) -> Stage:
    """Half of the time goes into building, checking and warming up, of which `bench` knows."""
    seconds = max(20.0, min(300.0, (left_s - 30) * 0.8))
    return Stage("goals", [bench_command("gpu", "--grid", "goals", *_seconds(seconds))], 420)


def bench(left_s: float) -> Stage:
    """As long as there is time; a sixth of it and some more goes into what is not timed."""
    seconds = max(20.0, min(200.0, (left_s - 30) * 0.8))
    return Stage("bench", [bench_command("gpu", *_seconds(seconds))], 240)


def _seconds(seconds: float) -> tuple[str, str]:
    return "--seconds", f"{seconds:.0f}"


STAGES: tuple[Callable[[float], Stage], ...] = (
    calibrate,
    programs,
    build,
    selftest,
    device_tests,
    gpu_tests,
    sanitizers,
    goals,
    bench,
)


def why_not() -> str:
    """Why this machine cannot do it; empty if it can."""
    if not has("torch"):
        return f"{sys.executable} has no torch: name the Python that has, make gpu PYTHON=..."
    code = "import torch, sys; sys.exit(not torch.cuda.is_available())"
    if subprocess.run([sys.executable, "-c", code], check=False).returncode:
        return f"the torch of {sys.executable} finds no GPU"
    return ""


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python tests/gpu", description=__doc__)
    names = [stage.__name__ for stage in STAGES]
    parser.add_argument(
        "--stage", nargs="+", action="extend", choices=names, help="these alone, in this order"
    )
    parser.add_argument("--seconds", type=float, default=TOTAL_S, help="for all that is run")
    return parser.parse_args(arguments)


def chosen(names: Sequence[str] | None) -> list[Callable[[float], Stage]]:
    by_name = {stage.__name__: stage for stage in STAGES}
    return [by_name[name] for name in names] if names else list(STAGES)


def main(arguments: Sequence[str] | None = None) -> int:
    asked = options(arguments)
    problem = why_not()
    if problem:
        print(problem)
        return 1
    return run_all(chosen(asked.stage), asked.seconds)


if __name__ == "__main__":
    sys.exit(main())
