"""What is run on a GPU, in order of worth: the one list, of `gpu_kit/run` and of `make gpu`."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpu.runner import ROOT, TESTS, Line, Words

PROGRAMS = ROOT / "build" / "programs"
# Arguments, by program and what is special about the run.
CALIBRATIONS = {
    "launch": (),
    "cluster": (),
    "l2": (),
    "step": (),
    # As in a layer, where 200 MB of W_ih x are written after the mailbox was filled.
    "l2, evicted": ("10000", "24", "200"),
    "mma": (),
}
MORE_CALIBRATIONS = {"wgmma": ()}

DRIVERS = ("driver", "team_driver", "conv_driver")
TIERS = ("block", "cluster", "grid", "streaming", "cudnn")
CELLS, DTYPES = ("lstm", "gru"), ("bf16", "f16", "tf32")
# Of the seconds that a line has, those in which `bench` does not time anything.
BENCH_OVERHEAD_S = 12.0
XDIST = ("-n", "8")


@dataclass(frozen=True)
class Machine:
    """What the lines depend on. Without a GPU the commands of Python do little, on the CPU, and so
    show that all is there; those of CUDA say what they would need."""

    gpu: bool = True
    out: Path = Path()

    @property
    def device(self) -> str:
        return "cuda" if self.gpu else "cpu"


def python(*words: object) -> Words:
    return [sys.executable, *map(str, words)]


def has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def why_not() -> str:
    """Why there is no use in building here for a GPU; empty if there is."""
    if not has("torch"):
        return f"{sys.executable} has no torch: name the Python that has, make gpu PYTHON=..."
    code = "import torch, sys; sys.exit(not torch.cuda.is_available())"
    if subprocess.run([sys.executable, "-c", code], check=False).returncode:
        return f"the torch of {sys.executable} finds no GPU"
    return ""


def facts() -> Line:
    return Line("facts", {"facts": python(TESTS / "gpu/facts.py")}, 60)


def build(limit_s: float = 130) -> Line:
    """In place, for the GPU that is present."""
    missing = [name for name in ("setuptools", "ninja") if not has(name)]
    missing = [] if missing == ["ninja"] and shutil.which("ninja") else missing
    return Line(
        "build",
        {"build": python("setup.py", "build_ext", "--inplace")},
        limit_s,
        environment={"ADL_CUDA": "1"},
        cwd=ROOT,
        needs=f"{sys.executable} has no {' and no '.join(missing)}" if missing else "",
    )


def build_programs() -> Line:
    return Line("programs", {"build": python(TESTS / "gpu/programs.py", PROGRAMS)}, 240)


def _program(name: str) -> str:
    return "" if (PROGRAMS / name).exists() else f"{name} was not built: it needs a CUDA toolkit"


def wrappers(machine: Machine) -> Line:
    """What the tests that run kernels on the CPU assume of a GPU."""
    words = [str(PROGRAMS / "wrappers")]
    return Line("wrappers", {"wrappers": words}, 20, needs=_program("wrappers"))


def calibrations(programs: Mapping[str, Words] = CALIBRATIONS) -> list[Line]:
    """What the model of a step rests on."""
    found = []
    for name, arguments in programs.items():
        program = f"calibrate_{name.split(',')[0]}"
        words = [str(PROGRAMS / program), *arguments]
        limit_s = 12 if not arguments else 8
        found.append(Line("calibrate", {name: words}, limit_s, needs=_program(program)))
    return found


def drivers(machine: Machine) -> list[Line]:
    """The kernels without torch."""
    return [
        Line("kernels", {name: [str(PROGRAMS / name)]}, 15, needs=_program(name))
        for name in DRIVERS
    ]


def selftests(machine: Machine) -> list[Line]:
    command = python("-m", "adl_kernels.selftest", "--device", machine.device)
    return [
        Line("self-test", {"exact": command}, 40),
        Line("self-test", {"tf32": [*command, "--tf32"]}, 40),
    ]


def tiers(machine: Machine) -> Line:
    names = [(t, c, d) for t in TIERS for c in CELLS for d in DTYPES]
    command = TESTS / "gpu/check_tier.py"
    commands = {" ".join(n): python(command, *n, "--device", machine.device) for n in names}
    return Line("tiers", commands, 20, at_once=4)


def bench(machine: Machine, name: str, limit_s: float, *words: object) -> Line:
    """Layers against torch's own; on a CPU one tiny case."""
    path = machine.out / f"{name}.json"
    seconds = max(0.0, limit_s - BENCH_OVERHEAD_S)
    more: tuple[object, ...] = ("--seconds", seconds)
    if not machine.gpu:
        more = ("--seconds", 0, "--device", "cpu")
        more += ("--cases", "3x2x4x5", "--cells", "lstm", "--dtypes", "tf32")
    command = python("-m", "bench", "gpu", *words, *more, "--json", path)
    return Line(name, {name: command}, limit_s)


def times(machine: Machine) -> Line:
    return bench(machine, "times", 105, "--grid", "first", "--graphs")


def goals(machine: Machine) -> Line:
    return bench(machine, "goals", 120, "--grid", "goals")


def wide(machine: Machine) -> Line:
    return bench(machine, "bench", 240)


def pytest(machine: Machine, name: str, limit_s: float, *words: object) -> Line:
    missing = [module for module in ("pytest", "numpy") if not has(module)]
    command = ["-m", "pytest", "--device", "cuda", "-q", "--maxfail", 40, "-p", "no:cacheprovider"]
    if has("pytest_timeout"):
        command += ["--timeout", 30, "--timeout-method", "thread"]
    command += XDIST if has("xdist") else ()
    if not machine.gpu:  # that everything can be imported
        command += ["--collect-only", "-qq"]
    return Line(
        name,
        {name: python(*command, *words)},
        limit_s,
        needs=f"{sys.executable} has no {' and no '.join(missing)}" if missing else "",
    )


def gpu_tests(machine: Machine) -> Line:
    return pytest(machine, "gpu-tests", 150, "-m", "not large", "gpu")


def large_tests(machine: Machine) -> Line:
    return pytest(machine, "large-tests", 120, "-m", "large", "gpu")


def device_tests(machine: Machine) -> Line:
    """The tests that also run on a CPU."""
    return pytest(machine, "device-tests", 180, "--ignore", "gpu", ".")


def sanitizers(machine: Machine) -> Line:
    """Our kernels alone: cuBLAS is not ours to check, and slow to."""
    home = cuda_home()
    tool = shutil.which("compute-sanitizer") or (home and str(home / "bin/compute-sanitizer"))
    there = tool is not None and Path(tool).exists()
    ops = python(TESTS / "gpu/few_ops.py", machine.device)
    options = ["--kernel-name", "kernel_substring=adl", "--error-exitcode", "9"]
    return Line(
        "sanitizer",
        {name: [str(tool), "--tool", name, *options, *ops] for name in ("memcheck", "racecheck")},
        90,
        environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},  # so that each tensor has its bounds
        needs="" if there else "compute-sanitizer was not found",
    )


def cuda_home() -> Path | None:
    from build_backend.choices import find_cuda_home

    return find_cuda_home(os.environ, shutil.which("nvcc"))


def first(machine: Machine) -> list[Line]:
    """What tells most in five and a half minutes."""
    return [
        wrappers(machine),
        *calibrations(),
        *drivers(machine),
        *selftests(machine),
        tiers(machine),
        times(machine),
    ]


def second(machine: Machine) -> list[Line]:
    return [gpu_tests(machine), goals(machine)]


def everything(machine: Machine) -> list[Line]:
    rest = [device_tests(machine), large_tests(machine), sanitizers(machine)]
    rest += [*calibrations(MORE_CALIBRATIONS), wide(machine)]
    return [*first(machine), *second(machine), *rest]


# Lines and the seconds for all of them together.
PLANS = {"first": (first, 330.0), "second": (second, 280.0), "all": (everything, 1500.0)}


def total_s(lines: Sequence[Line]) -> float:
    """Seconds that the lines may take, if each command takes as long as it may."""
    return sum(line.limit_s * -(-len(line.commands) // line.at_once) for line in lines)
